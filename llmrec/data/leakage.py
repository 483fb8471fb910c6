"""How much a split lets training see of the future."""

from __future__ import annotations

import numpy as np

from llmrec.data.columns import Columns
from llmrec.data.interactions import Interactions
from llmrec.data.splits import NO_TARGET, Split


def measure_leakage(state: Interactions, split: Split) -> dict[str, float] | None:
    """Compare the time of each test target with the times of the training events of the other users.

    A user's own training events are never later than the target, so every later event is another user's.

    Returns:
        None where the data has no timestamps, else
        `targets_with_later_training`: share of test targets with at least one later training event;
        `training_after_target`: mean over test targets of the share of all training events that are later.
    """
    if not state.has_time:
        return None
    times = state.events[Columns.TIMESTAMP].to_numpy()
    position = np.arange(len(times)) - np.repeat(split.starts[:-1], np.diff(split.starts))
    training = np.sort(times[position < np.repeat(split.train_length, np.diff(split.starts))])
    users = split.test_target != NO_TARGET
    targets = times[split.starts[:-1][users] + split.test_target[users]]
    later = len(training) - np.searchsorted(training, targets, side="right")
    return {
        "targets_with_later_training": float(np.mean(later > 0)),
        "training_after_target": float(np.mean(later) / len(training)),
    }


def leakage_message(measured: dict[str, float] | None) -> str | None:
    """Say in a sentence what leave-one-out means for the figures; nothing where no target comes before training."""
    text = "leave-one-out leaks across users: training holds events later than other users' test targets"
    if measured is None:
        return f"{text} (how many cannot be measured: the data has no timestamps)"
    if measured["targets_with_later_training"] == 0:
        return None
    targets, share = measured["targets_with_later_training"], measured["training_after_target"]
    return (
        f"{text} ({targets:.1%} of the test targets have later training events, on average {share:.1%} of "
        "them all); split 'global-time' does not"
    )
