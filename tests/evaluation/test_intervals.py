import numpy as np
import pytest

from llmrec.evaluation import Bootstrap, calc_metric, mean_interval, paired_difference
from llmrec.evaluation.intervals import USERS_PER_CHUNK, bootstrap_group_means


def test_interval_is_close_to_the_analytic_one():
    hits = (np.random.default_rng(0).random(3000) < 0.3).astype(float)
    interval = mean_interval(hits, Bootstrap(resamples=2000))
    half = 1.96 * hits.std() / np.sqrt(len(hits))
    assert interval.value == hits.mean()
    assert interval.low == pytest.approx(hits.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(hits.mean() + half, abs=0.1 * half)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap(resamples=300)
    covered = 0
    for _ in range(200):
        interval = mean_interval((rng.random(150) < 0.4).astype(float), bootstrap)
        covered += interval.low <= 0.4 <= interval.high
    # Standard deviation of 200 trials at 95 %: 3. The percentile interval is known to be a little narrow.
    assert 180 <= covered <= 199


def test_paired_difference_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 40, 2000).astype(float)
    better = np.maximum(ranks - rng.integers(0, 2, 2000), 0)
    difference = paired_difference(better, ranks)
    expected = calc_metric("ndcg@10", better) - calc_metric("ndcg@10", ranks)
    half = 1.96 * expected.std() / np.sqrt(2000)
    assert difference.value == pytest.approx(expected.mean())
    assert difference.low > 0
    assert difference.high - difference.low == pytest.approx(2 * half, rel=0.15)
    single = mean_interval(calc_metric("ndcg@10", ranks))
    assert difference.high - difference.low < 0.5 * (single.high - single.low)


def test_paired_difference_uses_the_resamples_of_the_rows():
    """The difference of two systems is the difference of their resampled means, resample by resample."""
    rng = np.random.default_rng(1)
    ranks = rng.integers(0, 30, (USERS_PER_CHUNK + 500, 2)).astype(float)
    domains = rng.integers(0, 3, len(ranks))
    bootstrap = Bootstrap(resamples=200, seed=4)
    everyone, by_domain = bootstrap_group_means(
        ranks, ["ndcg@10"], [(np.zeros(len(ranks), dtype=int), 1), (domains, 3)], bootstrap
    )
    for means, groups in ((everyone, None), (by_domain, domains)):
        samples = means.samples.mean(axis=1)
        low, high = np.quantile(samples[:, 0] - samples[:, 1], [0.025, 0.975])
        difference = paired_difference(ranks[:, 0], ranks[:, 1], domains=groups, bootstrap=bootstrap)
        assert difference.low == pytest.approx(low, abs=1e-6)
        assert difference.high == pytest.approx(high, abs=1e-6)


def test_group_means_equal_a_plain_loop():
    rng = np.random.default_rng(2)
    users = USERS_PER_CHUNK + 300
    ranks, codes = rng.integers(0, 30, (users, 2)).astype(float), rng.integers(0, 3, users)
    bootstrap = Bootstrap(resamples=5)
    means = bootstrap_group_means(ranks, ["recall@5", "mrr@10"], [(codes, 4)], bootstrap)[0]
    weights = np.concatenate([drawn for _, drawn in bootstrap.weights(users)])
    columns = [calc_metric(name, ranks[:, system]) for system in (0, 1) for name in ("recall@5", "mrr@10")]
    assert means.users.tolist() == [*np.bincount(codes), 0]
    for group in range(3):
        members = codes == group
        for column, values in enumerate(columns):
            assert means.values[group, column] == pytest.approx(values[members].mean())
            for resample in range(5):
                weight = weights[members, resample]
                expected = (weight * values[members]).sum() / weight.sum()
                assert means.samples[resample, group, column] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(means.values[3]).all() and np.isnan(means.samples[:, 3]).all()


def test_seeded_and_independent_of_how_many_users_follow():
    values = np.random.default_rng(0).random(500)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, Bootstrap(seed=1))
    few, many = (next(iter(Bootstrap(resamples=3).weights(users)))[1] for users in (100, 5000))
    assert np.array_equal(few, many[:100])


def test_bounds_where_resamples_miss_a_group():
    samples = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    low, high = Bootstrap(level=0.5).bounds(samples)
    assert (low[0], high[0]) == (1.5, 2.5)
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_bad_input():
    with pytest.raises(ValueError, match="same users: 3 and 4"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="no users"):
        mean_interval(np.array([]))
    with pytest.raises(ValueError, match="at least one resample"):
        Bootstrap(resamples=0)
