"""Amazon Reviews 2018 in its raw format."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec.data.errors import DataError
from llmrec.data.readers import read_source
from llmrec.data.source import Source

RATINGS = ["B001,A1,5.0,1325376000", "B002,A1,4.0,1325462400", "B001,A2,1.0,1325376000"]
META = [
    {"category": ["Office"], "title": "Gel Pen &amp; Refill", "asin": "B001", "also_buy": ["B002"], "price": "$1"},
    {"asin": "B002", "title": "", "details": {"Weight": "1 lb"}},
    {"asin": "B003"},
]


@pytest.fixture
def source(tmp_path: Path, write_lines) -> Source:
    write_lines(tmp_path / "meta_Office.json.gz", META)
    return Source(write_lines(tmp_path / "Office.csv", RATINGS), None, domain="Office", data_format="amazon-2018")


def fails(source: Source, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        read_source(source)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["Office.csv", "Office.csv.gz"])
def test_reads_ratings_and_finds_the_metadata(source: Source, tmp_path: Path, write_lines, name: str) -> None:
    path = write_lines(tmp_path / name, RATINGS)
    raw = read_source(Source(path, None, domain="Office", data_format="amazon-2018"))
    columns = ["user_id", "item_id", "timestamp", "rating"]
    assert raw.interactions.frame.select(columns).rows() == [
        ("A1", "B001", 1325376000000, 5.0),
        ("A1", "B002", 1325462400000, 4.0),
        ("A2", "B001", 1325376000000, 1.0),
    ]
    assert raw.items.frame.rows() == [
        ("B001", "Gel Pen &amp; Refill", "Office"),
        ("B002", "", "Office"),
        ("B003", None, "Office"),
    ]


def test_metadata_elsewhere(source: Source, tmp_path: Path, write_lines) -> None:
    items = write_lines(tmp_path / "other.json", META[:1])
    raw = read_source(Source(source.interactions, items, "Office", "amazon-2018"))
    assert raw.items.frame.height == 1
    assert raw.description["items"] == "other.json"


def test_errors_name_file_and_line(source: Source, tmp_path: Path, write_lines) -> None:
    meta = tmp_path / "meta_Office.json.gz"
    write_lines(meta, [META[0], "{'asin': 'B002', 'title': 'old'}"])
    fails(source, "meta_Office.json.gz, line 2", "not JSON", "Python literal")
    write_lines(meta, [*META, '{"asin": "B004", "title": "cut'])
    fails(source, "meta_Office.json.gz, line 4", "not JSON")
    write_lines(meta, [META[0], {"title": "no id"}])
    fails(source, "meta_Office.json.gz, line 2, column 'item_id'", "null or blank id")
    write_lines(meta, [{"title": "no id"}])
    fails(source, "meta_Office.json.gz, column 'asin'", "missing column")
    meta.write_bytes(b"not gzip")
    fails(source, "meta_Office.json.gz", "broken gzip")
    meta.unlink()
    fails(source, "Office.csv", "no items file beside it (looked for meta_Office.json.gz, meta_Office.json)")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("B001,A1,5.0,soon", "line 2, column 'timestamp': unreadable time 'soon'"),
        ("B001,A1,5.0", "line 2, column 'timestamp': unreadable time None"),
        ("B001,,5.0,1325376000", "line 2, column 'user_id': null or blank id"),
        (",A1,5.0,1325376000", "line 2, column 'item_id': null or blank id"),
        ("B001,A1,5.0,1,2", "line 2 (5 fields instead of 4)"),
    ],
)
def test_broken_rating(source: Source, write_lines, line: str, message: str) -> None:
    write_lines(source.interactions, [RATINGS[0], line, RATINGS[1]])
    fails(source, "Office.csv", message)


def test_domain_is_needed(source: Source) -> None:
    fails(Source(source.interactions, data_format="amazon-2018"), "needs the name of its domain", "DOMAIN=PATH")
