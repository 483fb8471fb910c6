"""Side (c): this project's trainer with its fast defaults, built as `train.py` builds it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from llmrec.data.prepared import PreparedData
from llmrec.data.title_tokens import TitleTokens
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.run import build_trainer
from llmrec.training.tuning import apply_tuning, count_parameters

from .data import LOOKED_AT, NEGATIVES, HeldOut, load_data
from .gate import Gate
from .heldout import ask
from .machine import peak_memory_gib
from .turns import MAX_STEPS, prepare

WARM_UP_EXAMPLES = 4
# What a batch holds for masks over items that are not its own; the trainer takes it out before the model is called.
FOR_OTHER_ITEMS = ("target_ids", "item_ids", "excluded")


def count(batch: dict[str, Any]) -> dict[str, float]:
    """Examples, real tokens, slots and negatives of one collated batch, packed or padded."""
    mask = batch["candidate_mask"]
    if "texts" in batch:
        tokens = sum(int((texts.segment_ids > 0).sum()) for texts in batch["texts"])
        slots = sum(texts.input_ids.numel() for texts in batch["texts"])
        squares = sum(_squares(texts) for texts in batch["texts"])
    else:
        masks = [batch["attention_mask"], batch["item_attention_mask"]]
        tokens, slots = sum(int(each.sum()) for each in masks), sum(each.numel() for each in masks)
        squares = sum(int((each.sum(dim=1) ** 2).sum()) for each in masks)
    # The target is among the candidates.
    negatives = mask.sum(dim=1) - 1
    return {
        "examples": len(mask),
        "tokens": tokens,
        "slots": slots,
        "squares": squares,
        "negatives_sum": int(negatives.sum()),
        "negatives_min": int(negatives.min()),
    }


def _squares(texts: Any) -> int:
    """Sum of the squared lengths of the texts, for the operations of attention."""
    rows = torch.arange(len(texts.segment_ids))[:, None] * (int(texts.segment_ids.max()) + 1)
    lengths = torch.bincount((rows + texts.segment_ids)[texts.segment_ids > 0])
    return int((lengths**2).sum())


def training_arguments(folder: str, batch_size: int, seed: int, device: str, **settings: Any) -> Any:
    """The project's arguments for a run without evaluations and checkpoints; `settings` override them."""
    fixed: dict[str, Any] = {
        "run_dir": folder,
        "per_device_train_batch_size": batch_size,
        "max_steps": MAX_STEPS,
        # Like the other sides: a benchmark of a few steps would see nothing but the warm-up.
        "warmup_steps": 0,
        "seed": seed,
        "use_cpu": device == "cpu",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device != "cpu",
    }
    return LLMRecTrainingArguments(**(fixed | settings))


def make_trainer(
    model: Any, processor: Any, tokens: TitleTokens, data: PreparedData, arguments: Any, tuning: str
) -> tuple[Any, dict[str, Any]]:
    """The trainer, with negatives drawn beside the batch's own only where those are fewer than the paper's ten.

    Returns:
        The trainer, and what was found out about its negatives.
    """
    arguments.resolve_defaults(tuning, model.config.contrastive_loss)
    trainer = build_trainer(model, processor, tokens, data, arguments)
    facts = _look_at_batches(trainer)
    if facts["least_negatives"] < NEGATIVES and model.config.contrastive_loss == "in_batch":
        # Some of those drawn may be in a user's history, so a few more than are missing.
        arguments.shared_negatives = NEGATIVES + 2
        trainer = build_trainer(model, processor, tokens, data, arguments)
        facts = _look_at_batches(trainer)
    return trainer, {"shared_negatives": arguments.shared_negatives} | facts


def _look_at_batches(trainer: Any) -> dict[str, float]:
    """Least negatives of an example, and mean size, of the first batches; nothing is computed."""
    order, size = iter(trainer._get_train_sampler()), trainer.args.train_batch_size
    counts = [
        count(trainer.data_collator([trainer.train_dataset[next(order)] for _ in range(size)]))
        for _ in range(max(1, min(LOOKED_AT, len(trainer.train_dataset) // size)))
    ]
    slots, examples = (sum(each[name] for each in counts) for name in ("slots", "examples"))
    return {
        "least_negatives": min(each["negatives_min"] for each in counts),
        "mean_slots_per_example": round(slots / examples, 2),
    }


def run(
    gate: Gate,
    *,
    backbone: str,
    data_folder: Path,
    batch_size: int,
    seed: int,
    learning_rate: float,
    tuning: str = "full",
    precision: str = "auto",
    heldout: int = 0,
    device: str = "cpu",
    threads: int = 1,
    model_settings: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The side, for `Side`.

    Args:
        backbone: folder or Hub id.
        data_folder: prepared data.
        batch_size: examples of a batch.
        seed: of the order, the negatives and dropout.
        learning_rate: of full tuning; adapters take the project's default.
        tuning, precision: as in the project's arguments.
        heldout: validation users to ask at the end; 0 for none.
        model_settings, settings: further `ModelArguments` and `LLMRecTrainingArguments`.
    """
    torch.manual_seed(seed)
    data = load_data(data_folder)
    model_arguments = ModelArguments(backbone=backbone, tuning=tuning, **(model_settings or {}))  # type: ignore[arg-type]
    model, processor = build_model(model_arguments)
    tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
    model = apply_tuning(model, model_arguments)
    rate = {"learning_rate": learning_rate} if tuning == "full" else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            folder, batch_size, seed, device, **({"precision": precision} | rate | (settings or {}))
        )
        trainer, facts = make_trainer(model, processor, tokens, data, arguments, tuning)
        warm_up(trainer)
        trained, total = count_parameters(model)
        facts["learning_rate"] = arguments.learning_rate
        facts |= {"precision": arguments.resolved_precision, "trained_parameters": trained, "parameters": total}
        facts |= {name: getattr(trainer.data_collator, name, None) for name in ("packing", "share_prefixes")}
        turns = prepare(trainer, gate, count, facts)
        trainer.train()
    result: dict[str, Any] = {
        "peak_memory_gib": round(peak_memory_gib(device), 2),
        "negatives_mean": round(
            sum(step["negatives_sum"] for step in turns.steps) / sum(step["examples"] for step in turns.steps), 1
        ),
        "negatives_min": int(min(step["negatives_min"] for step in turns.steps)),
    }
    if heldout:
        result |= ask(model, processor, tokens, HeldOut.draw(data, heldout, seed))
    return result


def warm_up(trainer: Any, examples: int = WARM_UP_EXAMPLES) -> None:
    """A forward and backward pass over a few examples, whose gradients are thrown away."""
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(examples)])
    inputs = {name: value for name, value in trainer._prepare_inputs(batch).items() if name not in FOR_OTHER_ITEMS}
    model = trainer.model.train()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, inputs)
    loss.backward()
    model.zero_grad()
