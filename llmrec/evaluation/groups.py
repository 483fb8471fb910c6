"""Groups of users that a metric is shown for."""

from __future__ import annotations

import numpy as np

from llmrec.evaluation.histories import Histories

POPULARITY_GROUPS: tuple[str, ...] = ("0", "1-5", "6-20", ">20")
HISTORY_GROUPS: tuple[str, ...] = ("target domain only", "target domain and others", "other domains only")
OVERALL_USERS = "users"
OVERALL_DOMAINS = "domains"


def popularity_codes(train_count: np.ndarray) -> np.ndarray:
    """Index into POPULARITY_GROUPS, int64 (U,), from the targets' numbers of training interactions (U,)."""
    return np.searchsorted(np.array([0, 5, 20]), np.asarray(train_count), side="left")


def history_codes(histories: Histories, targets: np.ndarray, domain_codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Index into HISTORY_GROUPS, int64 (R,): whether the whole history lies in the target's domain.

    Args:
        histories: of all U users; the whole history, not only the part that fits the model.
        targets: int64 (U,), item index of the target.
        domain_codes: int (N,), domain of each item.
        rows: int64 (R,), the users.

    Raises:
        ValueError: a history is empty.
    """
    lengths = histories.lengths(rows)
    if (lengths == 0).any():
        raise ValueError(f"user row {int(rows[lengths == 0][0])}: the history is empty")
    positions, items = histories.events(rows)
    same = domain_codes[items] == domain_codes[targets[rows]][positions]
    inside = np.bincount(positions[same], minlength=len(rows))
    return np.where(inside == lengths, 0, np.where(inside > 0, 1, 2))
