"""The catalogue: the one table of ids, titles and domains; everything else uses its row numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError

SCHEMA = {
    Columns.ITEM: pl.String,
    Columns.TITLE: pl.String,
    Columns.DOMAIN: pl.String,
    Columns.TRAIN_COUNT: pl.Int64,
}


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All items that can be recommended. The item index is the row number, from 0.

    Attributes:
        item_ids: unique ids.
        titles: the text of each item.
        domains: the name of each item's domain.
        train_count: int64 (items), interactions in the training split.
    """

    item_ids: list[str]
    titles: list[str]
    domains: list[str]
    train_count: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        lengths = {len(self.item_ids), len(self.titles), len(self.domains), len(self.train_count)}
        if len(lengths) != 1:
            raise DataError(f"columns of a catalogue differ in length: {sorted(lengths)}")
        if len(self._index) != len(self.item_ids):
            repeated = next(item for row, item in enumerate(self.item_ids) if self._index[item] != row)
            raise DataError(f"item id '{repeated}' occurs twice in the catalogue", column=Columns.ITEM)

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.item_ids)}

    @cached_property
    def domain_names(self) -> list[str]:
        """Names of the domains, sorted."""
        return sorted(set(self.domains))

    @cached_property
    def domain_codes(self) -> np.ndarray:
        """Domain of each item as an index into `domain_names`, int32 (items)."""
        codes = {name: code for code, name in enumerate(self.domain_names)}
        return np.fromiter((codes[name] for name in self.domains), dtype=np.int32, count=len(self))

    def items_of_domain(self, name: str) -> np.ndarray:
        """Give the indices of a domain's items, ascending, int64.

        Raises:
            DataError: no such domain.
        """
        if name not in self.domain_names:
            raise DataError(f"no domain '{name}' in the catalogue", advice=f"It has {', '.join(self.domain_names)}")
        return np.flatnonzero(self.domain_codes == self.domain_names.index(name)).astype(np.int64)

    def index_of(self, item_id: str) -> int:
        """Give the index of an item.

        Raises:
            DataError: no such item.
        """
        if item_id not in self._index:
            raise DataError(f"no item '{item_id}' in the catalogue of {len(self)} items", column=Columns.ITEM)
        return self._index[item_id]

    def add_items(self, titles: Sequence[str], item_ids: Sequence[str], domains: Sequence[str]) -> Catalogue:
        """Make a new catalogue with items appended that training has not seen (train_count 0).

        Raises:
            DataError: columns of different length, or an id that is already there.
        """
        known = [item for item in item_ids if item in self._index]
        if known:
            raise DataError(f"item '{known[0]}' is already in the catalogue", advice="Give new items new ids")
        return Catalogue(
            item_ids=[*self.item_ids, *item_ids],
            titles=[*self.titles, *titles],
            domains=[*self.domains, *domains],
            train_count=np.concatenate([self.train_count, np.zeros(len(item_ids), dtype=np.int64)]),
        )

    def to_frame(self) -> pl.DataFrame:
        """Give the catalogue as a table: item_id, title, domain, train_count."""
        columns = [self.item_ids, self.titles, self.domains, self.train_count]
        return pl.DataFrame(dict(zip(SCHEMA, columns, strict=True)), schema=SCHEMA)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, file: str | os.PathLike[str] = "catalogue") -> Catalogue:
        """Make a catalogue of a table with the columns item_id, title, domain, train_count.

        Raises:
            DataError: a missing column, or a null.
        """
        for name in SCHEMA:
            if name not in frame.columns:
                raise DataError("missing column", file=file, column=name)
            if frame[name].null_count():
                row = int(frame[name].is_null().arg_true()[0])
                raise DataError("null value", file=file, where=f"row {row + 1}", column=name)
        frame = frame.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
        return cls(
            item_ids=frame[Columns.ITEM].to_list(),
            titles=frame[Columns.TITLE].to_list(),
            domains=frame[Columns.DOMAIN].to_list(),
            train_count=frame[Columns.TRAIN_COUNT].to_numpy(),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the catalogue as Parquet, beside first and then renamed."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            self.to_frame().write_parquet(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Read a catalogue that `save` wrote.

        Raises:
            DataError: no such file, not Parquet, a missing column or a null.
        """
        try:
            frame = pl.read_parquet(Path(path))
        except FileNotFoundError as error:
            raise DataError("file not found", file=path) from error
        except pl.exceptions.PolarsError as error:
            raise DataError(f"not a readable Parquet file ({error})", file=path) from error
        return cls.from_frame(frame, path)
