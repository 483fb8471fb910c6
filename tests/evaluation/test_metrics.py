import numpy as np
import pytest

from llmrec.evaluation import KS, calc, calc_metric, calc_per_user, metric_names


def test_hand_computed():
    values = calc_per_user(np.array([0.0, 0.5, 3.0, 10.0]), ks=(1, 10))
    assert values["recall@1"].tolist() == [1, 1, 0, 0]
    assert values["recall@10"].tolist() == [1, 1, 1, 0]
    assert values["ndcg@10"] == pytest.approx([1, 1 / np.log2(2.5), 1 / np.log2(5), 0])
    assert values["mrr@10"] == pytest.approx([1, 1 / 1.5, 1 / 4, 0])


def test_equal_ranx_without_ties(monkeypatch):
    # Compiling ranx takes half a minute, running it uncompiled on this much a second.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(80.0), (60, 1)), axis=1)
    targets = rng.integers(0, 80, 60)
    ranks = (scores > scores[np.arange(60), targets][:, None]).sum(axis=1)
    names = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in KS]
    theirs = ranx.evaluate(
        ranx.Qrels({f"u{user}": {f"i{target}": 1} for user, target in enumerate(targets)}),
        ranx.Run(
            {f"u{user}": {f"i{item}": score for item, score in enumerate(row)} for user, row in enumerate(scores)}
        ),
        names,
    )
    ours = calc(ranks)
    assert sorted(ours) == sorted(names)
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-12), name


def test_calc_is_the_mean_of_calc_per_user():
    ranks = np.random.default_rng(0).integers(0, 60, 100).astype(float)
    assert list(calc(ranks)) == metric_names()
    for name, values in calc_per_user(ranks).items():
        assert calc(ranks)[name] == values.mean()


@pytest.mark.parametrize("name", ["ndcg", "ndcg@0", "precision@5", "ndcg@x", "ndcg@-1"])
def test_unknown_metric(name):
    with pytest.raises(ValueError, match="unknown metric"):
        calc_metric(name, np.zeros(3))


def test_no_users():
    with pytest.raises(ValueError, match="no ranks"):
        calc(np.array([]))
