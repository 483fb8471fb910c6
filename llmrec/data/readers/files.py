"""Opening raw files: plain or gzip, with errors that name the file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from llmrec.data.errors import DataError


def require_file(path: Path) -> Path:
    """Return `path`, or raise DataError where it is not a file."""
    if path.is_dir():
        raise DataError("is a folder, not a file", file=path, advice="Give the path of the file itself")
    if not path.is_file():
        raise DataError("file not found", file=path, advice="Check the path")
    return path


def suffix_of(path: Path) -> str:
    """Give the file type without `.gz`: `reviews.jsonl.gz` and `reviews.jsonl` are both `.jsonl`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def gzip_errors(path: Path) -> Iterator[None]:
    """Turn the three ways in which a gzip file can be broken into one DataError."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"broken gzip file ({error})",
            file=path,
            advice="The download is probably cut short: fetch it again",
        ) from error


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or gzip file for reading bytes."""
    require_file(path)
    if path.suffix.lower() != ".gz":
        with path.open("rb") as stream:
            yield stream
        return
    with gzip_errors(path), gzip.open(path, "rb") as unpacked:
        yield cast("IO[bytes]", unpacked)


def read_all(path: Path) -> bytes:
    """Read a whole plain or gzip file."""
    with open_binary(path) as stream:
        return stream.read()
