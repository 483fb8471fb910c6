"""Reader for any pair of CSV, Parquet or JSON Lines tables, with a column mapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.readers import csv_files, json_lines
from llmrec.data.readers.files import require_file, suffix_of
from llmrec.data.readers.validate import check_ids, first_true, parse_integers, parse_timestamps
from llmrec.data.source import RawData, RawTable, Source, row_number

ITEMS_PREFIX = "items."
CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")


def read(source: Source) -> RawData:
    """Read a pair of tables.

    The interactions need `user_id`, `item_id` and `timestamp` or `order`; the items `item_id`, `title` and,
    unless the source names its domain, `domain`. A `domain` column of the interactions must agree with the
    items'. A `rating` column is used to tell exact duplicates apart, and for nothing else.

    Raises:
        DataError: a missing file or column, a null or blank id, an unreadable time, tables that disagree.
    """
    if source.items is None:
        raise DataError(
            "no items file given for these interactions",
            file=source.interactions,
            advice="Give the file with item_id, title and domain",
        )
    for_interactions, for_items = _split_mapping(source.columns)
    optional = [Columns.TIMESTAMP, Columns.ORDER, Columns.DOMAIN, Columns.RATING]
    interactions = read_table(source.interactions, [Columns.USER, Columns.ITEM], optional, for_interactions)
    needed, optional = [Columns.ITEM, Columns.TITLE, Columns.DOMAIN], []
    if source.domain is not None:
        needed, optional = [Columns.ITEM, Columns.TITLE], [Columns.DOMAIN]
    items = _give_domain(read_table(source.items, needed, optional, for_items), source.domain)
    for table, column in (
        (interactions, Columns.USER),
        (interactions, Columns.ITEM),
        (items, Columns.ITEM),
        (items, Columns.DOMAIN),
    ):
        check_ids(table, column)
    interactions = _parse_times(interactions, source.time_unit)
    if Columns.RATING in interactions.frame.columns:
        rating = interactions.frame[Columns.RATING].cast(pl.Float64, strict=False)
        interactions = interactions.with_frame(interactions.frame.with_columns(rating))
    return RawData(_check_domains_agree(interactions, items, source.domain), items, source.describe())


def read_table(path: Path, required: list[str], optional: list[str], mapping: Mapping[str, str]) -> RawTable:
    """Read the wanted columns of one table, under our names.

    Args:
        path: `.csv`, `.tsv`, `.jsonl`, `.ndjson` or `.json` (all also `.gz`), or `.parquet`.
        required: our names of columns that must be there.
        optional: our names of columns that are taken where they exist; one that is mapped must exist.
        mapping: our name to the file's name.

    Raises:
        DataError: unknown type of file, missing column, or a file that cannot be read.
    """
    path = require_file(Path(path))
    suffix = suffix_of(path)
    locate: Callable[[int], str]
    if suffix in CSV_SUFFIXES:
        available = csv_files.read_header(path, CSV_SUFFIXES[suffix])
    elif suffix in JSON_SUFFIXES:
        available = []
    elif suffix in PARQUET_SUFFIXES and path.suffix.lower() != ".gz":
        try:
            available = list(pl.read_parquet_schema(path))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"not a readable Parquet file ({error})", file=path) from error
    else:
        raise DataError(
            f"unknown type of table '{''.join(path.suffixes)}'",
            file=path,
            advice="Use .csv, .tsv, .jsonl (each also .gz) or .parquet",
        )

    names = {ours: mapping.get(ours, ours) for ours in (*required, *optional)}
    if suffix in JSON_SUFFIXES:
        must = [names[ours] for ours in names if ours in required or ours in mapping]
        may = [names[ours] for ours in names if names[ours] not in must]
        frame = json_lines.read_json_lines(path, list(dict.fromkeys(must)), optional=list(dict.fromkeys(may)))
        locate = partial(json_lines.line_of_record, path)
        available = frame.columns
    for ours, theirs in names.items():
        if theirs not in available and (ours in required or ours in mapping):
            raise DataError(
                "missing column",
                file=path,
                column=theirs,
                advice=f"The file has {', '.join(available)}: map '{ours}' to one of them",
            )
    names = {ours: theirs for ours, theirs in names.items() if theirs in available}
    wanted = list(dict.fromkeys(names.values()))
    if suffix in CSV_SUFFIXES:
        separator = CSV_SUFFIXES[suffix]
        frame = csv_files.read_csv(path, columns=wanted, separator=separator)
        locate = partial(_line_of_csv, path, separator)
    elif suffix in PARQUET_SUFFIXES:
        frame = pl.read_parquet(path, columns=wanted)
        locate = row_number
    frame = frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())
    for ours in (Columns.USER, Columns.ITEM, Columns.DOMAIN, Columns.TITLE):
        if ours in frame.columns:
            frame = _as_text(path, frame, ours)
    return RawTable(frame, str(path), locate)


def _split_mapping(columns: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Share a column mapping out over the two tables: title and domain are columns of the items."""
    known = (
        Columns.USER,
        Columns.ITEM,
        Columns.TIMESTAMP,
        Columns.ORDER,
        Columns.RATING,
        Columns.TITLE,
        Columns.DOMAIN,
    )
    unknown = sorted({key.removeprefix(ITEMS_PREFIX) for key in columns}.difference(known))
    if unknown:
        raise DataError(
            f"unknown name in the column mapping: {', '.join(unknown)}",
            advice=f"Map from one of {', '.join(known)}",
        )
    of_items = (Columns.ITEM, Columns.TITLE, Columns.DOMAIN)
    shared = {key: name for key, name in columns.items() if not key.startswith(ITEMS_PREFIX)}
    own = {key.removeprefix(ITEMS_PREFIX): name for key, name in columns.items() if key not in shared}
    for_interactions = {key: name for key, name in shared.items() if key not in (Columns.TITLE, Columns.DOMAIN)}
    return for_interactions, {key: name for key, name in shared.items() if key in of_items} | own


