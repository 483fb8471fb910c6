"""A prepared folder as a data set on the Hub: what is written, what is refused, and the way there and back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pytest
from huggingface_hub import DatasetCard

from llmrec.data.errors import DataError
from llmrec.data.prepare import prepare
from llmrec.data.prepared import load_prepared
from llmrec.data.source import RawData, RawTable
from llmrec.hub.dataset import DatasetHubError, pull_dataset, push_dataset
from llmrec.hub.dataset_command import add_arguments, run
from llmrec.hub.dataset_files import stage_dataset
from tests.hub.loopback_hub import hub_environment


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 users in two domains, one of whose titles is not English."""
    rng = np.random.default_rng(0)
    events = [(f"u{u}", f"i{i}", 1_600_000_000 + t) for u in range(30) for t, i in enumerate(rng.integers(0, 20, 6))]
    items = [(f"i{i}", f"Title {i} | größe", "Food" if i % 2 else "Kitchen") for i in range(20)]
    raw = RawData(
        RawTable(pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row"), "made-up"),
        RawTable(pl.DataFrame(items, schema=["item_id", "title", "domain"], orient="row"), "made-up items"),
    )
    folder = tmp_path_factory.mktemp("prepared") / "shop"
    prepare([raw], folder, k_core=0, name="A shop")
    return folder


def test_the_staged_folder_loads_like_any_data_set(prepared: Path, tmp_path: Path) -> None:
    data = load_prepared(prepared)
    stage_dataset(data, tmp_path / "staged", repo_id="org/shop", license="cc-by-4.0", language=["en"], tags=["demo"])
    names = sorted(
        p.relative_to(tmp_path / "staged").as_posix() for p in (tmp_path / "staged").rglob("*") if p.is_file()
    )
    splits = [f"data/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
    assert names == sorted(["README.md", "catalogue.parquet", "data_card.json", *splits])
    loaded = datasets.load_dataset(str(tmp_path / "staged"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == {"train": 30, "validation": 30, "test": 30}
    assert loaded["test"].features == data.test.features == loaded["train"].features
    assert loaded["test"][:] == data.test[:]
    assert loaded["train"]["history"][:] == data.train["history"][:] and set(loaded["train"]["target"]) == {None}
    items = datasets.load_dataset(
        str(tmp_path / "staged"), "catalogue", split="items", cache_dir=str(tmp_path / "cache")
    )
    assert items["title"][:] == data.catalogue.titles


def test_the_card_has_metadata_and_its_example_runs(prepared: Path, tmp_path: Path, capsys) -> None:
    staged = tmp_path / "staged"
    stage_dataset(
        load_prepared(prepared), staged, repo_id="org/shop", license="other", language=["en"], note="Made up."
    )
    card = DatasetCard.load(staged / "README.md")
    found = card.data.to_dict()
    assert (found["license"], found["language"], found["pretty_name"]) == ("other", ["en"], "A shop")
    assert found["size_categories"] == ["n<1K"]
    assert [one["config_name"] for one in found["configs"]] == ["histories", "catalogue"]
    assert "Licence: `other`. Made up." in card.text and load_prepared(prepared).hash in card.text
    assert "load_prepared(folder)" not in card.text
    (example,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(example.replace("org/shop", str(staged)), {})
    assert re.fullmatch(r"Title \d+ \| größe\n", capsys.readouterr().out)


def test_terms_names_and_private_paths_are_refused(prepared: Path, tmp_path: Path) -> None:
    for license, message in (("", "no identifier"), ("My Licence", "no identifier"), ("unknown", "--private")):
        with pytest.raises(DatasetHubError, match=message):
            push_dataset(prepared, "org/shop", license=license, dry_run=True)
    with pytest.raises(DatasetHubError, match="no name of a repository"):
        push_dataset(prepared, "a/b/c", license="mit", dry_run=True)
    with pytest.raises(DataError, match="data_card.json"):
        push_dataset(tmp_path, "org/shop", license="mit", dry_run=True)
    for number, path in enumerate(("/somewhere/shop", "C:\\me\\shop", "\\\\server\\shop")):
        copy = load_prepared(prepared)
        (tmp_path / "data_card.json").write_text(json.dumps({**copy.card, "name": path}, indent=2))
        (tmp_path / "catalogue.parquet").write_bytes((prepared / "catalogue.parquet").read_bytes())
        object.__setattr__(copy, "folder", tmp_path)
        with pytest.raises(DatasetHubError, match=r"data_card.json: line 3 holds a path of this machine"):
            stage_dataset(copy, tmp_path / str(number), repo_id="org/shop", license="mit")


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not ours to replace"):
        pull_dataset("org/shop", tmp_path, overwrite=True)


def test_a_dry_run_lists_and_uploads_nothing(prepared: Path, capsys) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    # The test process is offline: any request would fail.
    assert run(parser.parse_args([str(prepared), "org/shop", "--license", "mit", "--dry-run"])) == 0
    printed = capsys.readouterr().out
    assert "catalogue.parquet" in printed and "dry run: nothing was uploaded to org/shop" in printed


# Each job names a function and its arguments; the answer is a value or the words of the error.
_CLIENT = """
import json, sys
import datasets
from llmrec.data.errors import DataError
from llmrec.hub.dataset import DatasetHubError, pull_dataset, push_dataset

def push(folder, repo, **options):
    pushed = push_dataset(folder, repo, **options)
    return [pushed.commit, pushed.hash, pushed.url]

def pull(repo, folder, **options):
    return pull_dataset(repo, folder, **options).hash

def load(repo, **options):
    loaded = datasets.load_dataset(repo, **options)
    return {name: part.num_rows for name, part in loaded.items()}

datasets.disable_progress_bars()
answers = []
for name, positional, options in json.load(sys.stdin):
    try:
        answers.append(globals()[name](*positional, **options))
    except (DatasetHubError, DataError) as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""


def _client(jobs: list, environment: dict[str, str], **extra: str) -> list:
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT],
        input=json.dumps(jobs), capture_output=True, text=True, env=environment | extra, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_there_and_back_over_http(prepared: Path, hub, tmp_path: Path) -> None:
    data = load_prepared(prepared)
    folder, mit = str(prepared), {"license": "mit"}
    hub.seed("org/other", {"README.md": b"hello"}, kind="dataset")
    environment = hub_environment(hub, tmp_path / "home")
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "datasets")
    answers = _client(
        [
            ["push", [folder, "org/shop"], mit],
            ["push", [folder, "org/shop"], {"license": "cc0-1.0", "create_pr": True}],
            ["push", [folder, "org/shop"], {"license": "cc-by-4.0", "revision": "v2"}],
            ["load", ["org/shop"], {}],
            ["load", ["org/shop"], {"name": "catalogue"}],
            ["pull", ["org/shop", str(tmp_path / "again")], {}],
            ["pull", ["org/shop", str(tmp_path / "again")], {}],
            ["pull", ["org/shop", str(tmp_path / "gone")], {"revision": "vanished"}],
            ["pull", ["org/nobody", str(tmp_path / "gone")], {}],
            ["pull", ["org/other", str(tmp_path / "gone")], {}],
            ["push", [folder, "org/other"], {**mit, "private": True}],
            ["push", [folder, "somebody/else"], mit],
        ],
        environment,
    )
    (first, found, _), (_, _, pull_request), (branch, _, _) = answers[:3]
    assert found == data.hash and "/discussions/1" in pull_request and branch != first
    assert [commit.oid for commit in hub.history("org/shop", kind="dataset")][0] == first
    assert answers[3] == {"train": 30, "validation": 30, "test": 30} and answers[4] == {"items": 20}
    assert answers[5] == data.hash == load_prepared(tmp_path / "again").hash
    assert (tmp_path / "again" / "README.md").read_bytes() == (prepared / "README.md").read_bytes()
    for answer, message in zip(
        answers[6:],
        (
            "DataError: .*already holds prepared data",
            "DatasetHubError: fetching data from org/shop failed: it has no such revision .*vanished",
            "DatasetHubError: fetching data from org/nobody failed: there is no such repository, or it is private",
            "DatasetHubError: org/other has no data_card.json, so it was not published by",
            "DatasetHubError: org/other exists and is public",
            "DatasetHubError: pushing data to somebody/else failed: this token may not write there",
        ),
        strict=True,
    ):
        assert re.match(message, answer), answer
    assert not (tmp_path / "gone").exists() and not list(tmp_path.glob(".gone*"))
    # A repository whose rows were changed behind its data card.
    files = hub.files("org/shop", kind="dataset")
    swapped = {"data/test-00000-of-00001.parquet": files["data/validation-00000-of-00001.parquet"]}
    hub.seed("org/changed", files | swapped, kind="dataset")
    del environment["HF_TOKEN"]
    answers = _client(
        [
            ["pull", ["org/changed", str(tmp_path / "gone")], {}],
            ["push", [folder, "org/shop"], mit],
        ],
        environment,
    )
    assert re.match("DataError: .*contents have hash", answers[0]) and not (tmp_path / "gone").exists()
    assert re.match(
        "DatasetHubError: pushing data to org/shop failed: (there is no token|the token is not valid)", answers[1]
    )
    with hub.offline():
        answers = _client(
            [
                ["pull", ["org/shop", str(tmp_path / "offline")], {}],
                ["pull", ["org/unseen", str(tmp_path / "gone")], {}],
            ],
            environment,
            HF_HUB_OFFLINE="1",
        )
    assert answers[0] == data.hash
    assert "cannot be reached, and the cache does not hold org/unseen" in answers[1]
