"""The log of steps: counts and a hash after each one, so that a difference is found at its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmrec.data.interactions import Interactions

HEADER = ("step", "interactions", "users", "items", "hash")
WIDTHS = (36, 14, 12, 10, 18)


class StepLog:
    """Collects one row a step, and prints it as it comes.

    Attributes:
        rows: dicts with step, interactions, users, items (those with an interaction) and hash.
    """

    def __init__(self, echo: Callable[[str], None] | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._echo = echo
        if echo is not None:
            echo(format_row(HEADER))

    def record(self, step: str, state: Interactions) -> Interactions:
        """Record the state after a step, and give it back."""
        row = {
            "step": step,
            "interactions": state.events.height,
            "users": len(state.users),
            "items": state.active_items(),
            "hash": state.digest(),
        }
        self.rows.append(row)
        if self._echo is not None:
            self._echo(format_row(tuple(row.values())))
        return state


def format_row(values: tuple[Any, ...]) -> str:
    """Lay out a row for the terminal: text to the left, counts to the right with thousands separated."""
    cells = []
    for value, width in zip(values, WIDTHS, strict=True):
        if isinstance(value, int):
            cells.append(f"{value:,}".rjust(width))
        elif value in HEADER[1:4]:
            cells.append(str(value).rjust(width))
        else:
            cells.append(str(value).ljust(width))
    return " ".join(cells).rstrip()
