"""Checks and conversions that every reader shares: ids that are there, times that can be read."""

from __future__ import annotations

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.source import RawTable

# 10^11 seconds lie in the year 5138, 10^11 milliseconds in 1973.
SECONDS_LIMIT = 100_000_000_000


def check_ids(table: RawTable, column: str) -> None:
    """Refuse a null or blank id.

    Raises:
        DataError: names the first bad row and how many there are.
    """
    bad = table.frame.select(
        pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "").fill_null(True)
    ).to_series()
    if bad.any():
        raise DataError(
            f"null or blank id ({bad.sum()} in all)",
            file=table.file,
            where=table.locate(first_true(bad)),
            column=column,
            advice="Repair or remove these rows",
        )


def parse_timestamps(table: RawTable, unit: str) -> RawTable:
    """Turn the column `timestamp` into Int64 milliseconds since 1970-01-01 UTC.

    Numbers are read in `unit`; dates and ISO 8601 text are read as UTC unless they carry an offset.

    Args:
        table: with a column `timestamp` of any type.
        unit: `s` or `ms`, of numbers.

    Raises:
        DataError: a value that cannot be read, or seconds so large that they must be milliseconds.
    """
    if unit not in ("s", "ms"):
        raise DataError(f"unknown time unit '{unit}'", advice="Choose 's' or 'ms'")
    column = table.frame[Columns.TIMESTAMP]
    factor = 1000 if unit == "s" else 1
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        times = column.dt.epoch("ms")
    else:
        numbers = _to_integer(column, factor)
        present = numbers.drop_nulls()
        if unit == "s" and len(present) and float(present.median() or 0) > SECONDS_LIMIT * 1000:  # type: ignore[arg-type]
            raise DataError(
                f"numbers such as {column[0]} are no seconds since 1970",
                file=table.file,
                column=Columns.TIMESTAMP,
                advice="If they are milliseconds, set the time unit to 'ms'",
            )
        times = numbers
        if column.dtype == pl.String and numbers.null_count():
            times = pl.select(pl.coalesce(numbers, _parse_text(column))).to_series()
    _check_readable(table, Columns.TIMESTAMP, column, times, "time")
    return _replace(table, Columns.TIMESTAMP, times)


def parse_integers(table: RawTable, column: str) -> RawTable:
    """Turn a column into Int64.

    Raises:
        DataError: a value that is not a whole number.
    """
    values = table.frame[column]
    numbers = values.cast(pl.Int64, strict=False)
    _check_readable(table, column, values, numbers, "whole number")
    return _replace(table, column, numbers)


def first_true(mask: pl.Series) -> int:
    """Give the 0-based position of the first true value."""
    return int(mask.arg_true()[0])


def _to_integer(column: pl.Series, factor: int) -> pl.Series:
    whole = column.cast(pl.Int64, strict=False) if not column.dtype.is_float() else pl.Series([None], dtype=pl.Int64)
    if len(whole) == len(column) and not whole.null_count():
        return whole * factor
    fraction = column.cast(pl.Float64, strict=False)
    finite = pl.when(fraction.is_finite()).then(fraction * factor)
    numbers = pl.select(finite.round().cast(pl.Int64, strict=False)).to_series()
    return numbers


def _parse_text(column: pl.Series) -> pl.Series:
    text = column.str.strip_chars()
    milliseconds = pl.Datetime("ms", "UTC")
    parsed = [
        text.str.to_datetime("%+", time_unit="ms", time_zone="UTC", strict=False),
        text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ms", time_zone="UTC", strict=False),
        text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="ms", time_zone="UTC", strict=False),
        text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
    ]
    return pl.select(pl.coalesce(part.cast(milliseconds) for part in parsed)).to_series().cast(pl.Int64)


def _check_readable(table: RawTable, name: str, before: pl.Series, after: pl.Series, kind: str) -> None:
    bad = after.is_null()
    if bad.any():
        record = first_true(bad)
        raise DataError(
            f"unreadable {kind} {before[record]!r} ({bad.sum()} in all)",
            file=table.file,
            where=table.locate(record),
            column=name,
            advice="Repair or remove these rows",
        )


def _replace(table: RawTable, column: str, values: pl.Series) -> RawTable:
    return table.with_frame(table.frame.with_columns(values.alias(column)))
