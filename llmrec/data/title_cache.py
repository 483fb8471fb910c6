"""Token ids of a catalogue's titles in an Arrow file: written once, then mapped into memory by every process.

One column, `token_ids` (large_list<int32>), one row an item, in the Arrow IPC file format. The schema's metadata holds
the key, which names everything that the ids depend on, and a checksum of the contents.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec.data.hashing import Fingerprint

logger = logging.getLogger(__name__)

FORMAT = 1
COLUMN = "token_ids"
KEY, CHECKSUM = b"llmrec_key", b"llmrec_crc32"

Arrays = tuple[np.ndarray, np.ndarray]
"""Token ids of all titles one after the other, (tokens,) int32, and where each title starts, (items + 1,) int64."""


def cache_key(processor: Any, titles: Sequence[str]) -> str | None:
    """Hash of everything that decides the token ids of the titles: tokenizer, separator, limit and the titles.

    Returns:
        64 hexadecimal digits; None for a tokenizer without a description of its own (one not of the `tokenizers`
        library), whose ids must not be kept.
    """
    tokenizer, config = processor.tokenizer, processor.config
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        description = json.loads(backend.to_str())  # type: ignore[union-attr]
        library = version("tokenizers")
    except (AttributeError, ValueError, PackageNotFoundError):
        return None
    # How the last call was cut and padded is kept in there too, and means nothing to the next one.
    for setting in ("truncation", "padding"):
        description.pop(setting, None)
    layout = {
        "format": FORMAT,
        "library": library,
        "class": type(tokenizer).__name__,
        "truncation_side": getattr(tokenizer, "truncation_side", None),
        "split_special_tokens": getattr(tokenizer, "split_special_tokens", None),
        "item_separator": config.item_separator,
        "max_title_tokens": config.max_title_tokens,
        "tokenizer": description,
    }
    fingerprint = Fingerprint().label("llmrec title tokens").label(json.dumps(layout, sort_keys=True))
    return fingerprint.strings(pa.array(titles, type=pa.large_string())).hexdigest()


def cache_file(folder: Path, key: str) -> Path:
    """Where the ids of a key lie in a folder."""
    return folder / f"title_tokens-{key[:16]}.arrow"


def read(path: Path, key: str, titles: int) -> Arrays | None:
    """Map a file into memory.

    Args:
        path: the file.
        key: what it must have been made of.
        titles: number of titles.

    Returns:
        Views of the file's memory, nothing copied; None where there is no such file, or, with a warning, where it is
        damaged.
    """
    if not path.is_file():
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
        metadata = table.schema.metadata or {}
        if metadata.get(KEY) != key.encode():
            raise ValueError("it was made of other titles, or by another tokenizer")
        (column,) = table.column(COLUMN).chunks
        flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
        if len(offsets) != titles + 1 or offsets[0] != 0 or offsets[-1] != len(flat):
            raise ValueError(f"it does not hold {titles} titles")
        if metadata.get(CHECKSUM) != _checksum(flat, offsets):
            raise ValueError("its checksum is wrong")
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
        logger.warning("%s cannot be used and is made anew: %s", path, error)
        return None
    return flat, offsets


def write(path: Path, key: str, arrays: Arrays) -> bool:
    """Write a file, beside its place first: other processes find it whole or not at all.

    Returns:
        Whether it could be written; if not, a line in the log says why.
    """
    flat, offsets = arrays
    column = pa.LargeListArray.from_arrays(pa.array(offsets, type=pa.int64()), pa.array(flat, type=pa.int32()))
    metadata = {KEY: key.encode(), CHECKSUM: _checksum(flat, offsets)}
    schema = pa.schema([pa.field(COLUMN, column.type)], metadata=metadata)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([column], schema=schema))
        os.replace(partial, path)
    except OSError as error:
        logger.info("title tokens are kept in memory only: %s cannot be written (%s)", path, error)
        with suppress(OSError):
            partial.unlink()
        return False
    return True


def _checksum(flat: np.ndarray, offsets: np.ndarray) -> bytes:
    """Of the bytes of both arrays, little-endian: Arrow itself notices a missing end, but no changed number."""
    both = zlib.crc32(np.ascontiguousarray(flat, dtype="<i4").data)
    return f"{zlib.crc32(np.ascontiguousarray(offsets, dtype='<i8').data, both):08x}".encode()
