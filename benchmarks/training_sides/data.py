"""The data of the benchmark, and the examples that every side takes from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.data.demo import INTERACTIONS_FILE, ITEMS_FILE, write_demo_data
from llmrec.data.prepare import prepare
from llmrec.data.prepared import PreparedData, load_prepared
from llmrec.data.source import Source
from llmrec.training.examples import Example, PrefixExamples, split_histories
from llmrec.training.negatives import NegativeSampler

NEGATIVES = 10
# Batches that are looked at, without computing them, to know how large they are and how many negatives they hold.
LOOKED_AT = 32


@dataclass(frozen=True)
class DataChoice:
    """Prepared data, and the words in which the output names it."""

    folder: Path
    label: str


def find_data(asked: Path | None, shared: Path, work: Path) -> DataChoice:
    """The data asked for, else Amazon Food and Kitchen where it lies in `shared`, else the demo's.

    Args:
        asked: folder of prepared data, or None.
        shared: folder with `data/food_kitchen/`.
        work: folder to prepare data in.
    """
    if asked is not None:
        return DataChoice(asked, f"the prepared data in {asked.name}")
    raw, prepared = shared / "data" / "food_kitchen", work / "prepared"
    if (raw / "interactions.parquet").is_file():
        source, label = Source(raw / "interactions.parquet", raw / "items.parquet"), "Amazon Food and Kitchen"
    else:
        write_demo_data(work / "demo")
        source = Source(work / "demo" / INTERACTIONS_FILE, work / "demo" / ITEMS_FILE)
        label = "the demo's made-up shop"
    prepare([source], prepared, k_core=0)
    return DataChoice(prepared, label)


def load_data(folder: Path) -> PreparedData:
    """Prepared data, checked."""
    return load_prepared(folder)


class Batches:
    """The examples of an epoch in an order fixed by a seed, batch after batch: the authors' prefix by prefix.

    Args:
        data: prepared data.
        batch_size: examples of a batch.
        seed: of the order.
        history_items: newest items of a history.
    """

    def __init__(self, data: PreparedData, batch_size: int, seed: int, history_items: int = 10) -> None:
        self.histories = split_histories(data.train)
        self.examples = PrefixExamples(self.histories, history_items)
        self.batch_size = batch_size
        self.order = np.random.default_rng(seed).permutation(len(self.examples))

    def __getitem__(self, number: int) -> list[Example]:
        """Batch `number`; the order begins again after its last whole batch."""
        if len(self.order) < self.batch_size:
            raise ValueError(f"{len(self.order)} examples are fewer than a batch of {self.batch_size}")
        start = number % (len(self.order) // self.batch_size) * self.batch_size
        return [self.examples[int(example)] for example in self.order[start : start + self.batch_size]]


def uniform_negatives(data: PreparedData, classes: Any, seed: int) -> NegativeSampler:
    """Ten negatives an example, uniform from the target's domain."""
    catalogue = data.catalogue
    return NegativeSampler(
        classes, np.asarray(catalogue.domain_codes), list(catalogue.domain_names), NEGATIVES, "target", seed
    )


@dataclass(frozen=True)
class HeldOut:
    """Validation users, each with a target and ten negatives: one question, asked of the model of every side.

    Attributes:
        histories: item indices, oldest first, all that came before the target.
        candidates: (users, 11) int64 item indices, the target first.
    """

    histories: list[np.ndarray]
    candidates: np.ndarray

    @classmethod
    def draw(cls, data: PreparedData, users: int, seed: int) -> HeldOut:
        """A sample of the validation users; negatives uniform from the target's domain, none of the user's own.

        By item, not by title tokens, so that sides with different tokenizers are asked the same.
        """
        split, rng = data.validation, np.random.default_rng(seed)
        domains = np.asarray(data.catalogue.domain_codes)
        rows = rng.choice(len(split), size=min(users, len(split)), replace=False)
        histories, candidates = [], []
        for row in np.sort(rows).tolist():
            entry = split[row]
            history, target = np.asarray(entry["history"], dtype=np.int64), int(entry["target"])
            pool = np.setdiff1d(np.flatnonzero(domains == domains[target]), [*history, target])
            if len(pool) >= NEGATIVES:
                histories.append(history)
                candidates.append([target, *rng.choice(pool, size=NEGATIVES, replace=False)])
        return cls(histories, np.asarray(candidates, dtype=np.int64))

    def questions(self) -> tuple[np.ndarray, np.ndarray]:
        """(items,) int64 the items among the candidates, each once, and (users, 11) the row of each candidate."""
        items, rows = np.unique(self.candidates, return_inverse=True)
        return items, rows.reshape(self.candidates.shape)


def answer(users: Any, items: Any, rows: np.ndarray, scale: float) -> dict[str, float]:
    """How well vectors answer the questions of `HeldOut`.

    Args:
        users: (users, D) tensor.
        items: (items, D) tensor, in the order of `HeldOut.questions`.
        rows: (users, 11) of the same.
        scale: what the side's own loss multiplies dot products by.

    Returns:
        `heldout_loss`: softmax cross-entropy of the target among its 11 candidates at the side's own scale;
        `heldout_top1`: share of users whose target scores highest of the 11, which no scale changes (chance: 0.09).
    """
    import torch

    logits = torch.einsum("ud,ucd->uc", users.float(), items.float()[torch.as_tensor(rows)]) * scale
    first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return {
        "heldout_loss": round(float(torch.nn.functional.cross_entropy(logits, first)), 4),
        "heldout_top1": round(float((logits[:, :1] > logits[:, 1:]).all(dim=1).float().mean()), 4),
    }
