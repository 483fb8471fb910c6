"""The Trainer: the training step, evaluation by ranking, checkpoints that survive a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, save_fsdp_optimizer
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from llmrec.training import sharding
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.callbacks import ClockCallback, EpochCallback, LogAtSaveCallback
from llmrec.training.catalogue_bank import CatalogueBank
from llmrec.training.checkpoints import SHARDS, TRAINABLE, Batches, CheckpointError, mark_complete, rotate
from llmrec.training.collator import Collator
from llmrec.training.examples import PrefixExamples
from llmrec.training.gradient_cache import backward_by_chunks
from llmrec.training.sampling import EpochSampler
from llmrec.training.step_inputs import InputBuilder
from llmrec.training.step_statistics import StepStatistics
from llmrec.training.validation import RankingValidation
from modeling_llmrec.heads import LogitScale

TRAINER_STATE = "trainer_state.json"
SCHEDULER = "scheduler.pt"
BANK = "catalogue_bank.safetensors"
# Batches whose examples are sorted by length together under train_sampling_strategy="group_by_length".
BATCHES_A_GROUP = 50


class LLMRecTrainer(Trainer):
    """Trains an `LLMRecModel`, or a PEFT model around one, on prefix examples.

    Differences to its parent:

    - the loss of a micro-batch is a mean over its examples, so gradient accumulation divides by the micro-batches;
    - `evaluate()` ranks a sample of validation users (`RankingValidation`);
    - the order of an epoch and its negatives depend on the seed and the epoch only;
    - a checkpoint holds the trained parameters by name, and counts only once it is complete (`checkpoints.py`);
    - FSDP2 and DeepSpeed, asked for by the launcher, spread the weights over the processes (`sharding.py`);
    - a batch of several chunks is computed by gradient caching (`gradient_cache.py`);
    - fill rate, tokens a second and the number of negatives are logged with the loss (`step_statistics.py`);
    - losses are logged whenever a checkpoint is written: the running mean starts anew on resume, so only then does a
      resumed run log the very numbers of an undisturbed one.

    Args:
        model: what to train.
        args: the training arguments.
        train_dataset: prefix examples.
        data_collator: their collator.
        validation: ranks the sample; None without evaluation.
        example_lengths: (examples,) tokens of each history, for `group_by_length`.
        input_builder: adds the candidates of other ranks and of the catalogue to a batch; None where a batch is all.
    """

    control: Any
    model: Any

    def __init__(
        self,
        model: Any,
        args: LLMRecTrainingArguments,
        train_dataset: PrefixExamples,
        data_collator: Collator,
        validation: RankingValidation | None = None,
        example_lengths: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        input_builder: InputBuilder | None = None,
    ) -> None:
        callbacks = [EpochCallback(train_dataset), *(callbacks or [])]
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        callbacks += [LogAtSaveCallback(), ClockCallback()]
        self.validation = validation
        self.example_lengths = example_lengths
        self.input_builder = input_builder
        self.statistics = StepStatistics()
        had_use_cache = hasattr(model.config, "use_cache")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=data_collator,
            # Only its presence is looked at: evaluate() below does not use it.
            eval_dataset=[] if validation is not None else None,
            callbacks=callbacks,
        )
        if not had_use_cache:
            # The parent sets it on every config; on ours it would travel in config.json and mean nothing.
            del model.config.use_cache
        # The model's forward takes no num_items_in_batch; without this a PEFT wrapper's **kwargs would make the
        # Trainer believe that the loss is scaled already, and gradients would grow with accumulation.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        self.loss_parameters = [
            parameter
            for module in model.modules()
            if isinstance(module, LogitScale)
            for parameter in module.parameters()
            if parameter.requires_grad
        ]

    def create_accelerator_and_postprocess(self) -> None:
        """As the parent's; FSDP2 and ZeRO-3 work on processors too, and FSDP2 reduces gradients in float32."""
        sharding.check_launcher(self.args.max_pass_tokens)
        with sharding.on_processors(self.args.distributed_state):
            super().create_accelerator_and_postprocess()
        sharding.load_models_whole()
        if self.is_fsdp_enabled:
            sharding.refuse_scalars(self.model)
            plugin = self.accelerator.state.fsdp_plugin
            sharding.join_tied_embeddings(self.model)
            sharding.choose_layers(plugin, self.model)
            sharding.set_precision(plugin, self.args.bf16)
            sharding.start_alike(self.model, self.args.device)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        model, dataloader = super()._prepare_for_training(*args, **kwargs)
        if self.is_deepspeed_enabled:
            sharding.remember_engine(self.model, model)
        if self.is_fsdp_enabled and self.args.bf16:
            # As accelerate does it for every model but an FSDP2 one: float32 inputs would meet bfloat16 weights.
            model.forward = torch.autocast(self.args.device.type, torch.bfloat16)(model.forward)
        return model, dataloader

    @property
    def batches(self) -> Batches:
        """How the examples of a step are shared out over forward passes and processes."""
        return batches_of(self.args, self.model.config.contrastive_loss)

    @property
    def seconds(self) -> float:
        """Seconds spent on training, evaluations included, over all sessions of a resumed run."""
        return next(one for one in self.callback_handler.callbacks if isinstance(one, ClockCallback)).seconds

    # -- data ----------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        lengths = self.example_lengths if self.args.train_sampling_strategy == "group_by_length" else None
        # Of the global batch, so that the processes of one step get histories of similar length.
        group = self.args.train_batch_size * self.args.world_size * BATCHES_A_GROUP
        return EpochSampler(self.train_dataset, self.args.data_seed, lengths, group)

    # -- the step ------------------------------------------------------------------------------------

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward pass of a batch; by gradient caching where it comes in several chunks.

        Returns:
            The loss over the number of micro-batches of the optimizer step, detached.
        """
        arguments = self._prepare_inputs(inputs)
        passes = len(arguments.get("texts", [None]))
        if self.input_builder is not None:
            self._refresh_bank()
            arguments, passes = self.input_builder(arguments, self.state.global_step)
        self.statistics.add(arguments)
        if passes == 1:
            return super().training_step(model, arguments, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # optimizers without a schedule hold two sets of weights
        # Parameters that are sharded are gathered in every forward pass, so all ranks must run as many.
        sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        # DDP alone waits for the gradients of parameters that the last chunk does not use.
        waits = isinstance(model, torch.nn.parallel.DistributedDataParallel)
        return backward_by_chunks(
            model,
            arguments.pop("texts"),
            arguments,
            scale=1 / self.current_gradient_accumulation_steps,
            backward=self._backward,
            no_sync=lambda: self._no_sync(model),
            loss_parameters=self.loss_parameters if waits else (),
            passes=passes if sharded else None,
        )

    def _refresh_bank(self) -> None:
        bank, step = self._bank, self.state.global_step
        if bank is not None and bank.is_due(step):
            with self.whole_model() as model:
                bank.refresh(model, step, self.args.device)

    def _backward(self, loss: torch.Tensor) -> None:
        # As in the parent: DeepSpeed would divide by the micro-batches once more.
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))

    @contextmanager
    def _no_sync(self, model: torch.nn.Module) -> Iterator[None]:
        """Keep gradients on this rank, within a micro-batch whose gradients may be due or not."""
        state = self.accelerator.gradient_state
        due = state.sync_gradients
        if not due and self.accelerator.is_fsdp2:
            # The parent has switched it off for this micro-batch already; leaving a second context would switch it on.
            yield
            return
        state._set_sync_gradients(False)  # DeepSpeed takes its step in the backward pass, if this says so
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(due)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: the parent's estimate knows neither titles nor packed rows. `llmrec plan` does it."""
        return 0

    # -- evaluation ----------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Rank the validation sample; `eval_ndcg@10`, `eval_recall@10`, `eval_recall@1`, `eval_mrr@10`.

        All processes of a distributed run must call it, and all get the same numbers.
        """
        if self.validation is None:
            raise ValueError("this trainer was made without validation data")
        start = time.perf_counter()
        with self.whole_model() as model:
            found = self.validation(model)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 4)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def whole_model(self) -> AbstractContextManager[Any]:
        """The model, for encoding outside of a training step: weights that are spread over the processes are put
        together on each of them meanwhile. All processes must enter and leave together."""
        return sharding.whole(self.model)

    # -- logging -------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the parent's, but `train_loss` at the end is the mean over the whole run, also after a resume; with every
        loss come the numbers of `StepStatistics`. All processes must call it."""
        if "train_loss" in logs:
            logs["train_loss"] = mean_logged(self.state.log_history)
        if "loss" in logs:
            logs |= self.statistics.summary(lambda sums: self.accelerator.reduce(sums, "sum"))
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        # A log comes with every evaluation and checkpoint, and their time is none of the next steps'.
        self.statistics.restart_clock()

    # -- checkpoints ---------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> TrainOutput:
        """Train, or go on from a complete checkpoint; a run that had finished training only loads its result."""
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE))
            if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
                # The parent would forget that training had stopped, and take more steps.
                return self._take_up_finished(Path(resume_from_checkpoint), state)
        output = super().train(resume_from_checkpoint, **kwargs)
        return output._replace(training_loss=mean_logged(self.state.log_history))

    def _take_up_finished(self, checkpoint: Path, state: TrainerState) -> TrainOutput:
        self.state = state
        self._load_callback_state()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        self._point_to_best()
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(best or str(checkpoint))
        metrics: dict[str, float] = {"train_loss": 0.0}
        self.log(metrics)
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._init_training_state(*args, **kwargs)
        self._point_to_best()
        return result

    def _point_to_best(self) -> None:
        """Find the best checkpoint in this run's folder, also where the folder has been moved since it was saved."""
        if self.state.best_global_step:
            best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # The parent removes old checkpoints before the new one can be marked: a kill in between would leave none.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self._save_bank(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            mark_complete(folder / f"checkpoint-{self.state.global_step}", self.batches)
            best = self.state.best_model_checkpoint
            rotate(folder, limit, Path(best) if best else None)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's; shards are written together with the optimizer's."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            # The parent asks next, on every process, whether the best checkpoint's folder is there.
            Path(output_dir or self.args.output_dir).mkdir(parents=True, exist_ok=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the trained parameters by name. (The parent also pickles its arguments; nothing here is pickled but
        the optimizer's, scheduler's and random state, which the parent reads back with `weights_only=True`.)"""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._trainable().items()}
        save_file(tensors, folder / TRAINABLE, metadata={"format": "pt"})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The parent writes the frozen weights as well.
        sharding.save_shards(Path(output_dir) / SHARDS, self._trainable())
        save_fsdp_optimizer(
            self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir
        )
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Shards are read into a state that an empty step has made, which accelerate leaves out between micro-batches;
        # the optimizer would silently start anew.
        self.accelerator.gradient_state._set_sync_gradients(True)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_fsdp_enabled and not self.optimizer.state:
            raise CheckpointError(f"{checkpoint} holds no state of the optimizer")
        if checkpoint is not None and self._bank is not None and (Path(checkpoint) / BANK).is_file():
            self._bank.load_state_tensors(load_file(Path(checkpoint) / BANK), self.args.device)

    @property
    def _bank(self) -> CatalogueBank | None:
        return None if self.input_builder is None else self.input_builder.bank

    def _save_bank(self, checkpoint: Path) -> None:
        # All processes hold the same matrix.
        tensors = self._bank.state_tensors() if self._bank is not None and self.args.should_save else {}
        if tensors:
            save_file(tensors, checkpoint / BANK, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        checkpoint, own = Path(resume_from_checkpoint), self._trainable()
        if (checkpoint / TRAINABLE).is_file():
            saved = load_file(checkpoint / TRAINABLE)
            _check_shapes(checkpoint, {name: tuple(tensor.shape) for name, tensor in saved.items()}, own)
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(saved[name])
        elif (checkpoint / SHARDS).is_dir():
            _check_shapes(checkpoint, sharding.shapes_of_shards(checkpoint / SHARDS), own)
            sharding.load_shards(checkpoint / SHARDS, own)
        elif sharding.is_deepspeed_checkpoint(checkpoint):
            sharding.load_deepspeed_weights(checkpoint, own)
        else:
            raise CheckpointError(f"{checkpoint} holds no {TRAINABLE}: it is no checkpoint of this project")

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()  # the weights are the engine's
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def unshard(self, make: Callable[[], torch.nn.Module]) -> Any:
        """Finish with an ordinary model, wherever the weights have been: every process holds all of them afterwards.

        All processes must call it, after training.

        Args:
            make: builds the model as it was before training; its trained parameters are replaced. Called only if the
                weights are spread over the processes.
        """
        self.model = self.model_wrapped = sharding.unsharded_model(self.model, make, self.args.device)
        return self.model

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


def _check_shapes(checkpoint: Path, shapes: dict[str, tuple[int, ...]], own: dict[str, torch.nn.Parameter]) -> None:
    """Refuse a checkpoint whose trained parameters are not this model's."""
    differing = sorted(
        set(shapes.items()) ^ {(name, tuple(parameter.shape)) for name, parameter in own.items()}, key=str
    )
    if differing:
        name, shape = differing[0]
        raise CheckpointError(
            f"{checkpoint} belongs to another configuration: {len(differing)} trained parameters differ from this "
            f"model's, among them {name} of shape {list(shape)}"
        )


def batches_of(arguments: LLMRecTrainingArguments, loss: str) -> Batches:
    """How a run with these arguments and this loss shares out the examples of a step."""
    contrast = "own"
    if loss == "in_batch":
        contrast = "all" if arguments.gather_negatives else "process"
    weights = "whole"
    if "LOCAL_RANK" in os.environ:
        weights = "fsdp2" if sharding.fsdp_is_asked_for() else weights
        weights = "deepspeed" if sharding.deepspeed_is_asked_for() else weights
    return Batches(
        arguments.world_size, arguments.train_batch_size, arguments.gradient_accumulation_steps, contrast, weights
    )


def mean_logged(log_history: list[dict[str, Any]], name: str = "loss") -> float:
    """Mean of a run from its log, by default of the training loss: each entry is the mean over the steps since the one
    before it. NaN where nothing was logged."""
    total, last = 0.0, 0
    for entry in log_history:
        if name in entry:
            total += entry[name] * (entry["step"] - last)
            last = entry["step"]
    return total / last if last else float("nan")
