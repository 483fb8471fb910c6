"""Bootstrap intervals over users.

A Poisson bootstrap: in each resample every user has a weight drawn from Poisson(1), independently, and a mean
is sum(weight * value) / sum(weight). For the plain mean of domains each domain's mean is resampled within the
domain, and the domains themselves stay as they are. The weights depend on the seed and on the user's position
alone, so all metrics, groups, protocols and systems see the same resamples, and a difference of two systems
is paired. (Chamandy et al., "Estimating uncertainty for massive data streams", 2012; Efron's percentile
interval.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from llmrec.evaluation.metrics import calc_metric

# Fixed: the weights are seeded a chunk, so another size would be another set of resamples.
USERS_PER_CHUNK = 2048


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentile interval of `level` from `resamples` resamples."""

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.level < 1:
            raise ValueError("bootstrap: needs at least one resample, and a level between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "method": "Poisson bootstrap over users, percentile interval; domains resampled within",
            **asdict(self),
        }

    def weights(self, n_users: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Weights of the users, a chunk at a time: (which users, float32 (users in chunk, resamples))."""
        for chunk, start in enumerate(range(0, n_users, USERS_PER_CHUNK)):
            block = slice(start, min(start + USERS_PER_CHUNK, n_users))
            generator = np.random.default_rng((self.seed, chunk))
            yield block, generator.poisson(1.0, (block.stop - start, self.resamples)).astype(np.float32)

    def bounds(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Low and high end over the first axis (resamples); NaN where no resample had a user of the group."""
        tail = (1 - self.level) / 2
        missing = np.isnan(samples)
        if not missing.any():
            low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
            return low, high
        empty = missing.all(axis=0)
        low, high = np.nanquantile(np.where(empty, 0.0, samples), [tail, 1 - tail], axis=0)
        return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupMeans:
    """Means of some columns in some groups.

    Attributes:
        users: int64 (G,).
        values: float64 (G, C).
        samples: float64 (B, G, C), the same in each resample; NaN where a resample has no user of the group.
    """

    users: np.ndarray
    values: np.ndarray
    samples: np.ndarray


def bootstrap_group_means(
    ranks: np.ndarray,
    metrics: Sequence[str],
    partitions: Sequence[tuple[np.ndarray, int]],
    bootstrap: Bootstrap,
    progress: bool = False,
) -> list[GroupMeans]:
    """Mean metrics of groups of users, with their resamples.

    Args:
        ranks: float64 (U, S), the ranks under S systems (or protocols).
        metrics: M names; columns of the result are all metrics of the first system, then of the second, ...
            (C = S * M).
        partitions: several ways to part the users: (int (U,) group of each user, number of groups).

    Returns:
        One GroupMeans for each partition.
    """
    n_columns = ranks.shape[1] * len(metrics)
    sums = [np.zeros((n_groups, n_columns)) for _, n_groups in partitions]
    sampled = [np.zeros((n_groups, bootstrap.resamples, n_columns)) for _, n_groups in partitions]
    weight = [np.zeros((n_groups, bootstrap.resamples)) for _, n_groups in partitions]
    bar = tqdm(total=len(ranks), desc="intervals", unit="user", disable=not progress)
    with bar:
        for block, weights in bootstrap.weights(len(ranks)):
            values = np.stack([calc_metric(name, ranks[block]) for name in metrics], axis=2)
            values = values.reshape(len(values), n_columns)
            for number, (codes, n_groups) in enumerate(partitions):
                for group in range(n_groups):
                    members = codes[block] == group
                    if members.any():
                        chosen = weights[members]
                        sums[number][group] += values[members].sum(axis=0)
                        sampled[number][group] += chosen.T @ values[members].astype(np.float32)
                        weight[number][group] += chosen.sum(axis=0)
            bar.update(block.stop - block.start)
    results = []
    for number, (codes, n_groups) in enumerate(partitions):
        users = np.bincount(codes, minlength=n_groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = sums[number] / users[:, None]
            samples = sampled[number] / weight[number][:, :, None]
        results.append(GroupMeans(users, values, samples.transpose(1, 0, 2)))
    return results


def mean_interval(values: np.ndarray, bootstrap: Bootstrap | None = None) -> Interval:
    """The mean of one number a user, float (U,), with its interval."""
    return _mean_interval(np.asarray(values, dtype=np.float64), None, bootstrap or Bootstrap())


def paired_difference(
    ranks_a: np.ndarray,
    ranks_b: np.ndarray,
    metric: str = "ndcg@10",
    *,
    domains: np.ndarray | None = None,
    bootstrap: Bootstrap | None = None,
) -> Interval:
    """The metric under `ranks_a` minus that under `ranks_b`, over the same users in the same order.

    Args:
        ranks_a: float (U,), 0-based expected ranks of one system.
        ranks_b: float (U,), of the other.
        metric: for instance "ndcg@10".
        domains: (U,), the target's domain of each user: gives the plain mean of the domains' differences
            instead of the mean over users.
        bootstrap: resamples; the default one is that of results.json.

    Raises:
        ValueError: different numbers of users.
    """
    if len(ranks_a) != len(ranks_b):
        raise ValueError(f"a paired difference needs the same users: {len(ranks_a)} and {len(ranks_b)} ranks")
    difference = calc_metric(metric, ranks_a) - calc_metric(metric, ranks_b)
    return _mean_interval(difference, domains, bootstrap or Bootstrap())


def _mean_interval(values: np.ndarray, domains: np.ndarray | None, bootstrap: Bootstrap) -> Interval:
    if len(values) == 0:
        raise ValueError("no users: a mean over no users is not defined")
    codes = np.zeros(len(values), dtype=np.int64)
    if domains is not None:
        codes = np.unique(np.asarray(domains), return_inverse=True)[1]
    n_groups = int(codes.max()) + 1
    sums, weight = (np.zeros((bootstrap.resamples, n_groups)) for _ in range(2))
    for block, weights in bootstrap.weights(len(values)):
        for group in range(n_groups):
            members = codes[block] == group
            sums[:, group] += weights[members].T.astype(np.float64) @ values[block][members]
            weight[:, group] += weights[members].sum(axis=0)
    point = np.bincount(codes, weights=values) / np.bincount(codes)
    with np.errstate(invalid="ignore"):
        samples = mean_of_groups(sums / weight)
    low, high = bootstrap.bounds(samples[:, None])
    return Interval(float(point.mean()), float(low[0]), float(high[0]))


def mean_of_groups(samples: np.ndarray) -> np.ndarray:
    """Plain mean over axis 1; a resample without any user of a group leaves that group out."""
    present = ~np.isnan(samples)
    with np.errstate(invalid="ignore"):
        return np.where(present, samples, 0.0).sum(axis=1) / present.sum(axis=1)
