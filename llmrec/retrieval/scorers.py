"""Scores of items for users: the one place that both evaluation and `recommend()` take them from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch

from modeling_llmrec.ranking import dot_products

# Memory for the scores of one block of users, and the most users in it.
BLOCK_BYTES = 64 << 20
MOST_USERS = 1024
# Scores (4 bytes) and the comparisons with the target's score (two of 1 byte, one alive beside a NaN check).
BYTES_PER_COLUMN = 8
SCORES_AT_ONCE = 1 << 24
GEMM_FACTOR = 32
COLLAPSED_SPREAD = 1e-3
FEWEST_USERS_FOR_SPREAD = 32


@runtime_checkable
class Scorer(Protocol):
    """Anything that scores the whole catalogue for given users.

    `scores(rows)` takes row numbers of the evaluated split, int64 (B,), and returns a float32 tensor
    (B, n_items), higher is better.

    A scorer may also have `scores_of(rows, items)`, with `items` int64 (M,) shared by all rows or (B, C) one
    row each, returning exactly the same numbers for these items only, float32 (B, M) or (B, C); and
    `ties_expected = True` where equal scores are its nature and no sign of a collapsed model (popularity).
    """

    name: str

    def scores(self, rows: np.ndarray) -> torch.Tensor: ...


def score_items(scorer: Scorer, rows: np.ndarray, items: np.ndarray | None) -> torch.Tensor:
    """Score some items, or all, with one scorer.

    Args:
        rows: int64 (B,), row numbers of the split.
        items: None for the whole catalogue; int64 (M,) for the same items in all rows; int64 (B, C) for own
            items.

    Returns:
        float32 (B, n_items), (B, M) or (B, C).

    Raises:
        TypeError: the scorer gives something else than float32. Lower precision makes ties that the model did
            not make, and a later cast does not undo them.
        ValueError: the scorer gives another shape.
    """
    if items is None:
        scores = scorer.scores(rows)
    elif hasattr(scorer, "scores_of"):
        scores = scorer.scores_of(rows, items)
    else:
        scores = scorer.scores(rows)
        index = torch.as_tensor(items, device=scores.device)
        scores = scores[:, index] if index.ndim == 1 else scores.gather(1, index)
    if scores.dtype != torch.float32:
        raise TypeError(f"system {scorer.name!r}: scores must be float32, got {scores.dtype}")
    if scores.ndim != 2 or len(scores) != len(rows):
        raise ValueError(
            f"system {scorer.name!r}: scores of {len(rows)} users have shape {tuple(scores.shape)}, "
            f"expected ({len(rows)}, items)"
        )
    return scores


class EmbeddingScorer:
    """Dot products of user and item vectors.

    A score is the dot product summed in float64 and rounded once to float32. So it does not depend on how the
    work is cut into blocks, on the number of threads or on which other items are scored beside it, and
    identical item vectors tie exactly; a float32 sum would differ in its last bits between matrix shapes.

    Args:
        name: name of the system in reports.
        user_embeds: (U, D), one vector a user.
        item_embeds: (N, D), one vector an item of the catalogue. Scores are computed on its device.
        rows: int64 (U,), the row number in the split of each user vector, where only some users were encoded
            (a sample, or one process's share). None: vector `u` belongs to row `u`.

    Raises:
        ValueError: shapes do not fit, or `rows` holds a row twice.
    """

    def __init__(
        self, name: str, user_embeds: torch.Tensor, item_embeds: torch.Tensor, rows: np.ndarray | None = None
    ) -> None:
        if user_embeds.ndim != 2 or item_embeds.ndim != 2 or user_embeds.shape[1] != item_embeds.shape[1]:
            raise ValueError(
                f"system {name!r}: user vectors {tuple(user_embeds.shape)} and item vectors "
                f"{tuple(item_embeds.shape)} must be (users, D) and (items, D)"
            )
        self.name = name
        # Apple's GPU has no float64, which the sums need.
        device = torch.device("cpu") if item_embeds.device.type == "mps" else item_embeds.device
        self.user_embeds = user_embeds.detach().float()
        self.item_embeds = item_embeds.detach().float().to(device)
        self._order: np.ndarray | None = None
        self._sorted_rows: np.ndarray | None = None
        if rows is not None:
            rows = np.asarray(rows, dtype=np.int64)
            if rows.shape != (len(user_embeds),) or len(np.unique(rows)) != len(rows):
                raise ValueError(
                    f"system {name!r}: rows must name each of the {len(user_embeds)} user vectors' rows once"
                )
            self._order = np.argsort(rows)
            self._sorted_rows = rows[self._order]

    def scores(self, rows: np.ndarray) -> torch.Tensor:
        """Scores of the whole catalogue, float32 (B, N), for row numbers (B,)."""
        return dot_products(self._users(rows), self.item_embeds)

    def scores_of(self, rows: np.ndarray, items: np.ndarray) -> torch.Tensor:
        """The same numbers as `scores`, for some items: (M,) for all rows, or (B, C) one row of items a
        user."""
        users = self._users(rows)
        index = torch.as_tensor(items, device=self.item_embeds.device)
        if index.ndim == 1:
            return dot_products(users, self.item_embeds[index])
        needed, place = torch.unique(index, return_inverse=True)
        scores = torch.empty(index.shape, dtype=torch.float32, device=index.device)
        if len(needed) <= GEMM_FACTOR * index.shape[1]:
            # Users of one domain share most of their candidates: one matrix product over all of them is
            # faster than fetching vectors user by user, until the domain is some thirty times the candidates
            # of a user.
            vectors = self.item_embeds[needed]
            step = max(1, SCORES_AT_ONCE // max(1, len(needed)))
            for start in range(0, len(users), step):
                block = slice(start, start + step)
                scores[block] = dot_products(users[block], vectors).gather(1, place[block])
        else:
            for row in range(len(users)):
                scores[row] = self.item_embeds[index[row]].double() @ users[row].double()
        return scores

    def collapse(self) -> str | None:
        """A sentence if all item vectors, or all user vectors, are practically the same vector; else None."""
        if len(self.item_embeds) > 1 and _spread(self.item_embeds) < COLLAPSED_SPREAD:
            return f"system {self.name!r}: all item vectors are practically the same; the model has collapsed"
        if len(self.user_embeds) >= FEWEST_USERS_FOR_SPREAD and _spread(self.user_embeds) < COLLAPSED_SPREAD:
            return f"system {self.name!r}: all user vectors are practically the same; the model has collapsed"
        return None

    def _users(self, rows: np.ndarray) -> torch.Tensor:
        rows = np.asarray(rows, dtype=np.int64)
        if self._sorted_rows is not None and self._order is not None:
            place = np.minimum(np.searchsorted(self._sorted_rows, rows), len(self._sorted_rows) - 1)
            unknown = rows[self._sorted_rows[place] != rows]
            if len(unknown):
                raise ValueError(f"system {self.name!r}: no user vector for row {unknown[0]}")
            rows = self._order[place]
        index = torch.as_tensor(rows, device=self.user_embeds.device)
        return self.user_embeds[index].to(self.item_embeds.device)


class PopularityScorer:
    """Scores every item by its number of interactions in the training split, the same for all users.

    Args:
        name: name of the system in reports.
        train_count: (N,) interactions of each item in the training split.
    """

    ties_expected = True

    def __init__(self, name: str, train_count: np.ndarray) -> None:
        self.name = name
        self.train_count = torch.tensor(np.asarray(train_count), dtype=torch.float32)

    def scores(self, rows: np.ndarray) -> torch.Tensor:
        """float32 (B, N), a view of one row."""
        return self.train_count.expand(len(rows), -1)

    def scores_of(self, rows: np.ndarray, items: np.ndarray) -> torch.Tensor:
        """float32 (B, M) or (B, C)."""
        scores = self.train_count[torch.as_tensor(items)]
        return scores.expand(len(rows), -1) if scores.ndim == 1 else scores


def _spread(vectors: torch.Tensor) -> float:
    """Root mean square distance from the mean vector, relative to the root mean square length."""
    variance, mean = torch.var_mean(vectors, dim=0, correction=0)
    within, centre = float(variance.sum()), float((mean**2).sum())
    return (within / (within + centre)) ** 0.5 if within + centre > 0 else 0.0
