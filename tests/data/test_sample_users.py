"""The sample of users."""

from __future__ import annotations

import pytest

from llmrec.data.errors import DataError
from llmrec.data.sample_users import sample_users


def test_sample_is_nested_and_keeps_whole_histories_and_the_catalogue(make_state, random_events, rows_of) -> None:
    events = random_events(0)
    state = make_state(events)
    small, large = sample_users(state, 5), sample_users(state, 12)
    assert len(small.users) == 5
    assert len(large.users) == 12
    assert set(small.users) < set(large.users)
    assert rows_of(small) == [event for event in events if event[0] in set(small.users)]
    assert small.items.equals(state.items)


def test_sample_depends_on_the_ids_only(make_state, random_events) -> None:
    events = random_events(0)
    chosen = set(sample_users(make_state(events), 5).users)
    assert set(sample_users(make_state(events[::-1]), 5).users) == chosen
    without = [event for event in events if event[0] in chosen or event[2] < 20_000]
    assert set(sample_users(make_state(without), 5).users) == chosen


def test_no_sample(make_state, random_events) -> None:
    state = make_state(random_events(0))
    assert sample_users(state, None) is state
    assert sample_users(state, 10_000) is state
    with pytest.raises(DataError, match="sample of 0 users"):
        sample_users(state, 0)
