"""Order policies against a plain-Python twin and by hand."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import pytest

from llmrec.data.errors import DataError
from llmrec.data.order import ORDER_POLICIES, order_events


def slow_order(events, policy):
    """Sort each user's events with Python's stable sort and exact fractions."""
    users = defaultdict(list)
    for event in events:
        users[event[0]].append(event)
    result = []
    for user in sorted(users):
        if policy == "time":
            result += sorted(users[user], key=lambda e: e[2])
            continue
        placed = []
        for domain in sorted({e[1][0] for e in users[user]}):
            own = sorted((e for e in users[user] if e[1][0] == domain), key=lambda e: e[2])
            placed += [(Fraction(2 * i + 1, 2 * len(own)), domain, e) for i, e in enumerate(own)]
        if policy == "interleave":
            placed.sort(key=lambda p: (p[0], p[1]))
        result += [e for _, _, e in placed]
    return result


@pytest.mark.parametrize("policy", list(ORDER_POLICIES))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_slow_twin(make_state, random_events, rows_of, policy, seed) -> None:
    events = random_events(seed, n_events=600, n_users=8, n_times=25)
    assert rows_of(order_events(make_state(events), policy)) == slow_order(events, policy)


def test_by_hand_equal_times_keep_the_order_of_rows(make_state, rows_of) -> None:
    events = [("u", "b0", 5), ("u", "a0", 5), ("u", "a1", 1)]
    assert [item for _, item, _ in rows_of(order_events(make_state(events), "time"))] == ["a1", "b0", "a0"]


def test_by_hand_interleave(make_state, rows_of) -> None:
    # A has 4 events at 1/8, 3/8, 5/8, 7/8; B has 2 at 1/4, 3/4; C has 1 at 1/2.
    events = [("u", f"a{i}", i) for i in range(4)] + [("u", "b0", 0), ("u", "b1", 1), ("u", "c0", 0)]
    state = make_state(events, time="order")
    items = [item for _, item, _ in rows_of(order_events(state, "interleave"))]
    assert items == ["a0", "b0", "a1", "c0", "a2", "b1", "a3"]


def test_by_hand_interleave_of_equal_positions_is_alphabetical(make_state, rows_of) -> None:
    events = [("u", "b0", 0), ("u", "a0", 0), ("u", "c0", 0), ("u", "c1", 1), ("u", "c2", 2)]
    state = make_state(events, time="order")
    # A, B and the second of C's three all stand at 1/2.
    items = [item for _, item, _ in rows_of(order_events(state, "interleave"))]
    assert items == ["c0", "a0", "b0", "c1", "c2"]


def test_by_hand_domain_blocks(make_state, rows_of) -> None:
    events = [("u", "b0", 0), ("u", "a1", 1), ("u", "a0", 0), ("u", "b1", 1)]
    state = make_state(events, time="order")
    assert [item for _, item, _ in rows_of(order_events(state, "domain-blocks"))] == ["a0", "a1", "b0", "b1"]


def test_time_without_timestamps_names_the_alternatives(make_state) -> None:
    with pytest.raises(DataError, match="needs timestamps.*'interleave' or 'domain-blocks'"):
        order_events(make_state([("u", "a0", 1)], time="order"), "time")


def test_unknown_policy(make_state) -> None:
    with pytest.raises(DataError, match="unknown order policy 'random'"):
        order_events(make_state([("u", "a0", 1)]), "random")
