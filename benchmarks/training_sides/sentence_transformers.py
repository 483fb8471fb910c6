"""Side (b): sentence-transformers' own trainer on pairs of history text and target title.

`SentenceTransformerTrainer` with `MultipleNegativesRankingLoss`, the batch's other targets as negatives. The history
text is the newest ten titles joined by "; ". Titles are cut to the tokens that the other sides read of them, and no
text is cut further, so no side reads what another does not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmrec.backbones import resolve_backbone

from .data import LOOKED_AT, Batches, HeldOut, answer, load_data
from .gate import Gate
from .machine import peak_memory_gib
from .turns import MAX_STEPS, prepare

MAX_TITLE_TOKENS, MAX_HISTORY_ITEMS, SEPARATOR = 40, 10, "; "
MAX_GRAD_NORM = 1.0
WARM_UP_PAIRS = 4
# Batches of pairs that are written down; a longer run begins with the first one again.
BATCHES = 256


def cut_titles(tokenizer: Any, titles: Sequence[str]) -> list[str]:
    """Each title without what lies beyond its first 40 tokens, the separator's included."""
    encoded = tokenizer(
        [title + SEPARATOR for title in titles], add_special_tokens=False, truncation=True, max_length=MAX_TITLE_TOKENS,
        return_offsets_mapping=True, return_attention_mask=False,
    )  # fmt: skip
    return [
        title[: offsets[-1][1]] if offsets else title
        for title, offsets in zip(titles, encoded["offset_mapping"], strict=True)
    ]


def history_text(titles: Sequence[str]) -> str:
    """The newest titles of a history, oldest first."""
    return SEPARATOR.join(titles[-MAX_HISTORY_ITEMS:])


def build_model(backbone: str, pooling: str, max_length: int) -> Any:
    """Backbone, pooling and normalisation: what our preset `default` computes."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(resolve_backbone(backbone), max_seq_length=max_length)
    return SentenceTransformer(modules=[transformer, Pooling(_width(transformer), pooling), Normalize()], device="cpu")


def _width(transformer: Any) -> int:
    return int(transformer.get_embedding_dimension())


def count(batch: dict[str, Any]) -> dict[str, float]:
    """Examples, real tokens and slots of one collated batch."""
    masks = [value for name, value in batch.items() if name.endswith("attention_mask")]
    return {
        "examples": len(masks[0]),
        "tokens": sum(int(mask.sum()) for mask in masks),
        "slots": sum(mask.numel() for mask in masks),
    }


def run(
    gate: Gate,
    *,
    backbone: str,
    data_folder: Path,
    batch_size: int,
    seed: int,
    learning_rate: float,
    pooling: str,
    bf16: bool = False,
    heldout: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> dict[str, Any]:
    """The side, for `Side`.

    Args:
        backbone: folder or Hub id.
        data_folder: prepared data.
        batch_size: pairs of a batch.
        seed: of the order and of dropout.
        learning_rate: as ours.
        pooling: as ours, `mean` or `last`.
        bf16: the trainer's own option.
        heldout: validation users to ask at the end; 0 for none.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.manual_seed(seed)
    data = load_data(data_folder)
    max_length = MAX_TITLE_TOKENS * MAX_HISTORY_ITEMS + 2
    model = build_model(backbone, "lasttoken" if pooling == "last" else pooling, max_length)
    titles = cut_titles(model.tokenizer, data.catalogue.titles)
    batches = Batches(data, batch_size, seed, MAX_HISTORY_ITEMS)
    wanted = min(BATCHES, max(1, len(batches.examples) // batch_size))
    examples = [example for number in range(wanted) for example in batches[number]]
    pairs = Dataset.from_dict(
        {
            "anchor": [history_text([titles[int(item)] for item in example["history"]]) for example in examples],
            "positive": [titles[example["target"]] for example in examples],
        }
    )
    loss = MultipleNegativesRankingLoss(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            max_steps=MAX_STEPS,
            learning_rate=learning_rate,
            max_grad_norm=MAX_GRAD_NORM,
            weight_decay=0.01,
            bf16=bf16,
            use_cpu=device == "cpu",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=device != "cpu",
        )
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss)
        _warm_up(trainer, pairs)
        looked_at = [
            count(trainer.data_collator([pairs[row] for row in range(start, start + batch_size)]))
            for start in range(0, min(LOOKED_AT * batch_size, len(pairs)), batch_size)
        ]
        mean_slots = sum(each["slots"] for each in looked_at) / sum(each["examples"] for each in looked_at)
        facts = {
            "mean_slots_per_example": round(mean_slots, 2),
            "precision": "bf16" if bf16 else "fp32",
            "learning_rate": learning_rate,
            "negatives_mean": batch_size - 1,
            "negatives_min": batch_size - 1,
        }
        prepare(trainer, gate, count, facts)
        trainer.train()
    result: dict[str, Any] = {"peak_memory_gib": round(peak_memory_gib(device), 2)}
    if heldout:
        result |= _ask(model, titles, HeldOut.draw(data, heldout, seed), loss.scale)
    return result


def _warm_up(trainer: Any, pairs: Any) -> None:
    """A forward and backward pass over a few pairs, whose gradients are thrown away."""
    batch = trainer.data_collator([pairs[row] for row in range(WARM_UP_PAIRS)])
    features, labels = trainer.collect_features(batch)
    device = trainer.args.device
    trainer.model.to(device).train()
    features = [
        {name: value.to(device) if isinstance(value, Tensor) else value for name, value in each.items()}
        for each in features
    ]
    trainer.loss.to(device)(features, labels).backward()
    trainer.model.zero_grad()


def _ask(model: Any, titles: Sequence[str], heldout: HeldOut, scale: float) -> dict[str, float]:
    model.eval()
    items, rows = heldout.questions()
    texts = [history_text([titles[int(item)] for item in history]) for history in heldout.histories]
    options = {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": 16}
    users = model.encode(texts, **options)
    vectors = model.encode([titles[int(item)] for item in items], **options)
    return answer(users.cpu(), vectors.cpu(), rows, scale)
