"""Everything about the cost of a run, put together from its arguments and its data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.data.errors import DataError
from llmrec.data.prepared import CACHE_FOLDER, CARD_FILE, PreparedData, load_prepared
from llmrec.data.title_tokens import TitleTokens
from llmrec.planning.flops import StepSettings, epoch_flops, least_flops
from llmrec.planning.hardware import Device
from llmrec.planning.memory import USABLE, MemorySettings, moved_bytes, step_memory
from llmrec.planning.model import expected_packing, planned_model
from llmrec.planning.tokens import PlannedData, TokenCounts, count_epoch
from llmrec.planning.trace import trace
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.data_arguments import DataArguments
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.tuning import count_parameters


@dataclass
class Plan:
    """The cost of a run; `as_dict` for JSON.

    Attributes:
        backbone, tuning, loss: of the run.
        precision: `"bf16"` or `"fp32"`.
        packing: way of packing; `shares_prefixes` whether histories are read once for several targets.
        trained_parameters, parameters: numbers of them.
        tokens: of an epoch, all devices together.
        counted_batches: batches that were looked at; all others are like them.
        devices: number of them.
        batch_size: examples of an optimizer step, all devices together.
        steps: optimizer steps of an epoch.
        epochs: of the run.
        flops: of an epoch by parts, all devices together.
        least_flops: of an epoch: the floor.
        memory: bytes on each device by parts.
        moved_bytes: least traffic of memory in an epoch by parts, all devices together.
        device: what the hours are for; None where unknown.
        utilisation: share of its rate that is reached.
    """

    backbone: str
    tuning: str
    loss: str
    precision: str
    packing: str
    shares_prefixes: bool
    trained_parameters: int
    parameters: int
    tokens: TokenCounts
    counted_batches: int
    devices: int
    batch_size: int
    steps: int
    epochs: float
    flops: dict[str, float]
    least_flops: float
    memory: dict[str, float]
    moved_bytes: dict[str, float]
    utilisation: float
    device: Device | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """FLOPs a second that a device could reach in the run's precision."""
        return None if self.device is None else self.device.bf16 if self.precision == "bf16" else self.device.fp32

    def hours(self, flops: float, utilisation: float = 1.0) -> float | None:
        """Hours that FLOPs take on the devices together."""
        return flops / (self.rate * utilisation * self.devices) / 3600 if self.rate else None

    @property
    def bandwidth_hours(self) -> float | None:
        """Hours that an epoch's traffic of memory takes at least."""
        if self.device is None or not self.device.bandwidth:
            return None
        return sum(self.moved_bytes.values()) / (self.device.bandwidth * self.devices) / 3600

    @property
    def epoch_hours(self) -> float | None:
        """Estimated hours of an epoch: products at the utilisation, or memory, whichever takes longer."""
        computing = self.hours(sum(self.flops.values()), self.utilisation)
        return None if computing is None else max(computing, self.bandwidth_hours or 0.0)

    @property
    def floor_hours(self) -> float | None:
        """Hours below which an epoch cannot come on these devices."""
        computing = self.hours(self.least_flops)
        return None if computing is None else max(computing, self.bandwidth_hours or 0.0)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        values = dataclasses.asdict(self)
        values["tokens"] |= {name: getattr(self.tokens, name) for name in ("tokens", "titles", "padding")}
        values["device"] = None if self.device is None else self.device._asdict()
        sums = {"flops": self.flops, "memory": self.memory, "moved_bytes": self.moved_bytes}
        values["totals"] = {name: sum(parts.values()) for name, parts in sums.items()}
        values["hours"] = {
            "epoch": self.epoch_hours,
            "run": None if self.epoch_hours is None else self.epoch_hours * self.epochs,
            "floor_flops": self.hours(self.least_flops),
            "floor_bandwidth": self.bandwidth_hours,
        }
        return values


