"""Exact duplicates."""

from __future__ import annotations

import polars as pl

from llmrec.data.duplicates import drop_duplicates
from llmrec.data.encode import encode_source, merge_sources
from llmrec.data.source import RawData


def test_only_exact_duplicates_go_and_the_first_stays(make_state, rows_of) -> None:
    events = [("u", "a0", 5), ("v", "a0", 5), ("u", "a0", 6), ("u", "a0", 5), ("u", "b0", 5), ("v", "a0", 5)]
    assert rows_of(drop_duplicates(make_state(events))) == [events[0], events[1], events[2], events[4]]


def test_equals_the_slow_twin(make_state, random_events, rows_of) -> None:
    events = random_events(0, n_events=400, n_users=5, n_items=5, n_times=5)
    expected = list(dict.fromkeys(events))
    assert len(expected) < len(events)
    assert rows_of(drop_duplicates(make_state(events))) == expected


def test_another_rating_at_the_same_time_is_no_duplicate(make_raw, rows_of) -> None:
    raw = make_raw([("u", "a0", 5), ("u", "a0", 5), ("u", "a0", 5)])
    rated = raw.interactions.with_frame(raw.interactions.frame.with_columns(pl.Series("rating", [1.0, 2.0, 1.0])))
    state = drop_duplicates(merge_sources([encode_source(RawData(rated, raw.items))]))
    assert len(rows_of(state)) == 2
    assert "rating" not in state.events.columns
