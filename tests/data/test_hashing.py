"""Canonical bytes and multiset hashes."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from llmrec.data.hashing import Fingerprint, rows_digest, string_keys


def strings(values, kind=None):
    return Fingerprint().strings(values if kind is None else pa.array(values, kind)).hexdigest()


def lists(values):
    return Fingerprint().lists(values).hexdigest()


def test_bytes_are_the_documented_ones() -> None:
    label = len(b"int64 2").to_bytes(8, "little") + b"int64 2"
    expected = hashlib.sha256(label + np.array([1, 3], "<i8").tobytes() + "aäb".encode()[:4]).hexdigest()
    assert strings(["a", "äb"], pa.string()) == expected


def test_arrow_types_and_chunks_do_not_count() -> None:
    whole = pa.array(["a", "", "bcd", "é"])
    assert strings(whole) == strings(whole.cast(pa.large_string()))
    assert strings(whole) == strings(pa.chunked_array([whole[:1], whole[1:1], whole[1:]]))
    nested = pa.array([[1, 2], [], [3]], pa.list_(pa.int32()))
    assert lists(nested) == lists(pa.chunked_array([nested[:1], nested[1:]]))
    assert lists(nested) == lists(nested.cast(pa.large_list(pa.int64())))


def test_where_one_value_ends_counts() -> None:
    assert strings(["ab", "c"], pa.string()) != strings(["a", "bc"], pa.string())
    kind = pa.list_(pa.int32())
    assert lists(pa.array([[1, 2], [3]], kind)) != lists(pa.array([[1], [2, 3]], kind))
    assert lists(pa.array([[1, 2]], kind)) != lists(pa.array([[2, 1]], kind))


def test_nulls_are_refused() -> None:
    with pytest.raises(ValueError, match="nulls"):
        strings(["a", None], pa.string())


def test_string_keys_are_those_of_blake2b() -> None:
    expected = int.from_bytes(hashlib.blake2b("né".encode(), digest_size=8).digest(), "little")
    assert string_keys(["né", ""])[0] == expected


def slow_rows_digest(rows) -> str:
    """splitmix64 with Python's integers; rows are (key, …, time)."""

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    lanes = []
    for seed in (0x243F6A8885A308D3, 0x13198A2E03707344):
        total = 0
        for row in rows:
            mixed = seed
            for part in row:
                mixed = mix(mixed ^ part % 2**64)
            total += mixed
        lanes.append(total % 2**64)
    return f"{lanes[0]:016x}{lanes[1]:016x}"


@pytest.mark.parametrize("block", [7, 1000, 10**6])
def test_rows_digest_equals_the_slow_twin(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("llmrec.data.hashing.CHUNK_ROWS", block)
    keys, others = string_keys(f"id{i}" for i in range(50)), string_keys("abc")
    rng = np.random.default_rng(0)
    codes, more, times = rng.integers(50, size=1000), rng.integers(3, size=1000), rng.integers(-5, 10**12, size=1000)
    rows = [(int(keys[a]), int(others[b]), int(t)) for a, b, t in zip(codes, more, times, strict=True)]
    assert rows_digest([(codes, keys), (more, others)], times) == slow_rows_digest(rows)
