"""The k-core against a plain-Python twin and by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from llmrec.data.errors import DataError
from llmrec.data.k_core import k_core


def slow_k_core(events, k, scope):
    """Drop users, then items, one pass after the other, counting with dictionaries."""
    while True:
        before = len(events)
        users = Counter((user, item[0] if scope == "domain" else "") for user, item, _ in events)
        events = [e for e in events if users[e[0], e[1][0] if scope == "domain" else ""] >= k]
        items = Counter(item for _, item, _ in events)
        events = [e for e in events if items[e[1]] >= k]
        if len(events) == before:
            return events


@pytest.mark.parametrize("scope", ["merged", "domain"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_slow_twin(make_state, random_events, rows_of, scope, k, seed) -> None:
    events = random_events(seed, n_events=220)
    expected = slow_k_core(events, k, scope)
    if not expected:
        with pytest.raises(DataError, match="nothing left"):
            k_core(make_state(events), k, scope)
        return
    state = k_core(make_state(events), k, scope)
    assert rows_of(state) == expected
    assert set(state.users) == {user for user, _, _ in expected}
    assert set(state.items["item_id"]) == {item for _, item, _ in expected}


def test_the_twin_is_tested_on_data_where_the_core_needs_several_rounds(random_events) -> None:
    events = random_events(0, n_events=220)
    assert 0 < len(slow_k_core(events, 5, "merged")) < len(events)


def test_by_hand_a_chain_falls_in_rounds(make_state, rows_of) -> None:
    # u3 goes (1 event), so a3 goes (1 event left), so u2 goes (1 event left); u0, u1, a0, a1 hold each other.
    events = [("u0", "a0", 1), ("u0", "a1", 2), ("u1", "a0", 3), ("u1", "a1", 4), ("u2", "a0", 5), ("u2", "a3", 6)]
    events.append(("u3", "a3", 7))
    assert rows_of(k_core(make_state(events), 2)) == events[:4]


def test_by_hand_merged_counts_over_domains_and_domain_does_not(make_state, rows_of) -> None:
    # u0 has one event in each domain, u1 two in A.
    events = [("u0", "a0", 1), ("u0", "b0", 2), ("u1", "a0", 3), ("u1", "a0", 4), ("u2", "b0", 5), ("u2", "b0", 6)]
    assert rows_of(k_core(make_state(events), 2, "merged")) == events
    assert rows_of(k_core(make_state(events), 2, "domain")) == [events[i] for i in (2, 3, 4, 5)]


def test_zero_keeps_items_without_events_and_one_drops_them(make_state) -> None:
    items = {"a0": ("used", "A"), "a1": ("idle", "A")}
    state = make_state([("u", "a0", 1)], items)
    assert k_core(state, 0).items.height == 2
    assert k_core(state, 1).items["item_id"].to_list() == ["a0"]


def test_errors(make_state) -> None:
    state = make_state([("u", "a0", 1)])
    with pytest.raises(DataError, match=r"nothing left after the 2-core \(scope 'merged'\) of 1 interactions.*Lower k"):
        k_core(state, 2)
    with pytest.raises(DataError, match="unknown k-core scope 'user'"):
        k_core(state, 2, "user")
    with pytest.raises(DataError, match="k-core of -1"):
        k_core(state, -1)
