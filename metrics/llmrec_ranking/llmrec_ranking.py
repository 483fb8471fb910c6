"""Recall, NDCG and MRR for one target a user, with ties at their expected rank.

A module for `evaluate.load`. It stands alone: numpy, datasets and evaluate are all it needs.
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Recall@k, NDCG@k and MRR@k where each user has one relevant item, the target. With r the 0-based rank of the
target, recall@k = [r < k], ndcg@k = [r < k] / log2(r + 2) and mrr@k = [r < k] / (r + 1), averaged over users.

Ties are counted at their expected rank: r = (candidates with a higher score) + 0.5 * (other candidates with
the same score). So a model that gives all items the same score is not rewarded, and the order of the input
plays no part.
"""

_KWARGS_DESCRIPTION = """
Two configurations:

- "ranks" (the default): `evaluate.load(path)`.
  predictions (list of float): 0-based expected rank of each user's target.
- "scores": `evaluate.load(path, "scores")`.
  predictions (list of list of float): scores of each user's candidates, the target among them; higher is
  better. Lists may differ in length.
  references (list of int): position of the target in each list.

Args:
    ks (sequence of int): cut-offs, 1, 5, 10, 20 and 50 by default.

Returns:
    dict: "recall@k", "ndcg@k" and "mrr@k" for each k, between 0 and 1.

Raises:
    ValueError: no users, a NaN, a negative rank, or a target position outside its list. The message names
        the user.

Examples:

    >>> metric = evaluate.load("metrics/llmrec_ranking")
    >>> metric.compute(predictions=[0.0, 3.0], ks=[1, 5])["recall@1"]
    0.5
    >>> metric = evaluate.load("metrics/llmrec_ranking", "scores")
    >>> metric.compute(predictions=[[0.1, 0.9, 0.9]], references=[1], ks=[1])["mrr@1"]  # expected rank 0.5
    0.6666666666666666
"""

_CITATION = ""

KS = (1, 5, 10, 20, 50)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class LLMRecRanking(evaluate.Metric):
    """See the description above."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name in ("default", "ranks"):
            features = {"predictions": datasets.Value("float64")}
        elif self.config_name == "scores":
            features = {
                "predictions": datasets.Sequence(datasets.Value("float64")),
                "references": datasets.Value("int64"),
            }
        else:
            raise ValueError(f'configuration {self.config_name!r}: choose "ranks" or "scores"')
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references=None, ks=KS):  # type: ignore[no-untyped-def]
        if self.config_name == "scores":
            pairs = zip(predictions, references, strict=True)
            ranks = np.array([_rank(user, scores, target) for user, (scores, target) in enumerate(pairs)])
        else:
            ranks = np.asarray(predictions, dtype=np.float64)
        return ranking_metrics(ranks, ks)


def ranking_metrics(ranks, ks=KS):  # type: ignore[no-untyped-def]
    """All metrics from 0-based expected ranks (U,)."""
    if len(ranks) == 0:
        raise ValueError("no users: a mean over no users is not defined")
    wrong = np.flatnonzero(~(ranks >= 0))
    if len(wrong):
        raise ValueError(f"user {wrong[0]}: {ranks[wrong[0]]} is not a rank, which is 0 or more")
    if any(int(k) != k or k < 1 for k in ks):
        raise ValueError(f"ks must be positive integers, got {list(ks)}")
    gains = {"recall": np.ones_like(ranks), "ndcg": 1 / np.log2(ranks + 2), "mrr": 1 / (ranks + 1)}
    return {
        f"{name}@{int(k)}": float(np.where(ranks < k, gain, 0.0).mean()) for name, gain in gains.items() for k in ks
    }


def _rank(user, scores, target):  # type: ignore[no-untyped-def]
    """0-based expected rank of the target among one user's candidates."""
    scores = np.asarray(scores, dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError(f"user {user}: a score is NaN")
    if not 0 <= target < len(scores):
        raise ValueError(f"user {user}: target position {target} is outside the list of {len(scores)} scores")
    return (scores > scores[target]).sum() + 0.5 * ((scores == scores[target]).sum() - 1)
