"""Recall, NDCG and MRR of one target a user, from its rank.

With a single relevant item, recall@k is the hit rate and the ideal DCG is 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KS: tuple[int, ...] = (1, 5, 10, 20, 50)
FAMILIES: tuple[str, ...] = ("recall", "ndcg", "mrr")


def metric_names(ks: Sequence[int] = KS) -> list[str]:
    """Names such as "recall@10", all of one family together."""
    return [f"{family}@{k}" for family in FAMILIES for k in ks]


def calc_metric(name: str, ranks: np.ndarray) -> np.ndarray:
    """One metric of each user.

    With r the 0-based expected rank: recall@k = [r < k], ndcg@k = [r < k] / log2(r + 2), mrr@k = [r < k] / (r
    + 1).

    Args:
        name: for instance "ndcg@10".
        ranks: float (...), 0-based expected ranks.

    Returns:
        float64 (...), between 0 and 1.

    Raises:
        ValueError: unknown metric.
    """
    family, _, cut = name.partition("@")
    if family not in FAMILIES or not cut.isdecimal() or int(cut) < 1:
        raise ValueError(f"unknown metric {name!r}: use one of {', '.join(FAMILIES)} with @k, for instance ndcg@10")
    ranks = np.asarray(ranks, dtype=np.float64)
    hit = (ranks < int(cut)).astype(np.float64)
    if family == "ndcg":
        return hit / np.log2(ranks + 2)
    return hit / (ranks + 1) if family == "mrr" else hit


def calc_per_user(ranks: np.ndarray, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """All metrics of each user: name → float64 (U,) for ranks (U,)."""
    return {name: calc_metric(name, ranks) for name in metric_names(ks)}


def calc(ranks: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """All metrics: the mean of `calc_per_user` over users.

    Raises:
        ValueError: no ranks.
    """
    if len(ranks) == 0:
        raise ValueError("no ranks: a mean over no users is not defined")
    return {name: float(values.mean()) for name, values in calc_per_user(ranks, ks).items()}