def make_plan(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: LLMRecTrainingArguments,
    device: Device | None = None,
    *,
    on_gpu: bool = False,
    devices: int = 1,
    utilisation: float = 0.4,
    max_batches: int | None = None,
    progress: bool = False,
) -> Plan:
    """Plan a run: no weights are read, nothing is trained.

    Args:
        model_arguments, data_arguments, arguments: of the run.
        device: what the hours are for.
        on_gpu: whether it is a GPU, which computes in bf16 unless fp32 is asked for.
        devices: number of data-parallel devices.
        utilisation: share of the device's rate that is reached.
        max_batches: batches to count; all by default.
        progress: show a bar while titles are tokenised.

    Raises:
        DataError: the data are not prepared yet, or damaged.
        ValueError: arguments that exclude each other, or a backbone that cannot be planned.
    """
    data = _load(data_arguments)
    model, processor = planned_model(model_arguments)
    config = model.config
    arguments.resolve_defaults(model_arguments.tuning, config.contrastive_loss)
    packing = expected_packing(
        model, arguments.packing, arguments.share_prefixes, model_arguments.attn_implementation, on_gpu
    )
    precision = arguments.resolved_precision
    if on_gpu:
        precision = "fp32" if arguments.precision == "fp32" else "bf16"
    trained, total = count_parameters(model)
    checkpointing = bool(arguments.gradient_checkpointing or arguments.activation_checkpointing)
    costs = trace(model, precision == "bf16", gpu=on_gpu, packed=packing.how != "off", checkpointing=checkpointing)
    title_tokens = TitleTokens.cached(processor, data.catalogue.titles, data.folder / CACHE_FOLDER, progress=progress)
    planned = PlannedData.of(processor, title_tokens, data, arguments, packing, costs.causal, devices)
    tokens = count_epoch(planned, max_batches)
    in_batch = config.contrastive_loss == "in_batch"
    if in_batch and arguments.gather_negatives and devices > 1:
        tokens = dataclasses.replace(tokens, scores=tokens.scores * devices, batch_scores=tokens.batch_scores * devices)

    steps = math.ceil(math.ceil(planned.batches / devices) / arguments.gradient_accumulation_steps)
    bank = _bank(arguments, planned, title_tokens)
    settings = StepSettings(
        config.embedding_dim,
        config.text_config.hidden_size * config.projection_dim if config.projection_dim else 0,
        trained,
        steps * devices,
        checkpointing,
        bank_tokens=bank.tokens,
        bank_pairs=bank.pairs,
        bank_refreshes=math.ceil(steps / arguments.catalogue_refresh_steps) if bank.rows else 0,
        bank_columns=bank.columns,
    )
    optim = str(getattr(arguments.optim, "value", arguments.optim))
    memory = step_memory(
        model, costs, tokens,
        MemorySettings(
            optim, checkpointing, model_arguments.quantization is not None, config.embedding_dim, bank.rows,
            bank.columns, planned.batch_size,
        ),
    )  # fmt: skip
    passes = max(tokens.batches, tokens.slots / tokens.pass_slots)
    plan = Plan(
        backbone=model_arguments.backbone,
        tuning=" over ".join(filter(None, (model_arguments.tuning, model_arguments.quantization))),
        loss=config.contrastive_loss,
        precision=precision,
        packing=packing.how,
        shares_prefixes=packing.share_prefixes,
        trained_parameters=trained,
        parameters=total,
        tokens=tokens,
        counted_batches=min(max_batches or planned.batches, planned.batches),
        devices=devices,
        batch_size=planned.batch_size * devices * arguments.gradient_accumulation_steps,
        steps=steps,
        epochs=arguments.num_train_epochs if arguments.max_steps < 1 else arguments.max_steps / steps,
        flops=epoch_flops(costs, tokens, settings),
        least_flops=least_flops(costs, tokens, settings),
        memory=memory,
        moved_bytes=moved_bytes(memory, costs, tokens, passes, steps * devices),
        utilisation=utilisation,
        device=device,
    )
    _warn(plan)
    return plan


def _load(arguments: DataArguments) -> PreparedData:
    folder = Path(str(arguments.data))
    if not (folder / CARD_FILE).is_file():
        advice = "Make it with `llmrec prepare`"
        if arguments.has_raw_files:
            advice += ", or start train.py with the same arguments: it prepares the raw files that they name first"
        raise DataError(f"no prepared data ({CARD_FILE}) in this folder", file=folder, advice=advice)
    return load_prepared(str(folder))


@dataclass(frozen=True)
class _Bank:
    rows: float = 0
    columns: float = 0
    tokens: float = 0
    pairs: float = 0


def _bank(arguments: LLMRecTrainingArguments, planned: PlannedData, title_tokens: TitleTokens) -> _Bank:
    """Titles of the cached catalogue, and how many of them join a batch."""
    if not arguments.catalogue_negatives:
        return _Bank()
    classes, collator = planned.classes, planned.collator
    titles = np.unique(classes.text)
    pool = len(np.unique(classes.representative if arguments.negative_domain == "target" else classes.text))
    drawn = pool if arguments.catalogue_negatives == -1 else min(arguments.catalogue_negatives, pool)
    lengths = title_tokens.lengths[titles] + len(collator.specials.prefix) + len(collator.specials.suffix)
    return _Bank(len(titles), drawn, float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum()))


def _warn(plan: Plan) -> None:
    if plan.device is None or not plan.device.memory:
        return
    needed, room = sum(plan.memory.values()), USABLE * plan.device.memory
    if needed <= room:
        return
    ways = []
    if plan.memory["activations"] > 0.3 * needed:
        ways += ["max_pass_tokens", "gradient_checkpointing: true", "a smaller batch"]
    if plan.memory["weights"] > 0.3 * needed:
        ways += ["backbone_dtype: bfloat16 (lora)", "quantization: nf4"]
    if plan.memory["optimizer"] + plan.memory["gradients"] > 0.3 * needed:
        ways += ["tuning: lora", "optim: adamw_bnb_8bit"]
    plan.warnings.append(
        f"a step needs {needed / 1e9:.1f} GB, and of the {plan.device.memory / 1e9:.0f} GB of {plan.device.name} about "
        f"{room / 1e9:.1f} can be used: try {', '.join(ways) or 'more devices with FSDP'}"
    )