def _parse_times(interactions: RawTable, time_unit: str) -> RawTable:
    found = {Columns.TIMESTAMP, Columns.ORDER}.intersection(interactions.frame.columns)
    if not found:
        raise DataError(
            "missing column: neither 'timestamp' nor 'order'",
            file=interactions.file,
            column=Columns.TIMESTAMP,
            advice="Map one of the two to a column of the file",
        )
    if Columns.TIMESTAMP in found:
        interactions = parse_timestamps(interactions, time_unit)
    return parse_integers(interactions, Columns.ORDER) if Columns.ORDER in found else interactions


def _line_of_csv(path: Path, separator: str, record: int) -> str:
    return csv_files.line_of_record(path, record, has_header=True, separator=separator)


def _as_text(path: Path, frame: pl.DataFrame, column: str) -> pl.DataFrame:
    kind = frame.schema[column]
    if not (kind in (pl.String, pl.Categorical, pl.Null) or isinstance(kind, pl.Enum) or kind.is_integer()):
        raise DataError(f"has type {kind}, not text or whole numbers", file=path, column=column)
    return frame.with_columns(pl.col(column).cast(pl.String))


def _give_domain(items: RawTable, domain: str | None) -> RawTable:
    if domain is None:
        return items
    if Columns.DOMAIN in items.frame.columns:
        # A table of several domains read for one of them keeps that one's rows only; the record numbers of
        # messages would then be wrong, so it is refused instead.
        other = items.frame[Columns.DOMAIN].fill_null("") != domain
        if other.any():
            record = first_true(other)
            raise DataError(
                f"domain {items.frame[Columns.DOMAIN][record]!r} in the source of domain '{domain}'",
                file=items.file,
                where=items.locate(record),
                column=Columns.DOMAIN,
                advice="Leave out the domain's name here, and choose domains after reading",
            )
    return items.with_frame(items.frame.with_columns(pl.lit(domain).alias(Columns.DOMAIN)))


def _check_domains_agree(interactions: RawTable, items: RawTable, domain: str | None) -> RawTable:
    """An item's domain is what the items table says; a domain column of the interactions must agree."""
    if Columns.DOMAIN not in interactions.frame.columns:
        return interactions
    if domain is not None:
        other = interactions.frame[Columns.DOMAIN].ne_missing(domain)
    else:
        known = items.frame.unique(Columns.ITEM, keep="first", maintain_order=True)
        joined = interactions.frame.select(Columns.ITEM, Columns.DOMAIN).join(
            known.select(Columns.ITEM, pl.col(Columns.DOMAIN).alias("known")),
            on=Columns.ITEM,
            how="left",
            maintain_order="left",
        )
        other = joined.select(
            (pl.col(Columns.DOMAIN) != pl.col("known")).fill_null(pl.col(Columns.DOMAIN).is_null())
        ).to_series()
    if other.any():
        record = first_true(other)
        row = interactions.frame.row(record, named=True)
        raise DataError(
            f"item '{row[Columns.ITEM]}' has domain {row[Columns.DOMAIN]!r} here, but not in the items table",
            file=interactions.file,
            where=interactions.locate(record),
            column=Columns.DOMAIN,
            advice=f"An item has one domain: make both tables agree ({items.file})",
        )
    return interactions.with_frame(interactions.frame.drop(Columns.DOMAIN))
