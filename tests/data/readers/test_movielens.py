"""MovieLens in both of its raw formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec.data.errors import DataError
from llmrec.data.readers import read_source
from llmrec.data.source import Source

DAT_RATINGS = "1::10::5::978300760\n1::20::3::978302109\n2::10::4.5::978301968\n"
DAT_MOVIES = '10::Amélie (Le fabuleux destin) (2001)::Comedy|Romance\n20::"Quoted" Title, The: a::Drama\n'
CSV_RATINGS = "userId,movieId,rating,timestamp\n1,10,5.0,978300760\n1,20,3.0,978302109\n2,10,4.5,978301968\n"
CSV_MOVIES = (
    'movieId,title,genres\n10,Amélie (Le fabuleux destin) (2001),Comedy|Romance\n20,"""Quoted"" Title, The: a",Drama\n'
)


@pytest.fixture
def dat(tmp_path: Path) -> Path:
    (tmp_path / "ratings.dat").write_text(DAT_RATINGS, encoding="latin-1")
    (tmp_path / "movies.dat").write_text(DAT_MOVIES, encoding="latin-1")
    return tmp_path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    (tmp_path / "ratings.csv").write_text(CSV_RATINGS, encoding="utf-8")
    (tmp_path / "movies.csv").write_text(CSV_MOVIES, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", ["dat", "csv"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_both_formats_give_the_same_tables(kind: str, as_folder: bool, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    path = folder if as_folder else folder / f"ratings.{kind}"
    raw = read_source(Source(path, data_format="movielens"))
    assert raw.interactions.frame.select("user_id", "item_id", "timestamp", "rating").rows() == [
        ("1", "10", 978300760000, 5.0),
        ("1", "20", 978302109000, 3.0),
        ("2", "10", 978301968000, 4.5),
    ]
    assert raw.items.frame.select("item_id", "title", "domain").rows() == [
        ("10", "Amélie (Le fabuleux destin) (2001)", "Movies"),
        ("20", '"Quoted" Title, The: a', "Movies"),
    ]
    assert raw.description["items"] == f"movies.{kind}"


def test_domain_can_be_named(csv: Path) -> None:
    assert set(read_source(Source(csv, domain="Film", data_format="movielens")).items.frame["domain"]) == {"Film"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2::10::5::then", "ratings.dat, line 5, column 'timestamp': unreadable time 'then'"),
        ("2::10::5", "ratings.dat, line 5, column 'timestamp': unreadable time None"),
        ("::10::5::1", "ratings.dat, line 5, column 'user_id': null or blank id"),
        ("2::10::5::1::6", "ratings.dat, line 5: not 4 fields separated by '::'"),
    ],
)
def test_broken_line(dat: Path, line: str, message: str) -> None:
    (dat / "ratings.dat").write_text(f"{DAT_RATINGS}\n{line}\n", encoding="latin-1")
    with pytest.raises(DataError) as caught:
        read_source(Source(dat, data_format="movielens"))
    assert message in str(caught.value)


def test_missing_files(dat: Path, tmp_path: Path) -> None:
    (dat / "movies.dat").unlink()
    with pytest.raises(DataError, match="no items file beside it .looked for movies.dat"):
        read_source(Source(dat, data_format="movielens"))
    (dat / "ratings.dat").unlink()
    with pytest.raises(DataError, match="looked for ratings.dat, ratings.csv"):
        read_source(Source(dat, data_format="movielens"))
