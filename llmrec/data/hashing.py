"""Fingerprints of data, the same on every machine and with every version of polars, pyarrow and datasets.

Two kinds: `Fingerprint` hashes the final histories and catalogue, where order counts, with sha256 over
canonical bytes. `rows_digest` hashes the interactions between two steps as a multiset, so that the order of
rows does not count and ten million rows need no sort. It guards against mix-ups, not against a forger.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

CHUNK_ROWS = 1_000_000
# Odd constants of splitmix64 (Steele, Lea, Flood 2014) and two unrelated seeds, one for each 64-bit lane.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LANES = (np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344))


class Fingerprint:
    """A running sha256 over named columns; variable-length values are preceded by their lengths."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def label(self, text: str) -> Fingerprint:
        """Add a label, so that equal bytes under different names differ."""
        encoded = text.encode("utf-8")
        self._sha.update(len(encoded).to_bytes(8, "little") + encoded)
        return self

    def numbers(self, values: np.ndarray) -> Fingerprint:
        """Add a one-dimensional array of integers, as little-endian int64."""
        return self._numbers([values])

    def strings(self, values: pa.Array | pa.ChunkedArray) -> Fingerprint:
        """Add strings without nulls: their lengths in bytes, then the UTF-8 bytes."""
        chunks = [chunk.cast(pa.large_binary()) for chunk in _chunks(values)]
        self.numbers(_lengths(chunks))
        for chunk in chunks:
            offsets = _offsets(chunk)
            if len(chunk):
                self._sha.update(memoryview(chunk.buffers()[2])[offsets[0] : offsets[-1]])
        return self

    def lists(self, values: pa.Array | pa.ChunkedArray) -> Fingerprint:
        """Add lists of integers without nulls: their lengths, then the values."""
        chunks = [chunk.cast(pa.large_list(pa.int32())) for chunk in _chunks(values)]
        self.numbers(_lengths(chunks))
        return self._numbers([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])

    def _numbers(self, parts: list[np.ndarray]) -> Fingerprint:
        """Add numbers that may lie in several arrays; where one ends and the next begins does not count."""
        self.label(f"int64 {sum(map(len, parts))}")
        for part in parts:
            for start in range(0, len(part), CHUNK_ROWS):
                self._sha.update(np.ascontiguousarray(part[start : start + CHUNK_ROWS], dtype="<i8").data)
        return self

    def hexdigest(self) -> str:
        """Give the sha256 as 64 hexadecimal digits."""
        return self._sha.hexdigest()


def string_keys(values: Iterable[str]) -> np.ndarray:
    """Hash each string to a uint64: the first 8 bytes of its blake2b, little-endian."""
    digests = b"".join(hashlib.blake2b(value.encode("utf-8"), digest_size=8).digest() for value in values)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def rows_digest(keys: Iterable[tuple[np.ndarray, np.ndarray]], times: np.ndarray) -> str:
    """Hash rows as a multiset: a sum of mixed 128-bit row hashes, independent of the order of rows.

    Args:
        keys: pairs (codes, keys of the codes): for each column the row's codes and the uint64 keys they point
            to.
        times: int64 array, one value a row.

    Returns:
        32 hexadecimal digits.
    """
    columns = list(keys)
    total = [0, 0]
    for start in range(0, len(times), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        for lane, seed in enumerate(_LANES):
            mixed = np.full(len(times[rows]), seed, dtype=np.uint64)
            for codes, table in columns:
                mixed = _mix(mixed ^ table[codes[rows]])
            mixed = _mix(mixed ^ times[rows].astype(np.int64).view(np.uint64))
            total[lane] = (total[lane] + int(mixed.sum(dtype=np.uint64))) % 2**64
    return f"{total[0]:016x}{total[1]:016x}"


def _mix(values: np.ndarray) -> np.ndarray:
    values = values + _GAMMA
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def _chunks(values: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    if values.null_count:
        raise ValueError("a column with nulls has no canonical bytes")
    return list(values.chunks) if isinstance(values, pa.ChunkedArray) else [values]


def _offsets(chunk: pa.Array) -> np.ndarray:
    everything = np.frombuffer(chunk.buffers()[1], dtype=np.int64)
    return everything[chunk.offset : chunk.offset + len(chunk) + 1]


def _lengths(chunks: list[pa.Array]) -> np.ndarray:
    assert sys.byteorder == "little", "arrow buffers are read as little-endian"
    parts = [np.diff(_offsets(chunk)) for chunk in chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
