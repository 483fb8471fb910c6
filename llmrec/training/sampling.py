"""The order of examples within an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from llmrec.training.examples import PrefixExamples


class EpochSampler(Sampler[int]):
    """A permutation that depends on `(seed, epoch)` only; the epoch is the data set's own.

    The stock samplers either draw from the global generator or learn of the epoch through wrappers that do not all
    pass it on (accelerate's batch shards and skipped batches do not), so a run resumed in the middle of a later epoch
    would see another order.

    Args:
        examples: the data set, whose `epoch` is read when an iteration starts.
        seed: of the permutations.
        lengths: (examples,) to put examples of similar length into the same batch; `None` for a plain shuffle.
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
        order = rng.permutation(len(self.examples))
        if self.lengths is not None:
            groups = [
                group[np.argsort(-self.lengths[group], kind="stable")]
                for group in np.split(order, np.arange(self.group_size, len(order), self.group_size))
            ]
            order = np.concatenate(groups)
        return iter(order.tolist())
