"""Reader for MovieLens.

`ratings.dat` and `movies.dat` (`::` between fields, Latin-1), or `ratings.csv` and `movies.csv`.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.readers import tables
from llmrec.data.readers.amazon import find_beside
from llmrec.data.readers.files import read_all, require_file, suffix_of
from llmrec.data.readers.validate import check_ids, parse_timestamps
from llmrec.data.source import RawData, RawTable, Source

DEFAULT_DOMAIN = "Movies"
DAT_SEPARATOR = "::"
# polars takes separators of one byte; the unit separator occurs in no title.
UNIT_SEPARATOR = "\x1f"
RATING_COLUMNS = (Columns.USER, Columns.ITEM, Columns.RATING, Columns.TIMESTAMP)
MOVIE_COLUMNS = (Columns.ITEM, Columns.TITLE, "genres")
CSV_COLUMNS = {Columns.USER: "userId", Columns.ITEM: "movieId"}


def read(source: Source) -> RawData:
    """Read ratings and movies; no rating threshold.

    `source.interactions` is the ratings file or the folder that holds it; where no items file is given, the
    movies file beside it is taken. The domain is `Movies` unless the source names another.

    Raises:
        DataError: a missing file or column, a broken line, a null or blank id, an unreadable time.
    """
    path = Path(source.interactions)
    if path.is_dir():
        path = find_beside(path / "ratings", ["ratings.dat", "ratings.csv", "ratings.csv.gz"])
    require_file(path)
    items_path = source.items or find_beside(path, [path.name.replace("ratings", "movies", 1)])
    domain = source.domain or DEFAULT_DOMAIN
    source = replace(source, interactions=path, items=items_path, domain=domain)
    if suffix_of(path) != ".dat":
        raw = tables.read(replace(source, columns=CSV_COLUMNS, time_unit="s"))
        return RawData(raw.interactions, raw.items, source.describe())
    ratings = _read_dat(path, RATING_COLUMNS)
    rating = ratings.frame[Columns.RATING].cast(pl.Float64, strict=False)
    ratings = ratings.with_frame(ratings.frame.with_columns(rating))
    movies = _read_dat(items_path, MOVIE_COLUMNS)
    items = movies.frame.select(Columns.ITEM, Columns.TITLE, pl.lit(domain).alias(Columns.DOMAIN))
    movies = movies.with_frame(items)
    for table, column in ((ratings, Columns.USER), (ratings, Columns.ITEM), (movies, Columns.ITEM)):
        check_ids(table, column)
    return RawData(parse_timestamps(ratings, "s"), movies, source.describe())


def _read_dat(path: Path, columns: tuple[str, ...]) -> RawTable:
    text = read_all(path).decode("latin-1")
    content = text.replace(DAT_SEPARATOR, UNIT_SEPARATOR).encode("utf-8")
    del text
    frame = _parse_dat(path, content, columns)
    if frame.select(pl.all_horizontal(pl.all().is_null()).any()).item():
        # polars makes a row of nulls of a blank line.
        lines = content.split(b"\n")
        frame = _parse_dat(path, b"\n".join(line for line in lines if line.strip(b"\r ")), columns)
    return RawTable(frame, str(path), partial(_line_of_record, path))


def _parse_dat(path: Path, content: bytes, columns: tuple[str, ...]) -> pl.DataFrame:
    try:
        return pl.read_csv(
            io.BytesIO(content),
            has_header=False,
            schema=dict.fromkeys(columns, pl.String),
            separator=UNIT_SEPARATOR,
            quote_char=None,
        )
    except pl.exceptions.NoDataError as error:
        raise DataError("the file is empty", file=path) from error
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"not {len(columns)} fields separated by '{DAT_SEPARATOR}'",
            file=path,
            where=_first_wide_line(path, len(columns)),
            advice="Repair the line",
        ) from error


def _first_wide_line(path: Path, width: int) -> str | None:
    for number, line in enumerate(read_all(path).split(b"\n"), start=1):
        if line.count(DAT_SEPARATOR.encode()) >= width:
            return f"line {number}"
    return None


def _line_of_record(path: Path, record: int) -> str:
    lines = (number for number, line in enumerate(read_all(path).split(b"\n"), start=1) if line.strip())
    return next((f"line {line}" for index, line in enumerate(lines) if index == record), f"record {record + 1}")
