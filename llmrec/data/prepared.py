"""A folder of prepared data: histories, catalogue and data card; written once, checked at every load."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from llmrec.data.assemble import TEST, TRAIN, VALIDATION
from llmrec.data.catalogue import Catalogue
from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.hashing import Fingerprint

SCHEMA_VERSION = 1
HISTORIES_FOLDER = "histories"
CATALOGUE_FILE = "catalogue.parquet"
CARD_FILE = "data_card.json"
README_FILE = "README.md"
CACHE_FOLDER = "cache"  # what can be made again from the rest; no part of the contents that are checked


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Prepared data, ready for training and evaluation.

    Attributes:
        folder: where it lies.
        catalogue: the items; a history holds row numbers of it.
        train: user_id (string), history (list<int32>): all training events of each user, oldest first, at
            least one.
        validation: user_id, history, target (int32): the history is everything before the target.
        test: the same; with leave-one-out its history ends with the validation target.
        card: the data card: options, steps with counts and hashes, statistics, and the hash of the whole.
    """

    folder: Path
    catalogue: Catalogue
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    card: dict[str, Any]

    @property
    def hash(self) -> str:
        """Content hash of histories, targets and catalogue, from the data card."""
        return str(self.card["hash"])


def content_hash(catalogue: Catalogue, histories: Mapping[str, datasets.Dataset]) -> str:
    """Hash the catalogue and the three splits: sha256, 64 hexadecimal digits.

    Independent of shards and of the versions of polars, pyarrow and datasets; the order of rows, which
    `prepare` fixes, counts.
    """
    fingerprint = Fingerprint().label("llmrec prepared data").label("catalogue")
    table = catalogue.to_frame().to_arrow()
    for name in (Columns.ITEM, Columns.TITLE, Columns.DOMAIN):
        fingerprint.label(name).strings(table.column(name))
    fingerprint.label(Columns.TRAIN_COUNT).numbers(catalogue.train_count)
    for split in (TRAIN, VALIDATION, TEST):
        data = histories[split].data
        fingerprint.label(split).strings(data.column(Columns.USER)).lists(data.column(Columns.HISTORY))
        if split != TRAIN:
            fingerprint.numbers(data.column(Columns.TARGET).to_numpy())
    return fingerprint.hexdigest()


def load_prepared(folder: str | os.PathLike[str]) -> PreparedData:
    """Load a folder that `prepare` wrote, and check that it is whole and unchanged.

    Raises:
        DataError: not such a folder, another schema version, a missing part, or contents that differ from the
            hash in the data card.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not path.is_file():
        raise DataError(f"no {CARD_FILE} in this folder", file=folder, advice="Make the folder with `llmrec prepare`")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not readable as JSON ({error})", file=path, advice="Prepare the data again") from error
    if card.get("schema") != SCHEMA_VERSION:
        raise DataError(
            f"schema version {card.get('schema')!r}, and this version of llmrec reads {SCHEMA_VERSION}",
            file=path,
            advice="Prepare the data again with this version",
        )
    catalogue = Catalogue.load(folder / CATALOGUE_FILE)
    try:
        histories = datasets.load_from_disk(str(folder / HISTORIES_FOLDER))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"histories cannot be loaded ({error})",
            file=folder / HISTORIES_FOLDER,
            advice="Prepare the data again",
        ) from error
    missing = {TRAIN, VALIDATION, TEST} - set(histories)
    if missing:
        raise DataError(f"no split {', '.join(sorted(missing))}", file=folder / HISTORIES_FOLDER)
    found = content_hash(catalogue, histories)
    if found != card["hash"]:
        raise DataError(
            f"contents have hash {found[:16]}…, but its card says {card['hash'][:16]}…: it was changed",
            file=folder,
            advice="Prepare the data again",
        )
    return PreparedData(folder, catalogue, histories[TRAIN], histories[VALIDATION], histories[TEST], card)
