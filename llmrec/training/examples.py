"""Training examples: every prefix of every training history."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from torch.utils.data import Dataset

from llmrec.evaluation.histories import Histories


class Example(TypedDict):
    """One training example; histories and targets are item indices of the catalogue.

    `position` is the target's place among the events of all histories (`Histories.values`).
    """

    example: int
    epoch: int
    user: int
    position: int
    history: np.ndarray
    target: int


def split_histories(split: Any) -> Histories:
    """The column `history` of a `datasets.Dataset`, without making Python lists of it."""
    return Histories.of(split.with_format("arrow")[:]["history"])


def window_starts(
    histories: Histories, positions: np.ndarray, tokens_before: np.ndarray, max_history_items: int, room: int
) -> np.ndarray:
    """Where the part of a history that is read begins, for many targets at once.

    As `LLMRecProcessor.kept_items` one by one: the newest `max_history_items` events before the target whose titles
    fit into `room` tokens together. A later target never has an earlier start, so the targets of one start are
    neighbours, and one text can serve them all.

    Args:
        histories: training histories.
        positions: (n,) place of each target in `histories.values`; none the first event of its user.
        tokens_before: (events + 1,) tokens of the titles of all events before each event.
        max_history_items: limit in events.
        room: limit in tokens, special tokens left out; no title is longer.

    Returns:
        (n,) int64 place of the first event of each window.
    """
    users = np.searchsorted(histories.offsets, positions, side="right") - 1
    fitting = np.searchsorted(tokens_before, tokens_before[positions] - room, side="left")
    return np.maximum.reduce([histories.offsets[users], positions - max_history_items, fitting])


class PrefixExamples(Dataset):
    """Every (user, position p ≥ 1) of the training histories: history `items[:p]`, target `items[p]`.

    Only two flat arrays are held, and one int64 an example; nothing is expanded before it is asked for.

    Args:
        histories: training histories, oldest event first.
        max_history_items: newest items of a prefix that an example carries.
        max_examples: keep this many examples, drawn once with `seed`; `None` for all.
        seed: of that draw.
        by_user: whether an epoch keeps the examples of a user together, for prefix sharing (see `EpochSampler`).

    Raises:
        ValueError: if no history has two events, or `max_examples` is below 1.
    """

    def __init__(
        self,
        histories: Histories,
        max_history_items: int,
        max_examples: int | None = None,
        seed: int = 0,
        by_user: bool = False,
    ) -> None:
        if max_examples is not None and max_examples < 1:
            raise ValueError(f"max_train_examples={max_examples} must be at least 1")
        self.histories = histories
        self.max_history_items = max_history_items
        self.by_user = by_user
        is_target = np.ones(len(histories.values), dtype=bool)
        # The first event of a user has no history before it. (An empty history would point at a neighbour's event.)
        starts = histories.offsets[:-1][np.diff(histories.offsets) > 0]
        is_target[starts] = False
        positions = np.flatnonzero(is_target)
        if not len(positions):
            raise ValueError("no training history has two items: there is nothing to learn from")
        self.available = len(positions)
        if max_examples is not None and max_examples < len(positions):
            chosen = np.random.default_rng(seed).choice(len(positions), size=max_examples, replace=False)
            positions = positions[np.sort(chosen)]
        self.positions = positions
        self.users = np.searchsorted(histories.offsets, positions, side="right") - 1
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch whose order and negatives come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, example: int) -> Example:
        position, user = int(self.positions[example]), int(self.users[example])
        start = max(int(self.histories.offsets[user]), position - self.max_history_items)
        return Example(
            example=example,
            epoch=self.epoch,
            user=user,
            position=position,
            history=self.histories.values[start:position],
            target=int(self.histories.values[position]),
        )

    def targets(self) -> np.ndarray:
        """(examples,) int64 target of every example."""
        return self.histories.values[self.positions]

    def prefix_lengths(self) -> np.ndarray:
        """(examples,) int64 number of events before every target, before any cut."""
        return self.positions - self.histories.offsets[self.users]

    def history_tokens(self, title_lengths: np.ndarray) -> np.ndarray:
        """(examples,) int64 tokens of the titles of every example's history, special tokens left out.

        Args:
            title_lengths: (items,) tokens of each title.
        """
        before = np.concatenate(([0], np.cumsum(title_lengths[self.histories.values], dtype=np.int64)))
        starts = np.maximum(self.histories.offsets[self.users], self.positions - self.max_history_items)
        return before[self.positions] - before[starts]
