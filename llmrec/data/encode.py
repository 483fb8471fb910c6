"""From raw tables of several sources to one `Interactions`: ids become codes, sources merge over user ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.interactions import ITEM_CODE, USER_CODE, Interactions
from llmrec.data.source import RawData, RawTable
from llmrec.data.titles import clean_titles

MISSING_ITEMS = ("error", "untitled")


@dataclass(frozen=True)
class EncodedSource:
    """One source with its strings replaced by codes into its own sorted users and items."""

    users: pl.Series
    items: pl.DataFrame
    events: pl.DataFrame
    file: str


def encode_source(raw: RawData, missing_items: str = "error") -> EncodedSource:
    """Check one source against itself and replace ids by codes.

    Args:
        raw: tables of a reader.
        missing_items: what an interaction means whose item has no row in the items table: `error`, or
            `untitled` (the item joins the catalogue without a title; only where the source has one domain).

    Raises:
        DataError: no interactions, an item without a row, one item id with two titles or two domains.
    """
    if raw.interactions.frame.is_empty():
        raise DataError("no interactions", file=raw.interactions.file)
    items = _one_row_an_item(raw.items)
    frame = raw.interactions.frame
    users = frame[Columns.USER].unique().sort()
    used = frame.select(pl.col(Columns.ITEM).unique())
    missing = used.join(items.select(Columns.ITEM), on=Columns.ITEM, how="anti")[Columns.ITEM]
    if len(missing):
        items = _with_missing(raw, items, missing, missing_items)
    rest = [name for name in (Columns.TIMESTAMP, Columns.ORDER, Columns.RATING) if name in frame.columns]
    events = frame.select(
        pl.Series(USER_CODE, _codes(frame[Columns.USER], users)),
        pl.Series(ITEM_CODE, _codes(frame[Columns.ITEM], items[Columns.ITEM])),
        *rest,
    )
    return EncodedSource(users, items, events, raw.interactions.file)


def merge_sources(sources: Iterable[EncodedSource]) -> Interactions:
    """Merge sources over user ids; item ids must be unique over all of them.

    Raises:
        DataError: one item id in two domains, or sources of which only some have timestamps.
    """
    parts = list(sources)
    _check_same_times(parts)
    users = pl.concat([part.users for part in parts]).unique().sort()
    items = pl.concat([part.items for part in parts]).sort(Columns.DOMAIN, Columns.ITEM)
    _check_one_domain(items)
    codes = items.select(Columns.ITEM, pl.int_range(pl.len(), dtype=pl.UInt32).alias(ITEM_CODE))
    merged = []
    for part in parts:
        user_numbers = _codes(part.users, users)
        item_numbers = part.items.join(codes, on=Columns.ITEM, how="left", maintain_order="left")[ITEM_CODE].to_numpy()
        merged.append(
            part.events.with_columns(
                pl.Series(USER_CODE, user_numbers[part.events[USER_CODE].to_numpy()]),
                pl.Series(ITEM_CODE, item_numbers[part.events[ITEM_CODE].to_numpy()]),
            )
        )
    return Interactions.build(users, items, pl.concat(merged, how="diagonal"))


def _codes(values: pl.Series, table: pl.Series) -> np.ndarray:
    """Number each value by its row in `table`, which holds every value once."""
    return values.cast(pl.Enum(table)).to_physical().cast(pl.UInt32).to_numpy()


def _one_row_an_item(table: RawTable) -> pl.DataFrame:
    """Drop repeated rows of an item; a second title counts only if it still differs after cleaning."""
    frame = table.frame.select(Columns.ITEM, Columns.TITLE, Columns.DOMAIN).with_row_index("record")
    repeated = frame.filter(pl.col(Columns.ITEM).is_duplicated())
    if repeated.is_empty():
        return frame.drop("record")
    cleaned = repeated.with_columns(clean_titles(repeated[Columns.TITLE])).sort("record")
    first = cleaned.group_by(Columns.ITEM, maintain_order=True).agg(
        pl.col(Columns.DOMAIN).first().alias("first_domain"),
        pl.col(Columns.TITLE).drop_nulls().first().alias("first"),
    )
    compared = cleaned.join(first, on=Columns.ITEM, how="left", maintain_order="left")
    for column, other in ((Columns.DOMAIN, "first_domain"), (Columns.TITLE, "first")):
        clash = compared.filter(pl.col(column) != pl.col(other))
        if clash.height:
            row = clash.row(0, named=True)
            raise DataError(
                f"item '{row[Columns.ITEM]}' has two {column}s, {row[other]!r} and {row[column]!r} "
                f"({clash[Columns.ITEM].n_unique()} such items)",
                file=table.file,
                where=table.locate(row["record"]),
                column=column,
                advice="Keep one of the two rows",
            )
    # A row with a title wins over an untitled row of the same item, whichever comes first.
    order = frame.with_columns((clean_titles(frame[Columns.TITLE]).is_null()).alias("untitled"))
    kept = order.sort("untitled", "record").unique(Columns.ITEM, keep="first", maintain_order=True)
    return kept.sort("record").drop("record", "untitled")


def _with_missing(raw: RawData, items: pl.DataFrame, missing: pl.Series, policy: str) -> pl.DataFrame:
    if policy not in MISSING_ITEMS:
        raise DataError(f"unknown policy for missing items '{policy}'", advice=f"Choose one of {MISSING_ITEMS}")
    names = items[Columns.DOMAIN].unique()
    if policy == "error" or len(names) != 1:
        ids = raw.interactions.frame[Columns.ITEM]
        rows = ids.to_frame().with_row_index("record").join(missing.to_frame(), on=Columns.ITEM, how="semi")
        record = int(rows.select(pl.col("record").min()).item())
        advice = "Add the row, remove the interaction, or set missing items to 'untitled'"
        if policy != "error":
            advice = "Such an item has no domain: read one domain a source, or add the row"
        raise DataError(
            f"item '{ids[record]}' has no row in the catalogue {raw.items.file} ({len(missing)} such items)",
            file=raw.interactions.file,
            where=raw.interactions.locate(record),
            column=Columns.ITEM,
            advice=advice,
        )
    rows = pl.DataFrame({Columns.ITEM: missing}).with_columns(
        pl.lit(None, dtype=pl.String).alias(Columns.TITLE), pl.lit(names[0]).alias(Columns.DOMAIN)
    )
    return pl.concat([items, rows])


def _check_same_times(parts: list[EncodedSource]) -> None:
    for name in (Columns.TIMESTAMP, Columns.ORDER):
        having = [part for part in parts if name in part.events.columns]
        lacking = [part for part in parts if name not in part.events.columns]
        if having and lacking:
            raise DataError(
                f"this source has no '{name}', but {having[0].file} has",
                file=lacking[0].file,
                column=name,
                advice="All sources need the same kind of time: map the column, or leave it out everywhere",
            )


def _check_one_domain(items: pl.DataFrame) -> None:
    repeated = items.filter(pl.col(Columns.ITEM).is_duplicated())
    if repeated.height:
        item = repeated[Columns.ITEM][0]
        domains = repeated.filter(pl.col(Columns.ITEM) == item)[Columns.DOMAIN].to_list()
        raise DataError(
            f"item id '{item}' occurs in two sources, of domains '{domains[0]}' and '{domains[1]}' "
            f"({repeated[Columns.ITEM].n_unique()} such ids)",
            column=Columns.ITEM,
            advice="An item has one domain: drop it from the other source, or prefix its ids with the domain",
        )
