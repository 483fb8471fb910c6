"""The files of a data set's repository, written from a prepared folder: Parquet splits, catalogue and card."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from llmrec.data.assemble import TARGET_FEATURES, TEST, TRAIN, VALIDATION
from llmrec.data.card import render_card, size_category
from llmrec.data.columns import Columns
from llmrec.data.prepared import CARD_FILE, CATALOGUE_FILE, README_FILE, PreparedData

SPLITS = (TRAIN, VALIDATION, TEST)
DATA_FOLDER = "data"
TAGS = ("recommendation", "sequential-recommendation", "llmrec")
_LOADING = re.compile(r"^Load with `llmrec\.data\.prepared.*$", re.MULTILINE)
_ABSOLUTE = re.compile(r'"(?:/[^/"\s]+/|[A-Za-z]:\\\\|\\\\\\\\)')
_USE = """```python
from datasets import load_dataset

histories = load_dataset("{repo_id}")  # train, validation, test
catalogue = load_dataset("{repo_id}", "catalogue", split="items")
newest = histories["test"][0]["history"][-1]  # a history holds rows of the catalogue, oldest first
print(catalogue[newest]["title"])
```

Training histories have no target (null): each of their items is one. User ids are those of the sources.
`llmrec.hub.dataset.pull_dataset` makes the prepared folder that training reads of it again, and checks the hash."""


class DatasetHubError(ValueError):
    """A data set cannot be published or fetched. The message says what is wrong and what to do."""


def split_file(split: str) -> str:
    """Where the histories of a split lie in the repository."""
    return f"{DATA_FOLDER}/{split}-00000-of-00001.parquet"


def stage_dataset(
    prepared: PreparedData,
    target: Path,
    *,
    repo_id: str,
    license: str,
    language: Sequence[str] = (),
    tags: Sequence[str] = (),
    note: str | None = None,
) -> None:
    """Write the files of the repository into an empty folder. Arguments as for `push_dataset`."""
    (target / DATA_FOLDER).mkdir(parents=True)
    for split, data in zip(SPLITS, (prepared.train, prepared.validation, prepared.test), strict=True):
        table = data.with_format("arrow")[:]
        if Columns.TARGET not in table.column_names:
            # One configuration has one set of columns: training histories have no target.
            table = table.append_column(Columns.TARGET, pa.nulls(len(table), pa.int32()))
        pq.write_table(table.cast(TARGET_FEATURES.arrow_schema), target / split_file(split))
    shutil.copyfile(prepared.folder / CATALOGUE_FILE, target / CATALOGUE_FILE)
    text = (prepared.folder / CARD_FILE).read_text(encoding="utf-8")
    found = _ABSOLUTE.search(text)
    if found:
        raise DatasetHubError(
            f"{prepared.folder / CARD_FILE}: line {text[: found.start()].count(chr(10)) + 1} holds a path of this "
            f"machine ({found[0]}…): prepare the data again, or take it out"
        )
    (target / CARD_FILE).write_text(text, encoding="utf-8")
    (target / README_FILE).write_text(
        dataset_card(prepared, repo_id, license=license, language=language, tags=tags, note=note), encoding="utf-8"
    )


def dataset_card(
    prepared: PreparedData,
    repo_id: str,
    *,
    license: str,
    language: Sequence[str] = (),
    tags: Sequence[str] = (),
    note: str | None = None,
) -> str:
    """The card of the repository: the data card, with the metadata that `load_dataset` and the Hub read."""
    card = prepared.card
    metadata = DatasetCardData(
        pretty_name=card["name"],
        license=license,
        language=list(language) or None,
        tags=[*TAGS, *tags],
        size_categories=[size_category(len(prepared.train) + len(prepared.validation) + len(prepared.test))],
        configs=[
            {
                "config_name": "histories",
                "default": True,
                "data_files": [{"split": split, "path": split_file(split)} for split in SPLITS],
            },
            {"config_name": "catalogue", "data_files": [{"split": "items", "path": CATALOGUE_FILE}]},
        ],
    )
    use, body = _USE.replace("{repo_id}", repo_id), DatasetCard(render_card(card)).text.strip()
    body, count = _LOADING.subn(lambda _: use, body)
    if count != 1:
        raise RuntimeError("the data card says no longer, or more than once, how it is loaded: see llmrec.data.card")
    terms = f"## Terms\n\nLicence: `{license}`.{f' {note}' if note else ''}"
    return str(DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n\n{terms}\n"))
