"""The order of examples within an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from llmrec.training.examples import PrefixExamples
from llmrec.training.layout import spans


class EpochSampler(Sampler[int]):
    """An order that depends on `(seed, epoch)` only; the epoch is the data set's own.

    The stock samplers either draw from the global generator or learn of the epoch through wrappers that do not all
    pass it on (accelerate's batch shards and skipped batches do not), so a run resumed in the middle of a later epoch
    would see another order.

    A data set that wants its examples `by_user` gets its users in random order, and each user's examples one after
    the other, oldest first: what a batch reads once for several targets must be in the same batch. A user may stand
    on the border of two batches, and is then read in both.

    Args:
        examples: the data set, whose `epoch` is read when an iteration starts.
        seed: of the order.
        lengths: (examples,) to put examples of similar length into the same batch (users by their longest one);
            `None` for a plain shuffle.
        group_size: examples that are sorted by length together when `lengths` is given.
    """

    def __init__(
        self, examples: PrefixExamples, seed: int, lengths: np.ndarray | None = None, group_size: int = 1
    ) -> None:
        self.examples = examples
        self.seed = seed
        self.lengths = lengths
        self.group_size = group_size

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.examples.epoch))
        return iter((self._by_user(rng) if self.examples.by_user else self._one_by_one(rng)).tolist())

    def _one_by_one(self, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(len(self.examples))
        if self.lengths is None:
            return order
        borders = np.arange(self.group_size, len(order), self.group_size)
        return self._sorted(order, borders, self.lengths)

    def _by_user(self, rng: np.random.Generator) -> np.ndarray:
        # Examples are numbered user by user, oldest first.
        first = np.flatnonzero(np.diff(self.examples.users, prepend=-1))
        counts = np.diff(np.append(first, len(self.examples)))
        order = rng.permutation(len(first))
        if self.lengths is not None:
            longest = np.maximum.reduceat(self.lengths, first)
            groups = (np.cumsum(counts[order]) - 1) // self.group_size
            order = self._sorted(order, np.flatnonzero(np.diff(groups)) + 1, longest)
        return spans(first[order], counts[order])

    @staticmethod
    def _sorted(order: np.ndarray, borders: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Longest first between each two borders."""
        groups = np.split(order, borders)
        return np.concatenate([group[np.argsort(-lengths[group], kind="stable")] for group in groups])
