"""Any pair of CSV, Parquet or JSON Lines tables."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from llmrec.data.errors import DataError
from llmrec.data.readers import read_source
from llmrec.data.source import Source
from llmrec.data.titles import clean_titles

EVENTS = pl.DataFrame(
    {
        "user_id": ["u1", "u1", "u,2"],
        "item_id": ["i1", "i2", "i1"],
        "timestamp": [1_600_000_000, 1_600_000_001, 1_600_000_002],
    }
)
ITEMS = pl.DataFrame({"item_id": ["i1", "i2"], "title": ['A "quoted", title', None], "domain": ["A", "B"]})


def write(frame: pl.DataFrame, path: Path) -> Path:
    """Write a table in the format that the file name says."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    {
        ".csv": frame.write_csv,
        ".tsv": lambda p: frame.write_csv(p, separator="\t"),
        ".parquet": frame.write_parquet,
        ".jsonl": frame.write_ndjson,
    }[plain.suffix](plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def pair(folder: Path, events: pl.DataFrame = EVENTS, items: pl.DataFrame = ITEMS, suffix: str = ".csv") -> Source:
    return Source(write(events, folder / f"events{suffix}"), write(items, folder / f"items{suffix}"))


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet", ".jsonl", ".jsonl.gz"])
def test_every_format_gives_the_same_tables(tmp_path: Path, suffix: str) -> None:
    raw = read_source(pair(tmp_path, suffix=suffix))
    assert raw.interactions.frame.rows() == [
        ("u1", "i1", 1_600_000_000_000),
        ("u1", "i2", 1_600_000_001_000),
        ("u,2", "i1", 1_600_000_002_000),
    ]
    assert raw.interactions.frame.columns == ["user_id", "item_id", "timestamp"]
    assert raw.items.frame.rows() == [("i1", 'A "quoted", title', "A"), ("i2", None, "B")]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl.gz"])
def test_column_mapping(tmp_path: Path, suffix: str) -> None:
    events = EVENTS.rename({"user_id": "reviewer", "item_id": "sku", "timestamp": "when"})
    items = ITEMS.rename({"item_id": "parent", "title": "name"}).drop("domain")
    source = pair(tmp_path, events, items, suffix)
    columns = {"user_id": "reviewer", "item_id": "sku", "timestamp": "when", "items.item_id": "parent", "title": "name"}
    raw = read_source(Source(source.interactions, source.items, domain="Shop", columns=columns))
    assert raw.interactions.frame["user_id"].to_list() == ["u1", "u1", "u,2"]
    assert raw.items.frame.rows() == [("i1", 'A "quoted", title', "Shop"), ("i2", None, "Shop")]


def test_whole_number_ids_become_text(tmp_path: Path) -> None:
    events = EVENTS.with_columns(pl.Series("user_id", [7, 7, 8]))
    assert read_source(pair(tmp_path, events, suffix=".parquet")).interactions.frame["user_id"].to_list() == list("778")


@pytest.mark.parametrize(
    ("values", "unit", "milliseconds"),
    [
        (pl.Series([1_600_000_000, 1_600_000_001, 0]), "s", [1_600_000_000_000, 1_600_000_001_000, 0]),
        (pl.Series([1_600_000_000_123, 5, 0]), "ms", [1_600_000_000_123, 5, 0]),
        (pl.Series([1.6e9, 0.25, 2.0]), "s", [1_600_000_000_000, 250, 2000]),
        (pl.Series(["1970-01-02", "1970-01-01T00:00:01Z", "1970-01-01 00:00:02.5"]), "s", [86_400_000, 1000, 2500]),
        (pl.Series(["1970-01-01T02:00:00+02:00", "7", "8.5"]), "s", [0, 7000, 8500]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_times(tmp_path: Path, values: pl.Series, unit: str, milliseconds: list[int], suffix: str) -> None:
    source = pair(tmp_path, EVENTS.with_columns(values.alias("timestamp")), suffix=suffix)
    raw = read_source(Source(source.interactions, source.items, time_unit=unit))
    assert raw.interactions.frame["timestamp"].to_list() == milliseconds


def test_parquet_dates(tmp_path: Path) -> None:
    days = pl.Series("timestamp", ["2020-01-01", "2020-01-02", "2020-01-03"]).str.to_date()
    for column in (days, days.cast(pl.Datetime("ns")), days.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")):
        raw = read_source(pair(tmp_path, EVENTS.with_columns(column), suffix=".parquet"))
        assert raw.interactions.frame["timestamp"].diff().to_list() == [None, 86_400_000, 86_400_000]
        assert raw.interactions.frame["timestamp"][0] == 1_577_836_800_000


def test_order_instead_of_time(tmp_path: Path) -> None:
    raw = read_source(pair(tmp_path, EVENTS.rename({"timestamp": "order"})))
    assert raw.interactions.frame.schema["order"] == pl.Int64
    assert "timestamp" not in raw.interactions.frame.columns


def fails(source: Source, *parts: str) -> None:
    """Reading must fail with a message that holds all parts, the file's name first."""
    with pytest.raises(DataError) as caught:
        read_source(source)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_missing_column(tmp_path: Path, suffix: str) -> None:
    fails(pair(tmp_path, EVENTS.drop("user_id"), suffix=suffix), f"events{suffix}", "missing column", "'user_id'")
    fails(pair(tmp_path, items=ITEMS.drop("title"), suffix=suffix), f"items{suffix}", "missing column", "'title'")
    fails(pair(tmp_path, items=ITEMS.drop("domain"), suffix=suffix), f"items{suffix}", "missing column", "'domain'")
    fails(pair(tmp_path, EVENTS.drop("timestamp"), suffix=suffix), f"events{suffix}", "neither 'timestamp' nor 'order'")


def test_missing_mapped_column_names_what_there_is(tmp_path: Path) -> None:
    source = pair(tmp_path)
    mapped = Source(source.interactions, source.items, columns={"timestamp": "when"})
    fails(mapped, "events.csv", "column 'when'", "The file has user_id, item_id, timestamp")
    fails(Source(source.interactions, source.items, columns={"usr": "x"}), "unknown name in the column mapping: usr")


@pytest.mark.parametrize("bad", [None, "", "  "])
@pytest.mark.parametrize(
    ("suffix", "where"), [(".csv", "line 3"), (".csv.gz", "line 3"), (".jsonl", "line 2"), (".parquet", "row 2")]
)
def test_null_or_blank_id(tmp_path: Path, suffix: str, where: str, bad: str | None) -> None:
    events = EVENTS.with_columns(pl.Series("user_id", ["u1", bad, "u2"], dtype=pl.String))
    fails(
        pair(tmp_path, events, suffix=suffix),
        f"events{suffix}, {where}, column 'user_id'",
        "null or blank id (1 in all)",
    )
    items = ITEMS.with_columns(pl.Series("item_id", ["i1", bad], dtype=pl.String))
    fails(pair(tmp_path, items=items, suffix=suffix), f"items{suffix}, {where}, column 'item_id'", "null or blank id")


@pytest.mark.parametrize("bad", ["yesterday", "2020-13-01", None, "inf"])
@pytest.mark.parametrize(("suffix", "where"), [(".csv", "line 4"), (".jsonl", "line 3"), (".parquet", "row 3")])
def test_unreadable_time(tmp_path: Path, suffix: str, where: str, bad: str | None) -> None:
    events = EVENTS.with_columns(pl.Series("timestamp", ["1", "2020-01-01", bad], dtype=pl.String))
    fails(
        pair(tmp_path, events, suffix=suffix),
        f"events{suffix}, {where}, column 'timestamp'",
        f"unreadable time {bad!r}",
    )


def test_milliseconds_read_as_seconds_are_refused(tmp_path: Path) -> None:
    events = EVENTS.with_columns(pl.col("timestamp") * 1000)
    fails(pair(tmp_path, events), "events.csv", "no seconds since 1970", "set the time unit to 'ms'")


def test_unreadable_order(tmp_path: Path) -> None:
    events = EVENTS.drop("timestamp").with_columns(pl.Series("order", ["0", "first", "2"]))
    fails(pair(tmp_path, events), "events.csv, line 3, column 'order'", "unreadable whole number 'first'")


def test_line_numbers_count_lines_inside_quotes_and_blank_lines(tmp_path: Path) -> None:
    source = pair(tmp_path)
    source.interactions.write_text('user_id,item_id,timestamp\n"two\nlines",i1,1\n\nu2,i1,never\n')
    fails(source, "events.csv, line 5, column 'timestamp'", "'never'")
    source.interactions.write_text('{"user_id":"u","item_id":"i1","timestamp":1}\n\n{"user_id":"u","item_id":"i1"}\n')
    source.interactions.rename(tmp_path / "events.jsonl")
    fails(Source(tmp_path / "events.jsonl", source.items), "events.jsonl, line 3, column 'timestamp'")


def test_line_with_too_many_fields(tmp_path: Path) -> None:
    source = pair(tmp_path)
    source.interactions.write_text("user_id,item_id,timestamp\nu1,i1,1\nu1,i1,2,3\n")
    fails(source, "events.csv", "line 3 (4 fields instead of 3)")


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl.gz"])
def test_broken_gzip(tmp_path: Path, suffix: str) -> None:
    source = pair(tmp_path, suffix=suffix)
    whole = source.interactions.read_bytes()
    source.interactions.write_bytes(whole[:-10])
    fails(source, f"events{suffix}", "broken gzip file")
    source.interactions.write_bytes(b"plain text, no gzip")
    fails(source, f"events{suffix}", "broken gzip file")
    source.interactions.write_bytes(whole[:12] + bytes(8) + whole[20:])
    fails(source, f"events{suffix}", "broken gzip file")


@pytest.mark.parametrize("line", ['{"user_id": "u1", "item_id"', "null", "[1]", "plain"])
def test_broken_json_line(tmp_path: Path, line: str) -> None:
    source = pair(tmp_path, suffix=".jsonl.gz")
    lines = gzip.decompress(source.interactions.read_bytes()).decode().splitlines()
    source.interactions.write_bytes(gzip.compress("\n".join([*lines, "", line]).encode()))
    fails(source, "events.jsonl.gz, line 5", "not")


@pytest.mark.parametrize(
    ("line", "title"), [('"half \\ud83d"', "half"), ('"price", "price": NaN', "price"), ('["a"]', '["a"]')]
)
def test_json_that_parsers_disagree_on_does_not_stop_the_reader(tmp_path: Path, line: str, title: str) -> None:
    source = pair(tmp_path, suffix=".jsonl")
    source.items.write_text(f'{{"item_id": "i1", "domain": "A", "title": {line}}}\n')
    assert clean_titles(read_source(source).items.frame["title"]).to_list() == [title]


def test_blank_lines_are_skipped_and_lines_of_separators_are_not(tmp_path: Path) -> None:
    source = pair(tmp_path)
    source.interactions.write_text("user_id,item_id,timestamp\n\nu1,i1,1\n\n\nu2,i1,2\n\n\n")
    assert read_source(source).interactions.frame["user_id"].to_list() == ["u1", "u2"]
    source.interactions.write_text("user_id,item_id,timestamp\n\nu1,i1,1\n,,\nu2,i1,2\n\n\n")
    fails(source, "events.csv, line 4, column 'user_id'", "null or blank id (1 in all)")


def test_empty_and_absent_files(tmp_path: Path) -> None:
    source = pair(tmp_path)
    source.interactions.write_text("")
    fails(source, "events.csv", "empty")
    fails(Source(tmp_path / "no.csv", source.items), "no.csv", "file not found")
    fails(Source(tmp_path, source.items), "is a folder")
    fails(Source(source.interactions), "no items file given")
    (tmp_path / "events.xlsx").write_text("x")
    fails(Source(tmp_path / "events.xlsx", source.items), "unknown type of table '.xlsx'")
    (tmp_path / "bad.parquet").write_text("no parquet")
    fails(Source(tmp_path / "bad.parquet", source.items), "bad.parquet", "not a readable Parquet file")
    fails(Source(source.interactions, source.items, data_format="xml"), "unknown data format 'xml'", "movielens")


def test_domains_must_agree(tmp_path: Path) -> None:
    events = EVENTS.with_columns(pl.Series("domain", ["A", "A", "A"]))
    fails(pair(tmp_path, events), "events.csv, line 3, column 'domain'", "item 'i2' has domain 'A' here")
    agreeing = EVENTS.with_columns(pl.Series("domain", ["A", "B", "A"]))
    assert read_source(pair(tmp_path, agreeing)).interactions.frame.columns == ["user_id", "item_id", "timestamp"]
    source = pair(tmp_path)
    fails(Source(source.interactions, source.items, domain="A"), "items.csv, line 3, column 'domain'", "domain 'B'")


def test_json_lines_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrec.data.readers.json_lines.BLOCK_BYTES", 100)
    events = pl.concat([EVENTS] * 20)
    source = pair(tmp_path, events, suffix=".jsonl")
    raw = read_source(source)
    assert raw.interactions.frame["user_id"].to_list() == events["user_id"].to_list()
    with source.interactions.open("a") as stream:
        stream.write("{broken\n")
    fails(source, "events.jsonl, line 61", "not JSON")
