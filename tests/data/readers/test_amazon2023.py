"""Amazon Reviews 2023 in its raw format."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec.data.errors import DataError
from llmrec.data.readers import read_source
from llmrec.data.source import Source

REVIEWS = [
    {"rating": 5.0, "title": "Great", "text": "yes", "images": [], "asin": "B00X", "parent_asin": "B001",
     "user_id": "AE1", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True},
    {"rating": 3.0, "title": "Meh", "text": "a\nb", "images": [{"u": 1}], "asin": "B002", "parent_asin": "B002",
     "user_id": "AE1", "timestamp": 1588687728924, "helpful_vote": 0, "verified_purchase": True},
]  # fmt: skip
META = [
    {"main_category": "Tools", "title": "Torque Wrench", "parent_asin": "B001", "images": [{"large": "x"}]},
    {"main_category": None, "title": None, "parent_asin": "B002", "details": {"a": {"b": 1}}},
]


@pytest.fixture
def source(tmp_path: Path, write_lines) -> Source:
    write_lines(tmp_path / "meta_Tools.jsonl.gz", META)
    path = write_lines(tmp_path / "Tools.jsonl.gz", REVIEWS)
    return Source(path, domain="Tools", data_format="amazon-2023")


def test_reads_milliseconds_and_parent_asin(source: Source) -> None:
    raw = read_source(source)
    assert raw.interactions.frame.select("user_id", "item_id", "timestamp", "rating").rows() == [
        ("AE1", "B001", 1588687728923, 5.0),
        ("AE1", "B002", 1588687728924, 3.0),
    ]
    assert raw.items.frame.rows() == [("B001", "Torque Wrench", "Tools"), ("B002", None, "Tools")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**REVIEWS[0], "timestamp": "soon"}, "line 2, column 'timestamp': unreadable time 'soon'"),
        ({**REVIEWS[0], "user_id": None}, "line 2, column 'user_id': null or blank id"),
        ({**REVIEWS[0], "parent_asin": " "}, "line 2, column 'item_id': null or blank id"),
        ('{"user_id": "AE1"', "line 2: not JSON"),
    ],
)
def test_broken_review(source: Source, write_lines, line: object, message: str) -> None:
    write_lines(source.interactions, [REVIEWS[0], line])
    with pytest.raises(DataError, match=r"Tools.jsonl.gz") as caught:
        read_source(source)
    assert message in str(caught.value)


def test_missing_key(source: Source, write_lines) -> None:
    write_lines(source.interactions, [{key: value for key, value in REVIEWS[0].items() if key != "parent_asin"}])
    with pytest.raises(DataError, match="missing column: no line has this key") as caught:
        read_source(source)
    assert "column 'parent_asin'" in str(caught.value)
