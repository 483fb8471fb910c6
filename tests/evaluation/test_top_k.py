import numpy as np
import pytest
import torch

from llmrec.evaluation import EmbeddingScorer, Protocol, rank
from llmrec.retrieval.top_k import top_k


class Fixed:
    name = "fixed"

    def __init__(self, matrix):
        self.matrix = torch.tensor(matrix, dtype=torch.float32)

    def scores(self, rows):
        return self.matrix[torch.as_tensor(rows)]


def test_best_first_and_equals_in_catalogue_order():
    scorer = Fixed([[1, 3, 3, 0, 3], [5, 1, 2, 2, 4]])
    items, scores = top_k(scorer, [0, 1], 3)
    assert items.tolist() == [[1, 2, 4], [0, 4, 2]]
    assert scores.tolist() == [[3, 3, 3], [5, 4, 2]]


def test_ties_at_the_border_are_cut_in_catalogue_order():
    items, _ = top_k(Fixed([[1, 2, 2, 2, 2]]), [0], 2)
    assert items.tolist() == [[1, 2]]


def test_candidates_and_excluded():
    items, scores = top_k(Fixed([[9, 8, 7, 6, 5]] * 2), [0, 1], 3, candidate_items=[4, 2, 1], excluded=[[1, 0], []])
    assert items.tolist() == [[2, 4, -1], [1, 2, 4]]
    assert scores[0, 2] == -np.inf


def test_agrees_with_the_ranker(split):
    """An item at expected rank r without ties is at place r of the recommendations."""
    generator = torch.Generator().manual_seed(1)
    scorer = EmbeddingScorer(
        "model",
        torch.randn(split.users, 16, generator=generator),
        torch.randn(split.items, 16, generator=generator),
    )
    result = rank(
        scorer,
        histories=split.histories,
        targets=split.targets,
        domain_codes=split.domain_codes,
        protocol=Protocol("full", "catalogue"),
        progress=False,
    )
    seen = [history[history != target] for history, target in zip(split.histories, split.targets, strict=True)]
    items, _ = top_k(scorer, np.arange(split.users), split.items, excluded=seen)
    for row, target in enumerate(split.targets):
        assert items[row, int(result.ranks[row])] == target


def test_many_users_take_several_blocks():
    generator = torch.Generator().manual_seed(1)
    scorer = EmbeddingScorer(
        "model", torch.randn(1500, 4, generator=generator), torch.randn(30, 4, generator=generator)
    )
    items, scores = top_k(scorer, np.arange(1500), 5)
    best = scorer.scores(np.arange(1500)).topk(5)
    assert np.array_equal(items, best.indices.numpy())
    assert np.array_equal(scores, best.values.numpy())


def test_bad_input():
    with pytest.raises(ValueError, match="k must be"):
        top_k(Fixed([[1, 2]]), [0], 0)
    with pytest.raises(ValueError, match="excluded holds 2 lists for 1 users"):
        top_k(Fixed([[1, 2]]), [0], 1, excluded=[[0], [1]])
    with pytest.raises(ValueError, match="user row 1 is NaN"):
        top_k(Fixed([[1, 2], [1, np.nan]]), [0, 1], 1)
