"""JSON Lines, plain or gzip, read in blocks of text to spare memory; errors name the line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from tqdm.auto import tqdm

from llmrec.data.errors import DataError
from llmrec.data.readers.files import open_binary

BLOCK_BYTES = 64 * 1024 * 1024


def read_json_lines(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> pl.DataFrame:
    """Read some keys of a file with one JSON object a line; every value becomes a string, an absent one null.

    Args:
        path: the file, plain or `.gz`. Blank lines are skipped.
        columns: keys that at least one line must have.
        optional: keys that become columns only if some line has them.

    Raises:
        DataError: no such file, broken gzip, a line that is not a JSON object, a key that no line has, no
            lines.
    """
    keys = [*columns, *optional]
    frames = [_parse_block(path, first_line, block, keys) for first_line, block in _blocks(path)]
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(keys, pl.String))
    if frame.is_empty():
        raise DataError("the file is empty", file=path)
    absent = {key for key in keys if frame[key].null_count() == frame.height}
    for key in columns:
        if key in absent:
            raise DataError("missing column: no line has this key", file=path, column=key)
    return frame.drop([key for key in optional if key in absent])


def line_of_record(path: Path, record: int) -> str:
    """Find the 1-based line of a 0-based record; blank lines are not records."""
    seen = -1
    with open_binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            seen += bool(line.strip())
            if seen == record:
                return f"line {number}"
    return f"record {record + 1}"


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give (1-based number of the first line, whole lines) until the file ends."""
    first_line = 1
    with open_binary(path) as stream, tqdm(desc=path.name, unit="B", unit_scale=True, delay=1.0) as progress:
        while block := stream.read(BLOCK_BYTES):
            block += stream.readline()
            yield first_line, block
            first_line += block.count(b"\n")
            progress.update(len(block))


def _parse_block(path: Path, first_line: int, block: bytes, keys: Sequence[str]) -> pl.DataFrame:
    schema = dict.fromkeys(keys, pl.String)
    if not block.strip():
        return pl.DataFrame(schema=schema)
    try:
        return pl.read_ndjson(io.BytesIO(block), schema=schema).select(keys)
    except pl.exceptions.PolarsError:
        # Either a line is broken, and the standard library tells which one, or the fast parser is stricter
        # than the standard library's (NaN, for example), and the standard library's result stands.
        rows = [
            {key: _as_text(parsed.get(key)) for key in keys}
            for offset, line in enumerate(block.split(b"\n"))
            if line.strip()
            for parsed in [_parse_line(path, first_line + offset, line)]
        ]
        return pl.DataFrame(rows, schema=schema)


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError as error:
        advice = "Repair or remove the line"
        if line.lstrip().startswith(b"{'"):
            advice = "A Python literal, as in old metadata files: rewrite the file as JSON, one object a line"
        raise DataError(f"not JSON ({error})", file=path, where=f"line {number}", advice=advice) from error
    if not isinstance(parsed, dict):
        raise DataError("not a JSON object", file=path, where=f"line {number}", advice="Repair or remove the line")
    return parsed


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", errors="replace").decode("utf-8")
