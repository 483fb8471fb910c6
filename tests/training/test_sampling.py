"""The order of an epoch: a permutation by seed and epoch, also by length and user by user."""

import numpy as np
import pytest

from llmrec.evaluation.histories import Histories
from llmrec.training.examples import PrefixExamples
from llmrec.training.sampling import EpochSampler


def test_the_order_is_a_permutation_by_seed_and_epoch() -> None:
    examples = PrefixExamples(Histories.of([list(range(200))]), 3)
    sampler = EpochSampler(examples, seed=5)
    orders = {}
    for epoch in (0, 1):
        examples.set_epoch(epoch)
        orders[epoch] = list(sampler)
        assert sorted(orders[epoch]) == list(range(199))
        assert orders[epoch] == list(sampler) == list(EpochSampler(examples, seed=5))
        assert orders[epoch] != list(EpochSampler(examples, seed=6))
    assert orders[0] != orders[1]


def test_length_grouping_puts_like_lengths_together_and_loses_nobody() -> None:
    examples = PrefixExamples(Histories.of([list(range(401))]), 3)
    lengths = np.random.default_rng(0).integers(1, 100, 400)
    order = list(EpochSampler(examples, seed=5, lengths=lengths, group_size=100))
    assert sorted(order) == list(range(400))
    for start in range(0, 400, 100):
        assert (np.diff(lengths[order[start : start + 100]]) <= 0).all()
    plain = list(EpochSampler(examples, seed=5))
    assert [sorted(order[i : i + 100]) for i in range(0, 400, 100)] == [
        sorted(plain[i : i + 100]) for i in range(0, 400, 100)
    ]


def _by_user(max_examples: int | None = None) -> PrefixExamples:
    rng = np.random.default_rng(0)
    histories = Histories.of([rng.integers(0, 50, n) for n in rng.integers(0, 12, 100)])
    return PrefixExamples(histories, 5, max_examples, seed=1, by_user=True)


@pytest.mark.parametrize("max_examples", [None, 150])
def test_by_user_the_users_are_shuffled_and_their_examples_stay_in_order(max_examples: int | None) -> None:
    examples = _by_user(max_examples)
    orders = []
    for epoch in (0, 1):
        examples.set_epoch(epoch)
        order = list(EpochSampler(examples, seed=5))
        assert sorted(order) == list(range(len(examples)))
        assert order == list(EpochSampler(examples, seed=5)) != list(EpochSampler(examples, seed=6))
        users = examples.users[order]
        borders = np.flatnonzero(np.diff(users))
        assert len(borders) + 1 == len(np.unique(users))  # every user once
        within = np.delete(np.diff(order), borders)
        assert (within == 1).all()
        orders.append(users[np.append(0, borders + 1)].tolist())
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_by_user_length_grouping_puts_users_of_like_length_together() -> None:
    examples = _by_user()
    lengths = np.random.default_rng(0).integers(1, 100, len(examples))
    longest = {user: int(lengths[examples.users == user].max()) for user in np.unique(examples.users).tolist()}
    order = list(EpochSampler(examples, seed=5, lengths=lengths, group_size=100))
    assert sorted(order) == list(range(len(examples)))

    def users_of(order: list[int]) -> list[int]:
        users = examples.users[order]
        return users[np.append(True, np.diff(users) != 0)].tolist()

    plain, grouped = users_of(list(EpochSampler(examples, seed=5))), users_of(order)
    assert sorted(plain) == sorted(grouped) == sorted(longest)
    # As long as a group lasts, in which the same users stand as in a plain shuffle, they get shorter and shorter.
    seen, start = 0, 0
    ends = np.cumsum([int((examples.users == user).sum()) for user in plain])
    for stop in [*np.flatnonzero(np.diff((ends - 1) // 100)) + 1, len(plain)]:
        assert sorted(plain[start:stop]) == sorted(grouped[start:stop])
        assert (np.diff([longest[user] for user in grouped[start:stop]]) <= 0).all()
        start, seen = stop, seen + 1
    assert seen >= len(examples) // 100
