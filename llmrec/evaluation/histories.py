"""Many histories of different lengths in two flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Histories:
    """Item indices of all users, one user after the other.

    Attributes:
        values: int64 (E,), the item indices, oldest first within a user.
        offsets: int64 (U + 1,), user `u` owns `values[offsets[u]:offsets[u + 1]]`.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, histories: Histories | pa.ChunkedArray | pa.Array | Sequence[Any]) -> Histories:
        """Take histories from a list of arrays or from an Arrow list column, without a Python loop over
        events.

        Raises:
            ValueError: an Arrow column holds a null instead of a list.
        """
        if isinstance(histories, Histories):
            return histories
        if isinstance(histories, pa.ChunkedArray):
            histories = histories.combine_chunks()
        if isinstance(histories, pa.Array):
            if histories.null_count:
                row = int(np.flatnonzero(histories.is_null().to_numpy(zero_copy_only=False))[0])
                raise ValueError(f"histories: row {row} is null; give an empty list for a user without events")
            offsets = histories.offsets.to_numpy().astype(np.int64)
            # A sliced Arrow array keeps the whole child array: cut it, so that offsets start at 0.
            values = histories.values[int(offsets[0]) : int(offsets[-1])].to_numpy(zero_copy_only=False)
            return cls(values.astype(np.int64), offsets - offsets[0])
        lengths = np.fromiter((len(history) for history in histories), dtype=np.int64, count=len(histories))
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        parts = [np.asarray(history, dtype=np.int64) for history in histories if len(history)]
        return cls(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Events of each of `rows`, int64 (R,)."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def events(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All events of some users.

        Returns:
            positions: int64 (E',), which of `rows` (0 .. R-1) an event belongs to, ascending.
            items: int64 (E',), the item index of the event.
        """
        lengths = self.lengths(rows)
        positions = np.repeat(np.arange(len(rows)), lengths)
        starts = np.repeat(self.offsets[rows] - (np.cumsum(lengths) - lengths), lengths)
        return positions, self.values[starts + np.arange(len(positions))]
