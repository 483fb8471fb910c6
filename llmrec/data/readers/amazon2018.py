"""Reader for Amazon Reviews 2018 (Ni, Li & McAuley 2019): one domain a source.

`<Category>.csv` (or `.csv.gz`): ratings without a header, `item,user,rating,timestamp`, seconds.
`meta_<Category>.json.gz`: one JSON object a line with `asin` and `title`, among others.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.readers import csv_files
from llmrec.data.readers.amazon import find_beside, read_meta, require_domain
from llmrec.data.readers.files import require_file
from llmrec.data.readers.validate import check_ids, parse_timestamps
from llmrec.data.source import RawData, RawTable, Source

RATING_COLUMNS = (Columns.ITEM, Columns.USER, Columns.RATING, Columns.TIMESTAMP)


def read(source: Source) -> RawData:
    """Read the ratings and the metadata of one category.

    Where no metadata file is given, `meta_<Category>.json.gz` (or `.json`) beside the ratings is taken.

    Raises:
        DataError: a missing file, a broken line, a null or blank id, an unreadable time.
    """
    domain = require_domain(source)
    path = require_file(Path(source.interactions))
    category = path.name.removesuffix(".gz").removesuffix(".csv")
    items_path = source.items or find_beside(path, [f"meta_{category}.json.gz", f"meta_{category}.json"])
    interactions = _read_ratings(path)
    return RawData(interactions, read_meta(items_path, "asin", domain), {**source.describe(), "items": items_path.name})


def _read_ratings(path: Path) -> RawTable:
    frame = csv_files.read_csv(path, header=RATING_COLUMNS)
    frame = frame.with_columns(pl.col(Columns.RATING).cast(pl.Float64, strict=False))
    table = RawTable(frame, str(path), partial(_line, path))
    check_ids(table, Columns.USER)
    check_ids(table, Columns.ITEM)
    return parse_timestamps(table, "s")


def _line(path: Path, record: int) -> str:
    return csv_files.line_of_record(path, record, has_header=False)
