"""metrics/llmrec_ranking stands alone and must say what the package says."""

import importlib.util
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from llmrec.evaluation import PRESETS, calc, rank

FOLDER = Path(__file__).resolve().parents[2] / "metrics" / "llmrec_ranking"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` with a cache of its own."""

    def loader(*configuration):
        return evaluate.load(str(FOLDER), *configuration, cache_dir=str(tmp_path))

    return loader


@pytest.fixture(scope="module")
def module():
    specification = importlib.util.spec_from_file_location("standalone_metric", FOLDER / "llmrec_ranking.py")
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded


RANKS = np.random.default_rng(0).integers(0, 130, 200) / 2


def test_imports_nothing_of_the_project():
    assert "import llmrec" not in (FOLDER / "llmrec_ranking.py").read_text()
    assert "from llmrec" not in (FOLDER / "llmrec_ranking.py").read_text()


def test_ranks_in_process(module):
    assert module.ranking_metrics(RANKS) == pytest.approx(calc(RANKS), abs=1e-15)


@pytest.mark.parametrize("configuration", [(), ("ranks",)])
def test_ranks_through_evaluate(load, configuration):
    assert load(*configuration).compute(predictions=RANKS) == pytest.approx(calc(RANKS), abs=1e-15)


def test_score_lists_through_evaluate(load):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 12, (60, 30)).astype(np.float32)
    targets = rng.integers(0, 30, 60)

    class Fixed:
        name = "fixed"

        def scores(self, rows):
            return torch.from_numpy(scores[rows])

    result = rank(
        Fixed(),
        histories=[[0]] * 60,
        targets=targets,
        domain_codes=np.zeros(30, dtype=int),
        protocol=PRESETS["full-unmasked"],
        progress=False,
    )
    metric = load("scores")
    found = metric.compute(predictions=scores.tolist(), references=targets.tolist(), ks=[1, 5, 10, 20, 50])
    assert found == pytest.approx(calc(result.ranks), abs=1e-15)
    for user in range(60):
        metric.add(prediction=scores[user].tolist(), reference=int(targets[user]))
    assert metric.compute() == pytest.approx(found)


def test_lists_of_different_lengths_and_ties(load):
    found = load("scores").compute(predictions=[[0.1, 0.9, 0.9], [2.0]], references=[1, 0], ks=[1])
    assert found["mrr@1"] == pytest.approx((1 / 1.5 + 1) / 2)


def test_bad_input(load, module):
    with pytest.raises(ValueError, match="user 1: target position 2 is outside the list of 2 scores"):
        load("scores").compute(predictions=[[1.0], [1.0, 2.0]], references=[0, 2])
    with pytest.raises(ValueError, match="user 0: a score is NaN"):
        load("scores").compute(predictions=[[1.0, float("nan")]], references=[0])
    with pytest.raises(ValueError, match="user 1: -1.0 is not a rank"):
        module.ranking_metrics(np.array([0.0, -1.0]))
    with pytest.raises(ValueError, match="user 0: nan is not a rank"):
        module.ranking_metrics(np.array([np.nan]))
    with pytest.raises(ValueError, match="no users"):
        module.ranking_metrics(np.array([]))
    with pytest.raises(ValueError, match='choose "ranks" or "scores"'):
        load("lists")
