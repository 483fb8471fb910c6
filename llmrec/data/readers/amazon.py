"""What the two Amazon readers share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.readers import json_lines
from llmrec.data.readers.validate import check_ids
from llmrec.data.source import RawTable, Source


def require_domain(source: Source) -> str:
    """Return the domain's name, which the files do not hold.

    Raises:
        DataError: none was given.
    """
    if not source.domain:
        raise DataError(
            f"a source of format '{source.data_format}' needs the name of its domain",
            file=source.interactions,
            advice="Write the source as DOMAIN=PATH",
        )
    return source.domain


def find_beside(path: Path, names: Sequence[str]) -> Path:
    """Find the first of some file names in the folder of `path`.

    Raises:
        DataError: none of them is there.
    """
    for name in names:
        if (path.parent / name).is_file():
            return path.parent / name
    raise DataError(
        f"no items file beside it (looked for {', '.join(names)})",
        file=path,
        advice="Give the items file yourself",
    )


def read_meta(path: Path, item_key: str, domain: str) -> RawTable:
    """Read ids and titles from a metadata file of one JSON object a line.

    Raises:
        DataError: a missing file, broken gzip, a broken line, a null or blank id.
    """
    frame = json_lines.read_json_lines(path, [item_key], optional=[Columns.TITLE])
    title = pl.col(Columns.TITLE) if Columns.TITLE in frame.columns else pl.lit(None, dtype=pl.String)
    frame = frame.select(
        pl.col(item_key).alias(Columns.ITEM), title.alias(Columns.TITLE), pl.lit(domain).alias(Columns.DOMAIN)
    )
    table = RawTable(frame, str(path), partial(json_lines.line_of_record, path))
    check_ids(table, Columns.ITEM)
    return table
