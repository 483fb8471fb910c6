"""Readers: one module a raw format, all giving the same pair of tables (`llmrec.data.source.RawData`)."""

from __future__ import annotations

from collections.abc import Callable

from llmrec.data.errors import DataError
from llmrec.data.readers import amazon2018, amazon2023, movielens, tables
from llmrec.data.source import RawData, Source

READERS: dict[str, Callable[[Source], RawData]] = {
    "tables": tables.read,
    "amazon-2018": amazon2018.read,
    "amazon-2023": amazon2023.read,
    "movielens": movielens.read,
}


def read_source(source: Source) -> RawData:
    """Read one source with the reader of its format.

    Raises:
        DataError: unknown format, or anything wrong in the files.
    """
    reader = READERS.get(source.data_format)
    if reader is None:
        raise DataError(f"unknown data format '{source.data_format}'", advice=f"Choose one of {', '.join(READERS)}")
    return reader(source)
