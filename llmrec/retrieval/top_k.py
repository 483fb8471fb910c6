"""The best items for users, from the same scores that evaluation ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.retrieval.scorers import BLOCK_BYTES, BYTES_PER_COLUMN, MOST_USERS, Scorer, score_items


def top_k(
    scorer: Scorer,
    rows: np.ndarray | Sequence[int],
    k: int,
    candidate_items: np.ndarray | Sequence[int] | None = None,
    excluded: Sequence[np.ndarray | Sequence[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k items with the highest scores, best first; equal scores in the order of the catalogue.

    Args:
        scorer: gives the scores.
        rows: int (R,), row numbers of the users, as the scorer counts them.
        k: how many items.
        candidate_items: int (M,), choose among these items only; the whole catalogue by default.
        excluded: for each of `rows` the item indices that may not be recommended (for instance the history).

    Returns:
        items: int64 (R, k), item indices; -1 where a user has fewer than k candidates.
        scores: float32 (R, k), their scores; -inf there.

    Raises:
        ValueError: k < 1, `excluded` has another length than `rows`, or a score is NaN.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if excluded is not None and len(excluded) != len(rows):
        raise ValueError(f"excluded holds {len(excluded)} lists for {len(rows)} users: give one for each")
    columns = None if candidate_items is None else np.unique(np.asarray(candidate_items, dtype=np.int64))
    items = np.full((len(rows), k), -1, dtype=np.int64)
    values = np.full((len(rows), k), -np.inf, dtype=np.float32)
    with torch.inference_mode():
        start = 0
        step = 1
        while start < len(rows):
            block = score_items(scorer, rows[start : start + step], columns)
            for offset, user_scores in enumerate(block.cpu().numpy()):
                row = start + offset
                if np.isnan(user_scores).any():
                    raise ValueError(f"system {scorer.name!r}: a score for user row {rows[row]} is NaN")
                best = _best(user_scores, columns, k, None if excluded is None else excluded[row])
                items[row, : len(best)] = best if columns is None else columns[best]
                values[row, : len(best)] = user_scores[best]
            start += step
            # The first user tells how many columns a block has.
            step = int(np.clip(BLOCK_BYTES // (BYTES_PER_COLUMN * max(1, block.shape[1])), 1, MOST_USERS))
    return items, values


def _best(
    scores: np.ndarray, columns: np.ndarray | None, k: int, excluded: np.ndarray | Sequence[int] | None
) -> np.ndarray:
    """Columns of the k best scores, best first, lower column first among equals."""
    allowed = np.ones(len(scores), dtype=bool)
    if excluded is not None and len(excluded):
        taken = np.asarray(excluded, dtype=np.int64)
        allowed[taken if columns is None else np.isin(columns, taken)] = False
    choice = np.flatnonzero(allowed)
    if len(choice) > k:
        # Everything down to the k-th best score, so that a tie at the border is cut by column, not by chance.
        border = np.partition(scores[choice], len(choice) - k)[len(choice) - k]
        choice = choice[scores[choice] >= border]
    return choice[np.argsort(-scores[choice], kind="stable")][:k]
