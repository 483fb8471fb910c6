"""Step: the split into training, validation and test, as three cuts through each user's ordered history.

A split is fully said by three numbers a user: how many of the first events are for training, and which event,
if any, is the validation and the test target. The history of a target is everything before it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.interactions import Interactions

SPLITS = {
    "leave-one-out": (
        "each user's last event is the test target, the second last the validation target, the rest is for "
        "training; users with fewer than three events are for training only"
    ),
    "global-time": (
        "two moments cut all histories: events before the first are for training; a user's last event "
        "between the two is the validation target, and the last event from the second on the test target"
    ),
}
NO_TARGET = -1
MIN_LEAVE_ONE_OUT = 3


@dataclass(frozen=True)
class Split:
    """Where each user's history is cut.

    Attributes:
        starts: int64 (users + 1), first event of each user in the sorted events.
        train_length: int64 (users), number of first events that are for training.
        validation_target: int64 (users), position of the target within the user's events, or -1.
        test_target: the same for the test.
        facts: what the data card says about the split.
    """

    starts: np.ndarray
    train_length: np.ndarray
    validation_target: np.ndarray
    test_target: np.ndarray
    facts: dict[str, object] = field(default_factory=dict)


def split_events(
    state: Interactions,
    split: str,
    *,
    order_policy: str,
    quantiles: Sequence[float] = (0.8, 0.9),
    cuts: Sequence[str] | None = None,
) -> Split:
    """Split ordered events.

    Args:
        state: events sorted by user and, within a user, oldest first.
        split: `leave-one-out` or `global-time`.
        order_policy: the policy by which the events were sorted; `global-time` needs `time`.
        quantiles: for `global-time`, the shares of all interactions that lie before the two cuts.
        cuts: for `global-time`, the two moments themselves, as ISO dates (UTC) or seconds since 1970; they
            replace the quantiles.

    Raises:
        DataError: unknown split, `global-time` without time order, cuts that make no sense, or a part without
            users.
    """
    lengths = np.bincount(state.user_codes, minlength=len(state.users)).astype(np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    if split == "leave-one-out":
        result = _leave_one_out(starts, lengths)
    elif split == "global-time":
        if order_policy != "time":
            raise DataError(
                f"split 'global-time' needs a true time order, and the order policy is '{order_policy}'",
                advice="Choose order policy 'time' (the data needs timestamps) or split 'leave-one-out'",
            )
        times = state.events[Columns.TIMESTAMP].to_numpy()
        moments = _moments(times, quantiles) if cuts is None else [parse_moment(cut) for cut in cuts]
        result = _global_time(starts, lengths, times, moments)
    else:
        raise DataError(f"unknown split '{split}'", advice=f"Choose one of {', '.join(SPLITS)}")
    for name, filled in (
        ("training", result.train_length > 0),
        ("validation", result.validation_target != NO_TARGET),
        ("test", result.test_target != NO_TARGET),
    ):
        if not filled.any():
            raise DataError(
                f"split '{split}' leaves no user for {name}",
                advice="Users need more events, or the cuts other moments",
            )
    return result


def _leave_one_out(starts: np.ndarray, lengths: np.ndarray) -> Split:
    enough = lengths >= MIN_LEAVE_ONE_OUT
    facts: dict[str, object] = {"users_for_training_only": int(np.count_nonzero(~enough))}
    return Split(
        starts=starts,
        train_length=np.where(enough, lengths - 2, lengths),
        validation_target=np.where(enough, lengths - 2, NO_TARGET),
        test_target=np.where(enough, lengths - 1, NO_TARGET),
        facts=facts,
    )


def _global_time(starts: np.ndarray, lengths: np.ndarray, times: np.ndarray, moments: Sequence[int]) -> Split:
    if len(moments) != 2 or not moments[0] < moments[1]:
        shown = ", ".join(format_moment(moment) for moment in moments)
        raise DataError(
            f"the two cuts of a global-time split must grow, not {shown}",
            advice="Choose other quantiles, or give the two moments themselves",
        )
    # A user's events are sorted by time, so those before a moment are the first ones.
    user_codes = np.repeat(np.arange(len(lengths)), lengths)
    before_first, before_second = (
        np.bincount(user_codes[times < moment], minlength=len(lengths)).astype(np.int64) for moment in moments
    )
    validation = np.where(before_second > before_first, before_second - 1, NO_TARGET)
    test = np.where(lengths > before_second, lengths - 1, NO_TARGET)
    facts: dict[str, object] = {
        "validation_from": format_moment(moments[0]),
        "test_from": format_moment(moments[1]),
        "validation_targets_without_history": int(np.count_nonzero(validation == 0)),
        "test_targets_without_history": int(np.count_nonzero(test == 0)),
    }
    # A target at position 0 has an empty history: nothing to recommend from. Counted above, and left out.
    return Split(
        starts=starts,
        train_length=before_first,
        validation_target=np.where(validation == 0, NO_TARGET, validation),
        test_target=np.where(test == 0, NO_TARGET, test),
        facts=facts,
    )


def _moments(times: np.ndarray, quantiles: Sequence[float]) -> list[int]:
    if len(quantiles) != 2 or not 0 < quantiles[0] < quantiles[1] < 1:
        raise DataError(f"the two quantiles of a global-time split must grow between 0 and 1, not {tuple(quantiles)}")
    return [int(moment) for moment in np.quantile(times, quantiles, method="higher")]


def parse_moment(text: str) -> int:
    """Read an ISO date or time (UTC unless it has an offset) or seconds since 1970, as milliseconds since
    1970.

    Raises:
        DataError: anything else.
    """
    try:
        return round(float(text) * 1000)
    except (ValueError, OverflowError):
        pass  # not a number of seconds: a date, or the error below
    try:
        moment = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 knows no Z
    except ValueError as error:
        raise DataError(f"unreadable moment '{text}'", advice="Write 2014-01-31, or seconds since 1970") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.timezone.utc)
    return round(moment.timestamp() * 1000)


def format_moment(milliseconds: int) -> str:
    """Write milliseconds since 1970 as ISO 8601 in UTC."""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(milliseconds=milliseconds)
    return moment.isoformat().replace("+00:00", "Z")
