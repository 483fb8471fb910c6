"""A Trainer that takes turns: what the sides that are Trainers have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from transformers import PrinterCallback, TrainerCallback


class Turns(Protocol):
    """What a `Gate` offers to a trainer, and what stands in for one where a side runs alone."""

    def begin(self, **facts: Any) -> bool:
        """The trainer is ready; returns with its first turn."""
        ...

    def step(self, **counts: float) -> bool:
        """A step has been taken; False if it was the last."""
        ...


# The learning rate falls over this many steps, of which a benchmark sees the first few.
MAX_STEPS = 10_000


def prepare(
    trainer: Any, gate: Turns, count: Callable[[dict[str, Any]], dict[str, float]], facts: dict[str, Any]
) -> Any:
    """Make a trainer take turns and print nothing.

    Args:
        trainer: a `transformers.Trainer` that has not begun.
        gate: tells it when to run.
        count: what to count in a batch.
        facts: what the side says of itself when it is ready.

    Returns:
        The `TurnCallback`, whose `steps` are what was counted.
    """
    collator = CountingCollator(trainer.data_collator, count)
    trainer.data_collator = collator
    turns = TurnCallback(gate, collator, facts)
    trainer.add_callback(turns)
    trainer.remove_callback(PrinterCallback)
    return turns


class CountingCollator:
    """Passes batches on and counts them, first in first out: a loader is a batch ahead of the step.

    Args:
        collator: whose batches.
        count: what to count in one.
    """

    def __init__(self, collator: Any, count: Callable[[dict[str, Any]], dict[str, float]]) -> None:
        self.collator = collator
        self.count = count
        self.counts: deque[dict[str, float]] = deque()

    def __call__(self, features: Any) -> Any:
        batch = self.collator(features)
        self.counts.append(self.count(batch))
        return batch

    def __getattr__(self, name: str) -> Any:
        # Trainers look at fields of their collators.
        return getattr(self.__dict__["collator"], name)


class TurnCallback(TrainerCallback):
    """Stands still at the start and after every step until the gate lets it go on.

    A step is timed from the end of the one before, so the making of its batch counts.
    """

    def __init__(self, gate: Turns, collator: CountingCollator, facts: dict[str, Any]) -> None:
        self.gate = gate
        self.collator = collator
        self.facts = facts
        self.steps: list[dict[str, float]] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            # A parent that wants no turn at all is no use of this benchmark: the first step is always taken.
            self.gate.begin(**self.facts)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        counts = self.collator.counts.popleft()
        self.steps.append(counts)
        if not self.gate.step(**counts):
            control.should_training_stop = True
        return control
