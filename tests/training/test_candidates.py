"""The mask of the in-batch loss against the rule in words, pair by pair."""

import numpy as np
import pytest
import torch

from llmrec.evaluation.histories import Histories
from llmrec.training.candidates import excluded_keys, in_batch_mask


def allowed(target: int, item: int, bought: set[int], text: np.ndarray, domain: np.ndarray | None) -> bool:
    """Whether an item may be a negative of a target: the slow twin."""
    if text[item] == text[target] or text[item] in {text[one] for one in bought}:
        return False
    return domain is None or domain[item] == domain[target]


@pytest.mark.parametrize("domains", [None, 3])
@pytest.mark.parametrize("items", [1, 40, 500])
def test_the_mask_is_that_of_every_pair(domains: int | None, items: int) -> None:
    rng = np.random.default_rng(items)
    catalogue = 200
    # Text classes with up to several items each, over domains and within them.
    text = rng.integers(0, 150, catalogue)
    domain = None if domains is None else rng.integers(0, domains, catalogue).astype(np.int32)
    histories = Histories.of([rng.integers(0, catalogue, n) for n in (0, 1, 5, 30, 400, 3)])
    users = rng.integers(0, len(histories), 25)
    targets = rng.integers(0, catalogue, 25)
    candidates = rng.integers(0, catalogue, items)  # unsorted, with repetitions
    excluded = excluded_keys(histories, users, text)
    assert (np.diff(excluded) > 0).all()
    mask = in_batch_mask(
        torch.from_numpy(targets),
        torch.from_numpy(candidates),
        torch.from_numpy(excluded),
        torch.from_numpy(text),
        None if domain is None else torch.from_numpy(domain),
    )
    assert mask.shape == (25, items) and mask.dtype == torch.bool
    expected = [
        [allowed(target, item, set(histories[user].tolist()), text, domain) for item in candidates]
        for target, user in zip(targets, users, strict=True)
    ]
    assert mask.tolist() == expected


def test_nothing_excluded_and_nothing_to_exclude_from() -> None:
    text = torch.arange(5)
    nothing = torch.empty(0, dtype=torch.int64)
    mask = in_batch_mask(torch.tensor([1, 2]), torch.tensor([0, 1, 2]), nothing, text)
    assert mask.tolist() == [[True, False, True], [True, True, False]]
    assert in_batch_mask(torch.tensor([1]), nothing, torch.tensor([3]), text).shape == (1, 0)
    # Titles that are excluded, but are not among the items, are excluded from nothing.
    assert in_batch_mask(torch.tensor([1]), torch.tensor([0, 2]), torch.tensor([3, 4]), text).all()
