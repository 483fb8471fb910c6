"""What goes into `prepare`: sources on disk, and the raw tables that the readers make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl


def row_number(record: int) -> str:
    """Locate a 0-based record in a table without lines: its 1-based row number."""
    return f"row {record + 1}"


@dataclass(frozen=True)
class Source:
    """Files of one source, usually one domain.

    Attributes:
        interactions: file with the interactions.
        items: file with the item titles; readers that know the naming of their raw format find it themselves.
        domain: name of the domain; None where the tables have a `domain` column.
        data_format: `tables`, `amazon-2018`, `amazon-2023` or `movielens`.
        columns: for `tables`, our column name to the name in the file; the prefix `items.` means the items
            file only.
        time_unit: for `tables`, the unit of numeric timestamps: `s` or `ms`.
    """

    interactions: Path
    items: Path | None = None
    domain: str | None = None
    data_format: str = "tables"
    columns: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = "s"

    def describe(self) -> dict[str, object]:
        """Describe the source for the data card; folders stay out, being private to a machine."""
        return {
            "format": self.data_format,
            "domain": self.domain,
            "interactions": self.interactions.name,
            "items": None if self.items is None else self.items.name,
        }


@dataclass(frozen=True)
class RawTable:
    """A table as read, whose record i (0-based) is still row i of the file.

    Attributes:
        frame: the columns we use, under our names.
        file: the path, or a label for a table that was made in memory.
        locate: turns a record number into `line 17` or `row 17`; may reread the file, called on errors only.
    """

    frame: pl.DataFrame
    file: str
    locate: Callable[[int], str] = row_number

    def with_frame(self, frame: pl.DataFrame) -> RawTable:
        """Replace the columns; the rows must be the same."""
        return replace(self, frame=frame)


@dataclass(frozen=True)
class RawData:
    """Checked tables of one source.

    Attributes:
        interactions: user_id (String), item_id (String), and at least one of timestamp (Int64, milliseconds
            since 1970-01-01 UTC) and order (Int64, position within a user and domain); rating (Float64) where
            known.
        items: item_id (String), title (String, may be null), domain (String).
        description: what the data card says about the source.
    """

    interactions: RawTable
    items: RawTable
    description: Mapping[str, object] = field(default_factory=dict)
