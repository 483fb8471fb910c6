"""Errors and warnings of the data part."""

from __future__ import annotations

import os


class DataError(ValueError):
    """Bad input data: says what is wrong, in which file, column and row or item, and what to do about it."""

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        where: str | None = None,
        column: str | None = None,
        advice: str | None = None,
    ) -> None:
        """Build the message.

        Args:
            problem: what is wrong, as a clause without a full stop.
            file: the file (or the label of an in-memory table) that holds the problem.
            where: row, line or item inside the file, for example `line 17`.
            column: name of the column.
            advice: what the reader of the message can do, as a clause without a full stop.
        """
        places = [str(file)] if file is not None else []
        if where is not None:
            places.append(where)
        if column is not None:
            places.append(f"column '{column}'")
        message = f"{', '.join(places)}: {problem}" if places else problem
        super().__init__(f"{message}. {advice}." if advice else f"{message}.")
        self.file = None if file is None else str(file)
        self.where = where
        self.column = column


class LeakageWarning(UserWarning):
    """The chosen split lets training data hold events that happened after a test target."""
