"""Separated text with or without a header, read as strings; errors name the line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from llmrec.data.errors import DataError
from llmrec.data.readers.files import open_binary, read_all, require_file


def read_csv(
    path: Path,
    *,
    header: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    separator: str = ",",
) -> pl.DataFrame:
    """Read a CSV file (plain or gzip) with every value as a string; an empty field is null.

    Args:
        path: the file.
        header: names of the columns of a file that has no header line.
        columns: the columns wanted, in any order; None reads all.
        separator: one character.

    Raises:
        DataError: no such file, broken gzip, not UTF-8, a line with too many fields, no rows.
    """
    require_file(path)
    content: Path | bytes = read_all(path) if path.suffix.lower() == ".gz" else path
    try:
        frame = pl.read_csv(
            content,
            has_header=header is None,
            new_columns=None if header is None else list(header),
            schema=None if header is None else dict.fromkeys(header, pl.String),
            columns=None if columns is None else list(columns),
            separator=separator,
            infer_schema=False,
        )
    except pl.exceptions.NoDataError as error:
        raise DataError("the file is empty", file=path) from error
    except pl.exceptions.PolarsError as error:
        where = _first_ragged_line(path, separator, None if header is None else len(header))
        raise DataError(
            f"not readable as CSV ({str(error).splitlines()[0]})",
            file=path,
            where=where,
            advice="Every line needs the same number of fields, in UTF-8, with quotes that close",
        ) from error
    return _without_blank_lines(frame, path, separator, has_header=header is None)


def _without_blank_lines(frame: pl.DataFrame, path: Path, separator: str, *, has_header: bool) -> pl.DataFrame:
    """Drop the rows of nulls that polars makes of blank lines; a line of separators only stays, to be refused."""
    if not frame.select(pl.all_horizontal(pl.all().is_null()).any()).item():
        return frame
    fields = [bool(fields) for _, fields in _records(path, separator)]
    if has_header:
        fields = fields[fields.index(True) + 1 :]
    # Where the two parsers count differently, the rows of nulls stay, and the check of the ids names the first.
    return frame.filter(pl.Series(fields)) if len(fields) == frame.height else frame


def read_header(path: Path, separator: str = ",") -> list[str]:
    """Read the column names from the first line of a CSV file."""
    for _, fields in _records(path, separator):
        if fields:
            return fields
    raise DataError("the file is empty", file=path)


def line_of_record(path: Path, record: int, *, has_header: bool, separator: str = ",") -> str:
    """Find the 1-based line on which a 0-based record starts; quoted fields may span lines."""
    index = -2 if has_header else -1
    for line, fields in _records(path, separator):
        index += bool(fields)
        if fields and index == record:
            return f"line {line}"
    return f"record {record + 1}"


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Give (1-based number of its first line, fields) of each record, the header and blank lines included."""
    with open_binary(path) as stream:
        reader = csv.reader(
            io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=""), delimiter=separator
        )
        start = 1
        for fields in reader:
            yield start, fields
            start = reader.line_num + 1


def _first_ragged_line(path: Path, separator: str, width: int | None) -> str | None:
    try:
        for line, fields in _records(path, separator):
            if width is None:
                width = len(fields) or None
            elif len(fields) > width:
                return f"line {line} ({len(fields)} fields instead of {width})"
    except csv.Error as error:
        return str(error)
    return None
