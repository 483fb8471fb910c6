"""The Trainer: one forward a step, evaluation by ranking, checkpoints that survive a kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import TrainOutput

from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.checkpoints import TRAINABLE, CheckpointError, mark_complete, rotate
from llmrec.training.collator import Collator
from llmrec.training.examples import PrefixExamples
from llmrec.training.sampling import EpochSampler
from llmrec.training.validation import RankingValidation

TRAINER_STATE = "trainer_state.json"
# Batches whose examples are sorted by length together under train_sampling_strategy="group_by_length".
BATCHES_A_GROUP = 50


class LLMRecTrainer(Trainer):
    """Trains an `LLMRecModel`, or a PEFT model around one, on prefix examples.

    Differences to its parent:

    - the loss of a micro-batch is a mean over its examples, so gradient accumulation divides by the micro-batches;
    - `evaluate()` ranks a sample of validation users (`RankingValidation`);
    - the order of an epoch and its negatives depend on the seed and the epoch only;
    - a checkpoint holds the trained parameters by name, and counts only once it is complete (`checkpoints.py`);
    - losses are logged whenever a checkpoint is written: the running mean starts anew on resume, so only then does a
      resumed run log the very numbers of an undisturbed one.

    Args:
        model: what to train.
        args: the training arguments.
        train_dataset: prefix examples.
        data_collator: their collator.
        validation: ranks the sample; None without evaluation.
        example_lengths: (examples,) tokens of each history, for `group_by_length`.
    """

    control: Any

    def __init__(
        self,
        model: Any,
        args: LLMRecTrainingArguments,
        train_dataset: PrefixExamples,
        data_collator: Collator,
        validation: RankingValidation | None = None,
        example_lengths: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        callbacks = [_EpochCallback(train_dataset), *(callbacks or [])]
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        callbacks += [_LogAtSaveCallback(), ClockCallback()]
        self.validation = validation
        self.example_lengths = example_lengths
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
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.validation(self.model).items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 4)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- logging -------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the parent's, but `train_loss` at the end is the mean over the whole run, also after a resume."""
        if "train_loss" in logs:
            logs["train_loss"] = mean_logged_loss(self.state.log_history)
        super().log(logs, start_time)

    # -- checkpoints ---------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> TrainOutput:
        """Train, or go on from a complete checkpoint; a run that had finished training only loads its result."""
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE))
            if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
                # The parent would forget that training had stopped, and take more steps.
                return self._take_up_finished(Path(resume_from_checkpoint), state)
        output = super().train(resume_from_checkpoint, **kwargs)
        return output._replace(training_loss=mean_logged_loss(self.state.log_history))

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
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            mark_complete(folder / f"checkpoint-{self.state.global_step}", self.args.world_size)
            best = self.state.best_model_checkpoint
            rotate(folder, limit, Path(best) if best else None)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the trained parameters by name. (The parent also pickles its arguments; nothing here is pickled but
        the optimizer's, scheduler's and random state, which the parent reads back with `weights_only=True`.)"""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._trainable().items()}
        save_file(tensors, folder / TRAINABLE, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        file = Path(resume_from_checkpoint) / TRAINABLE
        if not file.is_file():
            raise CheckpointError(f"{resume_from_checkpoint} holds no {TRAINABLE}: it is no checkpoint of this project")
        saved, own = load_file(file), self._trainable()
        shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
        differing = sorted(
            set(shapes.items()) ^ {(name, tuple(parameter.shape)) for name, parameter in own.items()}, key=str
        )
        if differing:
            name, shape = differing[0]
            raise CheckpointError(
                f"{file} belongs to another configuration: {len(differing)} trained parameters differ from this "
                f"model's, among them {name} of shape {list(shape)}"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


class _EpochCallback(TrainerCallback):
    """Tells the data set which epoch begins; accelerate's own relay stops at its wrappers."""

    def __init__(self, examples: PrefixExamples) -> None:
        self.examples = examples

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.examples.set_epoch(int(state.epoch or 0))


class ClockCallback(TrainerCallback, ExportableState):
    """Adds up the time spent on training, also over the sessions of a run that was resumed."""

    def __init__(self) -> None:
        self.before = 0.0
        self.start: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds up to now."""
        return self.before + (time.perf_counter() - self.start if self.start is not None else 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before, self.start = self.seconds, None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {}, "attributes": {"before": self.seconds}}


class _LogAtSaveCallback(TrainerCallback):
    """Logs the loss whenever a checkpoint may be written, and at the end."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._log(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._log(control)

    @staticmethod
    def _log(control: Any) -> Any:
        # An evaluation may decide to save (save_strategy "best"), after the decision to log has been taken.
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True
        return control


def mean_logged_loss(log_history: list[dict[str, Any]]) -> float:
    """Mean training loss of a run from its log: each entry is the mean over the steps since the one before it."""
    total, last = 0.0, 0
    for entry in log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / last if last else float("nan")
