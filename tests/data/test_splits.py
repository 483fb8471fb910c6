"""Splits and the assembled histories against plain-Python twins and by hand."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict

import numpy as np
import pytest

from llmrec.data.assemble import assemble_histories, train_counts
from llmrec.data.errors import DataError
from llmrec.data.leakage import leakage_message, measure_leakage
from llmrec.data.order import order_events
from llmrec.data.splits import format_moment, parse_moment, split_events


def histories_of(state, split, **options):
    """Split and assemble: {split: {user: (history item ids, target item id)}}, training counts, the split."""
    state = order_events(state, "time")
    cut = split_events(state, split, order_policy="time", **options)
    ids = state.items["item_id"].to_list()
    result = {}
    for name, part in assemble_histories(state, cut).items():
        result[name] = {
            row["user_id"]: ([ids[i] for i in row["history"]], ids[row["target"]] if "target" in row else None)
            for row in part
        }
    return result, dict(zip(ids, train_counts(state, cut).tolist(), strict=True)), cut


def slow_split(events, split, moments=None):
    users = defaultdict(list)
    for event in events:
        users[event[0]].append(event)
    result = {"train": {}, "validation": {}, "test": {}}
    for user, own in users.items():
        own = sorted(own, key=lambda e: e[2])
        items = [e[1] for e in own]
        if split == "leave-one-out":
            if len(items) < 3:
                result["train"][user] = (items, None)
                continue
            result["train"][user] = (items[:-2], None)
            result["validation"][user] = (items[:-2], items[-2])
            result["test"][user] = (items[:-1], items[-1])
            continue
        first, second = moments
        training = [e[1] for e in own if e[2] < first]
        if training:
            result["train"][user] = (training, None)
        for name, last in (
            ("validation", [i for i, e in enumerate(own) if first <= e[2] < second]),
            ("test", [i for i, e in enumerate(own) if e[2] >= second]),
        ):
            if last and last[-1] > 0:
                result[name][user] = (items[: last[-1]], items[last[-1]])
    return result


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_leave_one_out_equals_the_slow_twin(make_state, random_events, seed) -> None:
    events = random_events(seed, n_events=150, n_users=40)
    found, counts, _ = histories_of(make_state(events), "leave-one-out")
    expected = slow_split(events, "leave-one-out")
    assert found == expected
    flat = [item for history, _ in expected["train"].values() for item in history]
    assert counts == {item: flat.count(item) for item in counts}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_global_time_equals_the_slow_twin(make_state, random_events, seed) -> None:
    events = random_events(seed, n_events=150, n_users=40)
    found, counts, _ = histories_of(make_state(events), "global-time", cuts=["20", "30"])
    expected = slow_split(events, "global-time", (20_000, 30_000))
    assert found == expected
    assert set(expected["test"]) - set(expected["train"]), "the data must hold a test user unknown to training"
    assert sum(counts.values()) == sum(len(history) for history, _ in expected["train"].values())


def test_leave_one_out_by_hand(make_state) -> None:
    events = [
        ("u", "a0", 3),
        ("u", "b0", 1),
        ("u", "a1", 2),
        ("u", "a0", 4),
        ("v", "a0", 1),
        ("v", "b0", 2),
        ("w", "a1", 1),
    ]
    found, counts, cut = histories_of(make_state(events), "leave-one-out")
    assert found == {
        "train": {"u": (["b0", "a1"], None), "v": (["a0", "b0"], None), "w": (["a1"], None)},
        "validation": {"u": (["b0", "a1"], "a0")},
        "test": {"u": (["b0", "a1", "a0"], "a0")},
    }
    assert counts == {"a0": 1, "a1": 2, "b0": 2}
    assert cut.facts == {"users_for_training_only": 2}


def test_global_time_by_hand(make_state) -> None:
    day = 86_400_000
    events = [
        ("u", "a0", 1 * day), ("u", "a1", 5 * day), ("u", "a2", 6 * day), ("u", "a3", 9 * day), ("u", "a4", 9 * day),
        ("new", "a1", 9 * day), ("new", "a2", 10 * day),
        ("once", "a3", 9 * day),
        ("early", "a0", 2 * day), ("early", "a1", 4 * day),
    ]  # fmt: skip
    found, _, cut = histories_of(make_state(events), "global-time", cuts=["1970-01-06", "1970-01-10"])
    # The event of day 5 lies on the first cut, so in its window; equal times keep their rows' order.
    assert found == {
        "train": {"u": (["a0"], None), "early": (["a0", "a1"], None)},
        "validation": {"u": (["a0", "a1"], "a2")},
        "test": {"u": (["a0", "a1", "a2", "a3"], "a4"), "new": (["a1"], "a2")},
    }
    assert cut.facts == {
        "validation_from": "1970-01-06T00:00:00Z",
        "test_from": "1970-01-10T00:00:00Z",
        "validation_targets_without_history": 0,
        "test_targets_without_history": 1,
    }


def test_quantiles_cut_by_share_of_interactions(make_state) -> None:
    events = [(f"u{i % 5}", f"a{i % 3}", i * 1000) for i in range(100)]
    state = order_events(make_state(events), "time")
    cut = split_events(state, "global-time", order_policy="time", quantiles=(0.6, 0.8))
    assert cut.train_length.sum() == pytest.approx(60, abs=1)
    assert cut.facts["test_from"] == format_moment(80_000)


def test_split_dtypes(make_state, random_events) -> None:
    state = order_events(make_state(random_events(0)), "time")
    part = assemble_histories(state, split_events(state, "leave-one-out", order_policy="time"))["test"]
    assert str(part.features["history"].feature.dtype) == "int32"
    assert part.features["target"].dtype == "int32"
    assert part["user_id"][:] == sorted(part["user_id"][:])


def test_global_time_needs_time_order(make_state, random_events) -> None:
    state = order_events(make_state(random_events(0)), "interleave")
    with pytest.raises(DataError, match="'global-time' needs a true time order, and the order policy is 'interleave'"):
        split_events(state, "global-time", order_policy="interleave")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuts": ["30", "20"]}, "two cuts of a global-time split must grow, not 1970-01-01T00:00:30Z"),
        ({"cuts": ["20"]}, "two cuts"),
        ({"cuts": ["soon", "20"]}, "unreadable moment 'soon'"),
        ({"quantiles": (0.9, 0.8)}, "two quantiles"),
        ({"quantiles": (0.5, 1.0)}, "two quantiles"),
        ({"cuts": ["0", "30"]}, "leaves no user for training"),
        ({"cuts": ["20", "2000-01-01"]}, "leaves no user for test"),
    ],
)
def test_cuts_that_make_no_sense(make_state, random_events, options, message) -> None:
    state = order_events(make_state(random_events(0)), "time")
    with pytest.raises(DataError, match=message):
        split_events(state, "global-time", order_policy="time", **options)


def test_leave_one_out_without_enough_events(make_state) -> None:
    state = order_events(make_state([("u", "a0", 1), ("u", "a1", 2)]), "time")
    with pytest.raises(DataError, match="leaves no user for validation"):
        split_events(state, "leave-one-out", order_policy="time")


def test_unknown_split(make_state) -> None:
    with pytest.raises(DataError, match="unknown split 'random'"):
        split_events(make_state([("u", "a0", 1)]), "random", order_policy="time")


def test_moments_round_trip() -> None:
    assert parse_moment("2014-01-31") == int(dt.datetime(2014, 1, 31, tzinfo=dt.timezone.utc).timestamp()) * 1000
    assert parse_moment("2014-01-31T02:00:00+02:00") == parse_moment("2014-01-31")
    assert parse_moment("1391126400") == parse_moment("2014-01-31")
    assert format_moment(parse_moment("2014-01-31")) == "2014-01-31T00:00:00Z"


def test_leakage_against_the_slow_twin(make_state, random_events) -> None:
    events = random_events(3)
    state = order_events(make_state(events), "time")
    cut = split_events(state, "leave-one-out", order_policy="time")
    own = defaultdict(list)
    for user, _, time in events:
        own[user].append(time)
    histories = {user: sorted(times) for user, times in own.items() if len(times) >= 3}
    short = [time for times in own.values() if len(times) < 3 for time in times]
    training = short + [time for times in histories.values() for time in times[:-2]]
    later = [np.mean([t > times[-1] for t in training]) for times in histories.values()]
    found = measure_leakage(state, cut)
    assert found is not None
    assert found["training_after_target"] == pytest.approx(np.mean(later))
    assert found["targets_with_later_training"] == pytest.approx(np.mean([share > 0 for share in later]))
    assert f"{np.mean(later):.1%}" in str(leakage_message(found))


def test_global_time_leaks_nothing(make_state, random_events) -> None:
    state = order_events(make_state(random_events(3)), "time")
    cut = split_events(state, "global-time", order_policy="time", cuts=["20", "30"])
    found = measure_leakage(state, cut)
    assert found == {"targets_with_later_training": 0.0, "training_after_target": 0.0}
    assert leakage_message(found) is None


def test_leakage_without_timestamps_cannot_be_measured(make_state) -> None:
    events = [("u", f"a{i}", i) for i in range(4)]
    state = order_events(make_state(events, time="order"), "interleave")
    assert measure_leakage(state, split_events(state, "leave-one-out", order_policy="interleave")) is None
    assert "no timestamps" in str(leakage_message(None))
