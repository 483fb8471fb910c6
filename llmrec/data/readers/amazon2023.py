"""Reader for Amazon Reviews 2023 (Hou et al. 2024): one domain a source.

`<Category>.jsonl.gz`: reviews with `user_id`, `parent_asin`, `rating` and `timestamp` in milliseconds.
`meta_<Category>.jsonl.gz`: items with `parent_asin` and `title`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.readers import json_lines
from llmrec.data.readers.amazon import find_beside, read_meta, require_domain
from llmrec.data.readers.files import require_file
from llmrec.data.readers.validate import check_ids, parse_timestamps
from llmrec.data.source import RawData, RawTable, Source

ITEM_KEY = "parent_asin"


def read(source: Source) -> RawData:
    """Read the reviews and the metadata of one category; variants of a product are one item (`parent_asin`).

    Where no metadata file is given, `meta_<name of the reviews file>` beside the reviews is taken.

    Raises:
        DataError: a missing file, a broken line, a null or blank id, an unreadable time.
    """
    domain = require_domain(source)
    path = require_file(Path(source.interactions))
    items_path = source.items or find_beside(path, [f"meta_{path.name}"])
    frame = json_lines.read_json_lines(
        path, [Columns.USER, ITEM_KEY, Columns.TIMESTAMP], optional=[Columns.RATING]
    ).rename({ITEM_KEY: Columns.ITEM})
    if Columns.RATING in frame.columns:
        frame = frame.with_columns(pl.col(Columns.RATING).cast(pl.Float64, strict=False))
    table = RawTable(frame, str(path), partial(json_lines.line_of_record, path))
    check_ids(table, Columns.USER)
    check_ids(table, Columns.ITEM)
    items = read_meta(items_path, ITEM_KEY, domain)
    return RawData(parse_timestamps(table, "ms"), items, {**source.describe(), "items": items_path.name})
