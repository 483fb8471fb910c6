"""Arguments of the training itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import TrainingArguments

from llmrec.evaluation.protocols import get_protocol
from llmrec.training.optimizers import check_optimizer
from llmrec.training.precision import resolve_precision, runs_on_cpu
from llmrec.training.sharding import load_models_whole
from llmrec.training.validation import METRICS

LEARNING_RATE = {"lora": 2e-4, "full": 5e-5, "frozen": 1e-3}
"""Default learning rate by tuning: few or fresh parameters bear, and need, larger steps."""

NEGATIVES = {"sampled_softmax": 10, "bce": 1, "in_batch": 0}
"""Default negatives of an example by loss: the paper's, its summary's, and none beside the batch's own targets."""


@dataclass
class LLMRecTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the defaults and the additions of this project."""

    run_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the run: model, results, report, configuration, checkpoints."},
    )
    resume: str = field(
        default="false",
        metadata={
            "nargs": "?",
            "const": "true",
            "help": "Go on from run_dir's last complete checkpoint (true), from a checkpoint's path, or not (false).",
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete what an earlier run left in run_dir."})
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata={"help": "auto: bf16 where the GPU or the processor computes in it."}
    )

    negatives_per_example: int | None = field(
        default=None,
        metadata={"help": "Negatives drawn for each example; by default 10 (sampled_softmax), 1 (bce), 0 (in_batch)."},
    )
    negative_domain: Literal["target", "any"] = field(
        default="target", metadata={"help": "Where negatives come from: the target's domain, or everywhere."}
    )
    logq_correction: bool = field(
        default=False,
        metadata={"help": "Subtract the log of each item's expected count in a batch (in_batch only)."},
    )
    shared_negatives: int = field(
        default=0,
        metadata={
            "help": "Titles drawn uniformly for each domain of a batch's targets, and shared by the examples of that "
            "domain (in_batch only)."
        },
    )
    gather_negatives: bool = field(
        default=True, metadata={"help": "Contrast with the items of all processes of a step (in_batch only)."}
    )
    catalogue_negatives: int = field(
        default=0,
        metadata={
            "help": "Negatives drawn for each batch from a cached matrix of the catalogue's vectors, without gradients "
            "of their own; -1 for the whole catalogue (in_batch only)."
        },
    )
    catalogue_refresh_steps: int = field(
        default=100, metadata={"help": "Steps after which that matrix is computed anew."}
    )
    packing: Literal["auto", "segments", "mask", "flex", "flash", "off"] = field(
        default="auto",
        metadata={
            "help": "How texts share rows: attention text by text (segments), rows under a block mask (mask, flex), "
            "variable-length flash attention (flash), or one padded row a text (off); auto takes the fastest that fits."
        },
    )
    share_prefixes: bool | None = field(
        default=None,
        metadata={
            "help": "Read a user's history once for all its targets; by default where the backbone is causal, the last "
            "token is pooled, and titles stand oldest first."
        },
    )
    row_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of a packed row (mask, flex); by default 256, or the longest text."}
    )
    max_pass_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that go through the backbone at a time; larger batches are computed by gradient caching, "
            "with the same gradients in less memory."
        },
    )
    max_train_examples: int | None = field(
        default=None,
        metadata={"help": "Train on this many examples, drawn once with the seed; all if not given."},
    )

    eval_users: int | None = field(
        default=2000,
        metadata={"help": "Validation users ranked during training, a fixed sample; null for all."},
    )
    eval_protocol: str = field(default="sampled", metadata={"help": "Protocol of the evaluation during training."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better eval_ndcg@10."}
    )
    test_users: int | None = field(
        default=None, metadata={"help": "Test users ranked at the end, a fixed sample; null for all."}
    )
    test_protocols: list[str] = field(
        default_factory=lambda: ["sampled", "full"], metadata={"help": "Protocols of the final evaluation."}
    )
    bootstrap_resamples: int = field(
        default=1000, metadata={"help": "Resamplings of the users behind each interval of the results."}
    )
    encode_batch_tokens: int = field(
        default=4096,
        metadata={"help": "Tokens of a batch when titles and histories are encoded for evaluation."},
    )

    # Defaults that differ from transformers', or fields of it that are derived here.
    output_dir: str | None = field(default=None, metadata={"help": "Derived: run_dir/checkpoints."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the processor even where there is a GPU."})
    data_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order of examples; the seed if not given."}
    )
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Initial learning rate; by default 2e-4 (lora), 5e-5 (full), 1e-3 (frozen)."},
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Examples of a batch on each device."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training examples."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of linear warm-up; below 1, a share of all steps."}
    )
    weight_decay: float = field(
        default=0.01, metadata={"help": "Weight decay, on everything but biases and normalisation layers."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps; below 1, a share of all."})
    eval_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    eval_steps: float | None = field(
        default=0.1, metadata={"help": "Evaluate every so many steps; below 1, a share of all steps."}
    )
    save_strategy: str = field(default="steps", metadata={"help": "no, steps, epoch or best."})
    save_steps: float = field(
        default=0.1,
        metadata={"help": "Save a checkpoint every so many steps; below 1, a share of all steps."},
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, the best one included."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Finish with the checkpoint of the best metric_for_best_model."}
    )
    metric_for_best_model: str | None = field(
        default="eval_ndcg@10", metadata={"help": "What decides which checkpoint is best."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether that metric is to be maximised."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Where to log besides the console: none or tensorboard."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Always false: the collator needs them all."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Always true: early stopping must go on counting where it stopped."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained parameter takes part in every step."}
    )

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ValueError("run_dir is not given: name the folder of the run, for example --run_dir runs/first")
        checkpoints = str(Path(self.run_dir) / "checkpoints")
        if self.output_dir not in (None, checkpoints):
            raise ValueError(f"output_dir={self.output_dir!r}: checkpoints belong to run_dir; leave output_dir out")
        self.output_dir = checkpoints
        self._check_fixed()
        self._check_numbers()
        if self.data_seed is None:
            self.data_seed = self.seed
        on_cpu = runs_on_cpu(self.use_cpu)
        self.use_cpu = on_cpu
        self.resolved_precision, self.precision_reason = resolve_precision(self.precision, on_cpu)
        self.bf16 = self.resolved_precision == "bf16"
        if "no" in (self.eval_strategy, self.save_strategy):
            # Without evaluations or checkpoints there is no best checkpoint: the last state is the model.
            self.load_best_model_at_end = False
        if self.eval_strategy == "no":
            self.metric_for_best_model = None
        self.learning_rate_given = self.learning_rate is not None
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATE["lora"]
        super().__post_init__()
        load_models_whole()

    def resolve_defaults(self, tuning: str, loss: str) -> None:
        """Fill in what depends on the tuning and the loss, and check what they exclude.

        Raises:
            ValueError: for a combination that cannot work.
        """
        if not self.learning_rate_given:
            self.learning_rate = LEARNING_RATE[tuning]
        if self.negatives_per_example is None:
            self.negatives_per_example = NEGATIVES[loss]
        if self.negatives_per_example < (0 if loss == "in_batch" else 1):
            raise ValueError(
                f"negatives_per_example={self.negatives_per_example}: contrastive_loss={loss!r} needs at least 1"
            )
        for name in ("logq_correction", "shared_negatives", "catalogue_negatives"):
            if getattr(self, name) and loss != "in_batch":
                raise ValueError(f"{name}={getattr(self, name)} needs contrastive_loss='in_batch', not {loss!r}")

    @property
    def resume_path(self) -> str | None:
        """The checkpoint named by `resume`, `"last"` for the newest one, or None for a fresh start."""
        if self.resume.lower() in ("true", "1", "yes"):
            return "last"
        return None if self.resume.lower() in ("false", "0", "no", "") else self.resume

    def _check_fixed(self) -> None:
        for name in (
            "remove_unused_columns",
            "fp16",
            "bf16_full_eval",
            "fp16_full_eval",
            "save_only_model",
            "ignore_data_skip",
            "auto_find_batch_size",
            "dataloader_persistent_workers",
            "push_to_hub",
            "do_predict",
        ):
            if getattr(self, name):
                raise ValueError(f"{name}=true is not supported here; {_INSTEAD.get(name, 'leave it out')}")
        for name in ("deepspeed", "fsdp", "resume_from_checkpoint", "label_names"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not supported here; {_INSTEAD.get(name, 'leave it out')}"
                )
        if self.bf16:
            raise ValueError("bf16=true: say precision: bf16 instead")
        if not self.restore_callback_states_from_checkpoint:
            raise ValueError("restore_callback_states_from_checkpoint=false would break early stopping after a resume")
        if self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} is none of 'random', 'group_by_length'"
            )

    def _check_numbers(self) -> None:
        for name in (
            "max_train_examples",
            "eval_users",
            "test_users",
            "early_stopping_patience",
            "save_total_limit",
            "bootstrap_resamples",
            "encode_batch_tokens",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "catalogue_refresh_steps",
            "row_tokens",
            "max_pass_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.shared_negatives < 0:
            raise ValueError(f"shared_negatives={self.shared_negatives} must be at least 0")
        if self.catalogue_negatives < -1:
            raise ValueError(f"catalogue_negatives={self.catalogue_negatives} must be at least 0, or -1 for all")
        if self.packing == "off" and (self.share_prefixes or self.max_pass_tokens):
            raise ValueError("packing='off' excludes share_prefixes and max_pass_tokens: both work on packed texts")
        for protocol in (self.eval_protocol, *self.test_protocols):
            get_protocol(protocol)
        check_optimizer(str(getattr(self.optim, "value", self.optim)))
        known = [f"eval_{name}" for name in METRICS]
        if self.metric_for_best_model not in (None, *known):
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model!r} is none of {', '.join(known)}, which the "
                "evaluation during training gives"
            )
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError("early_stopping_patience needs evaluations: eval_strategy is 'no'")
        if self.resume_path is not None and self.overwrite:
            raise ValueError("resume and overwrite exclude each other: go on with the run, or start it again")
        if self.resume_path not in (None, "last") and not os.path.isdir(str(self.resume_path)):
            raise ValueError(f"resume={self.resume!r} is neither true, false, nor a checkpoint folder")


_INSTEAD = {
    "fp16": "say precision: bf16 (T5 overflows in fp16)",
    "bf16_full_eval": "evaluation uses precision",
    "fp16_full_eval": "evaluation uses precision",
    "save_only_model": "resuming needs the optimizer's state",
    "ignore_data_skip": "a resumed run must see the data of an undisturbed one",
    "auto_find_batch_size": "the batch size is part of the recipe",
    "dataloader_persistent_workers": "workers must learn of each new epoch",
    "push_to_hub": "publish the finished run with push_to_hub.py",
    "do_predict": "the final evaluation writes ranks.parquet",
    "resume_from_checkpoint": "say resume",
    "deepspeed": "start with accelerate launch --config_file configs/accelerate/deepspeed_zero3.yaml",
    "fsdp": "start with accelerate launch --config_file configs/accelerate/fsdp2.yaml",
}
