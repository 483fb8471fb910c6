"""Arguments of a training run: model, data, training."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import TrainingArguments

from llmrec.data.options import PrepareOptions
from llmrec.evaluation.protocols import get_protocol
from llmrec.training.precision import resolve_precision, runs_on_cpu
from llmrec.training.validation import METRICS

LEARNING_RATE = {"lora": 2e-4, "full": 5e-5, "frozen": 1e-3}
"""Default learning rate by tuning: few or fresh parameters bear, and need, larger steps."""

NEGATIVES = {"sampled_softmax": 10, "bce": 1, "in_batch": 0}
"""Default negatives of an example by loss: the paper's, its summary's, and none beside the batch's own targets."""


@dataclass
class ModelArguments:
    """The backbone, what is trained of it, and everything that changes a vector."""

    backbone: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Hub id or folder of the pre-trained language model."},
    )
    backbone_revision: str | None = field(
        default=None, metadata={"help": "Revision of the backbone's repository on the Hub."}
    )
    preset: Literal["default", "paper"] = field(
        default="default", metadata={"help": "Text layout, pooling and loss by the kind of backbone."}
    )
    tuning: Literal["full", "lora", "frozen"] = field(
        default="lora",
        metadata={"help": "Train all weights, low-rank adapters and the head, or the head alone."},
    )
    pooling: Literal["cls", "last", "mean"] | None = field(
        default=None,
        metadata={"help": "Hidden states that become the vector; the preset's choice if not given."},
    )
    projection_dim: int | None = field(default=None, metadata={"help": "Size of a linear projection after pooling."})
    normalize: bool | None = field(
        default=None, metadata={"help": "Scale vectors to length 1; the preset's choice if not given."}
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "Divisor of the scores in the loss; the preset's choice if not given."},
    )
    learn_temperature: bool = field(default=False, metadata={"help": "Train the temperature."})
    max_history_items: int | None = field(default=None, metadata={"help": "Newest items of a history that are read."})
    max_title_tokens: int | None = field(
        default=None, metadata={"help": "Tokens kept of each title, separator included."}
    )
    max_history_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of a whole history, special tokens included."}
    )
    item_order: Literal["oldest_first", "newest_first"] | None = field(
        default=None, metadata={"help": "Order of the titles of a history."}
    )
    item_separator: str | None = field(default=None, metadata={"help": "Text after each title."})
    contrastive_loss: Literal["sampled_softmax", "in_batch", "bce"] | None = field(
        default=None, metadata={"help": "The loss; the preset's choice if not given."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters, divided by their rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "Modules that get adapters: all-linear, or names of linear layers."},
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention kernel of the backbone (sdpa, eager, flash_attention_2, …)."},
    )
    save_form: Literal["full", "adapter"] = field(
        default="full",
        metadata={"help": "What model/ holds: all weights (LoRA merged), or the adapter alone."},
    )

    def __post_init__(self) -> None:
        if self.save_form == "adapter" and self.tuning != "lora":
            raise ValueError(f"save_form='adapter' needs tuning='lora', not {self.tuning!r}")
        if self.tuning == "frozen" and self.projection_dim is None and not self.learn_temperature:
            raise ValueError(
                "tuning='frozen' leaves nothing to train without a head: set projection_dim (for example 128)"
            )
        if self.tuning == "lora" and self.lora_r < 1:
            raise ValueError(f"lora_r={self.lora_r} must be at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout} must be in [0, 1)")

    @property
    def config_overrides(self) -> dict[str, object]:
        """Fields of `LLMRecConfig` that were asked for; the preset chooses the others."""
        fields = (
            "pooling",
            "projection_dim",
            "normalize",
            "temperature",
            "max_history_items",
            "max_title_tokens",
            "max_history_tokens",
            "item_order",
            "item_separator",
            "contrastive_loss",
        )
        asked = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        return asked | ({"learn_temperature": True} if self.learn_temperature else {})


@dataclass
class DataArguments:
    """Prepared data, and how it is prepared where the folder does not exist yet (see `PrepareOptions`)."""

    data: str | None = field(
        default=None,
        metadata={"help": "Folder of prepared data; made from the raw files if it does not exist."},
    )
    interactions: str | None = field(default=None, metadata={"help": "Raw interactions of all domains."})
    items: str | None = field(default=None, metadata={"help": "Raw items and titles that belong to them."})
    sources: list[str] = field(
        default_factory=list,
        metadata={"help": "Raw files of one domain each, DOMAIN=interactions[,items], instead of the two above."},
    )
    data_format: str = field(
        default="tables",
        metadata={"help": "Format of the raw files: tables, amazon-2018, amazon-2023, movielens."},
    )
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Names of the columns in raw tables, each OURS=THEIRS."}
    )
    time_unit: str = field(default="s", metadata={"help": "Unit of numeric timestamps in raw tables: s or ms."})
    domains: list[str] | None = field(default=None, metadata={"help": "Keep these domains only."})
    k_core: int = field(default=5, metadata={"help": "Least interactions of every user and item; 0 for no k-core."})
    k_core_scope: str = field(
        default="merged",
        metadata={"help": "Count interactions over all domains (merged) or in each (domain)."},
    )
    untitled: str = field(default="drop", metadata={"help": "Items without a title: drop or keep."})
    missing_items: str = field(
        default="error",
        metadata={"help": "Items of interactions that the items file lacks: error or untitled."},
    )
    order_policy: str = field(
        default="time", metadata={"help": "Order of a user's events: time, interleave or domain-blocks."}
    )
    split: str = field(default="leave-one-out", metadata={"help": "leave-one-out or global-time."})
    quantiles: list[float] = field(
        default_factory=lambda: [0.8, 0.9],
        metadata={"help": "For global-time: shares of the interactions before the two windows."},
    )
    cuts: list[str] | None = field(
        default=None, metadata={"help": "For global-time: the two moments themselves, such as 2014-01-01."}
    )
    max_users: int | None = field(
        default=None, metadata={"help": "Keep this many users, chosen by a hash of their id."}
    )

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is not given: name the folder of prepared data, for example --data prepared/shop")
        for column in self.columns:
            if not all(column.partition("=")):
                raise ValueError(f"columns: {column!r} is not of the form OURS=THEIRS")

    @property
    def has_raw_files(self) -> bool:
        """Whether the arguments say what to prepare the data from."""
        return bool(self.interactions or self.sources)

    def prepare_options(self) -> PrepareOptions:
        """The same for `llmrec.data.options.prepare_from_options`."""
        shared = {name: getattr(self, name) for name in PrepareOptions.__dataclass_fields__ if hasattr(self, name)}
        return PrepareOptions(**{**shared, "columns": dict(column.split("=", 1) for column in self.columns)})


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
        if self.logq_correction and loss != "in_batch":
            raise ValueError(f"logq_correction corrects in-batch negatives; contrastive_loss={loss!r} has none")

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
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for protocol in (self.eval_protocol, *self.test_protocols):
            get_protocol(protocol)
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
    "deepspeed": "use DDP (accelerate launch or torchrun)",
    "fsdp": "use DDP (accelerate launch or torchrun)",
}
