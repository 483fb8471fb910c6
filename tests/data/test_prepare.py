"""From files to the prepared folder and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pytest

from llmrec.data.errors import DataError, LeakageWarning
from llmrec.data.prepare import prepare
from llmrec.data.prepared import load_prepared
from llmrec.data.source import Source

GOLDEN = "9b19f78c898518665d1d67a5b74731d5fbcc6c86d01cee01ed1667bc664f1b92"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def source(events_file: Path) -> Source:
    return Source(events_file, events_file.with_name("items.csv"))


def test_by_hand(source: Source, prepare_quickly) -> None:
    data = prepare_quickly(source)
    # User u has the events i(u), i(u+1), i(u+2), i(u), modulo 3, oldest first.
    assert data.catalogue.item_ids == ["i0", "i1", "i2"]
    assert data.catalogue.titles == ["Zero", "One & only", "Two"]
    assert data.catalogue.domains == ["A", "A", "B"]
    assert data.catalogue.train_count.tolist() == [3, 3, 2]
    assert data.train[:] == {"user_id": ["u0", "u1", "u2", "u3"], "history": [[0, 1], [1, 2], [2, 0], [0, 1]]}
    assert data.validation["target"][:] == [2, 0, 1, 2]
    assert data.validation["history"][:] == data.train["history"][:]
    assert data.test["history"][:] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    assert data.test["target"][:] == [0, 1, 2, 0]


def test_folder_and_card(source: Source, prepare_quickly, tmp_path: Path) -> None:
    data = prepare_quickly(source, output="shop")
    assert names(tmp_path / "shop") == ["README.md", "catalogue.parquet", "data_card.json", "histories"]
    histories = datasets.load_from_disk(str(tmp_path / "shop" / "histories"))
    assert set(histories) == {"train", "validation", "test"}
    card = json.loads((tmp_path / "shop" / "data_card.json").read_text())
    assert card == data.card
    assert {"schema", "name", "sources", "options", "order_policy", "split", "steps", "hash", "statistics"} == set(card)
    assert (card["schema"], card["name"], card["order_policy"], card["split"]) == (1, "shop", "time", "leave-one-out")
    assert card["options"]["k_core"] == 0
    assert card["sources"]["interactions.csv"]["items"] == "items.csv"
    assert str(tmp_path) not in json.dumps(card), "a data card must not tell the folders of a machine"
    assert [set(step) for step in card["steps"]] == [{"step", "interactions", "users", "items", "hash"}] * 5


def test_steps_are_counted_and_hashed(make_raw, prepare_quickly) -> None:
    events = [(f"u{u}", f"{d}{i}", i) for u in range(3) for d in "ab" for i in range(3)]
    items = {item: (f"t&amp;{item}", item[0].upper()) for _, item, _ in events} | {"a9": (None, "A"), "b9": ("t", "B")}
    raw = make_raw([*events, events[0], ("u0", "a9", 9), ("once", "b9", 9)], items)
    lines: list[str] = []
    steps = prepare_quickly(raw, k_core=2, echo=lines.append).card["steps"]
    assert [(s["step"], s["interactions"], s["users"], s["items"]) for s in steps] == [
        ("read", 21, 4, 8),
        ("exact duplicates dropped", 20, 4, 8),
        ("titles cleaned", 20, 4, 8),
        ("untitled items dropped", 19, 4, 7),
        ("2-core (merged)", 18, 3, 6),
    ]
    assert len({step["hash"] for step in steps}) == 5
    assert len(lines) == 6
    assert lines[0].split() == ["step", "interactions", "users", "items", "hash"]
    assert lines[-1].split() == ["2-core", "(merged)", "18", "3", "6", steps[-1]["hash"]]


def test_untitled_kept(make_raw, prepare_quickly) -> None:
    events = [("u", f"a{i}", i) for i in range(4)]
    items = {f"a{i}": (None if i == 2 else "t", "A") for i in range(4)}
    assert prepare_quickly(make_raw(events, items), untitled="keep").catalogue.titles == ["t", "t", "None", "t"]


def test_sample_of_users_keeps_the_catalogue(make_raw, random_events, prepare_quickly) -> None:
    raw = make_raw(random_events(0))
    whole = prepare_quickly(raw, output="whole")
    part = prepare_quickly(raw, output="part", max_users=10)
    assert part.catalogue.item_ids == whole.catalogue.item_ids
    assert len(part.train) == 10
    assert part.catalogue.train_count.sum() < whole.catalogue.train_count.sum()
    assert part.card["steps"][-1]["step"] == "sample of 10 users"
    assert part.card["options"]["max_users"] == 10


def test_domains_chosen(make_raw, random_events, prepare_quickly) -> None:
    events = random_events(0)
    chosen = prepare_quickly(make_raw(events), output="chosen", domains=["A", "C"])
    alone = prepare_quickly(make_raw([e for e in events if e[1][0] in "ac"]), output="alone")
    assert chosen.hash == alone.hash
    assert chosen.card["options"]["domains"] == ["A", "C"]
    with pytest.raises(DataError, match="no domain 'D' in the data. It has A, B, C"):
        prepare_quickly(make_raw(events), domains=["D"], output="none")


def test_train_counts_are_those_of_the_training_histories(make_raw, random_events, prepare_quickly) -> None:
    data = prepare_quickly(make_raw(random_events(1)))
    flat = np.concatenate([np.asarray(history) for history in data.train["history"]])
    assert data.catalogue.train_count.tolist() == np.bincount(flat, minlength=len(data.catalogue)).tolist()


def test_hash_is_of_the_content(make_raw, random_events, prepare_quickly) -> None:
    # Distinct times, so that the order of rows decides nothing.
    events = [(user, item, row) for row, (user, item, _) in enumerate(random_events(0))]
    first = prepare_quickly(make_raw(events), output="first")
    again = prepare_quickly(make_raw(events[::-1]), output="again", name="another name")
    assert again.hash == first.hash
    assert [s["hash"] for s in again.card["steps"]] == [s["hash"] for s in first.card["steps"]]
    moved = [*events[:-1], (events[-1][0], events[-1][1], -1)]
    assert prepare_quickly(make_raw(moved), output="moved").hash != first.hash
    assert prepare_quickly(make_raw(events), output="other", order_policy="domain-blocks").hash != first.hash
    items = {item: ("same", item[0].upper()) for _, item, _ in events}
    assert prepare_quickly(make_raw(events, items), output="titles").hash != first.hash


def test_hash_is_pinned(source: Source, prepare_quickly) -> None:
    """The hash must not move with versions of polars, pyarrow or datasets, nor with a rewrite of ours."""
    assert prepare_quickly(source).hash == GOLDEN


def test_leave_one_out_warns_of_leakage(source: Source, prepare_quickly) -> None:
    # u9 starts when the others end: its two training events, of ten in all, are later than the test targets
    # of u0, u1 and u2; one of them is later than that of u3, none than its own.
    with source.interactions.open("a") as stream:
        for step in range(4):
            stream.write(f"u9,i0,{1_600_000_000 + 86_400 * 3 + 3 + step}\n")
    with pytest.warns(LeakageWarning, match="leaks across users.*80.0% of the test targets.*14.0% of them all"):
        data = prepare_quickly(source)
    assert data.card["statistics"]["leakage"] == {
        "targets_with_later_training": 0.8,
        "training_after_target": pytest.approx(0.14),
    }
    assert "80.0% of the test targets" in (data.folder / "README.md").read_text()


def test_global_time_does_not_warn(source: Source, prepare_quickly, recwarn: pytest.WarningsRecorder) -> None:
    data = prepare_quickly(source, split="global-time", cuts=["1600150000", "1600250000"])
    assert not [warning for warning in recwarn if issubclass(warning.category, LeakageWarning)]
    assert data.card["statistics"]["split_facts"]["test_from"] == "2020-09-16T09:53:20Z"
    assert data.card["options"]["cuts"] == ["1600150000", "1600250000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_core": 50}, "nothing left after the 50-core"),
        ({"split": "global-time", "order_policy": "interleave"}, "needs a true time order"),
        ({"split": "half"}, "unknown split 'half'"),
        ({"order_policy": "random"}, "unknown order policy 'random'"),
        ({"untitled": "hide"}, "unknown policy for untitled items 'hide'"),
        ({"k_core_scope": "user"}, "unknown k-core scope 'user'"),
        ({"missing_items": "drop"}, "unknown policy for missing items 'drop'"),
    ],
)
def test_bad_options_write_nothing(source: Source, tmp_path: Path, options, message: str) -> None:
    before = names(tmp_path)
    with pytest.raises(DataError, match=message):
        prepare([source], tmp_path / "out", **{"k_core": 0, **options})
    assert names(tmp_path) == before


def test_no_titles_at_all(make_raw, prepare_quickly) -> None:
    with pytest.raises(DataError, match="no item with interactions has a title"):
        prepare_quickly(make_raw([("u", "a0", 1)], {"a0": (None, "A")}))
    with pytest.raises(DataError, match="no sources given"):
        prepare_quickly()


@pytest.mark.parametrize("broken", ["save_to_disk", "catalogue", "card"])
def test_failure_while_writing_leaves_nothing(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*args, **kwargs):
        raise OSError("disk full")

    place = {
        "save_to_disk": "datasets.DatasetDict.save_to_disk",
        "catalogue": "llmrec.data.catalogue.Catalogue.save",
        "card": "llmrec.data.prepare.render_card",
    }[broken]
    before = names(tmp_path)
    monkeypatch.setattr(place, fail)
    with pytest.raises(OSError, match="disk full"):
        prepare([source], tmp_path / "out", k_core=0)
    assert names(tmp_path) == before


def test_failed_overwrite_keeps_the_old(source: Source, prepare_quickly, monkeypatch: pytest.MonkeyPatch) -> None:
    old = prepare_quickly(source)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("llmrec.data.prepare.render_card", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare_quickly(source, overwrite=True, order_policy="domain-blocks")
    assert load_prepared(old.folder).hash == old.hash


def test_output_that_holds_something(source: Source, prepare_quickly) -> None:
    old = prepare_quickly(source)
    with pytest.raises(DataError, match="already holds prepared data"):
        prepare_quickly(source)
    new = prepare_quickly(source, overwrite=True, order_policy="domain-blocks")
    assert new.hash != old.hash
    assert load_prepared(new.folder).hash == new.hash


class TestLoad:
    """What `load_prepared` refuses."""

    @pytest.fixture
    def folder(self, source: Source, prepare_quickly) -> Path:
        return prepare_quickly(source).folder

    def test_round_trip(self, folder: Path) -> None:
        data = load_prepared(str(folder))
        assert data.folder == folder
        assert data.train.features["history"] == datasets.List(datasets.Value("int32"))

    def test_not_prepared(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no data_card.json in this folder. Make the folder with `llmrec prepare`"):
            load_prepared(tmp_path / "nothing")

    def test_broken_card(self, folder: Path) -> None:
        (folder / "data_card.json").write_text("{")
        with pytest.raises(DataError, match="data_card.json: not readable as JSON"):
            load_prepared(folder)

    def test_another_schema(self, folder: Path) -> None:
        card = json.loads((folder / "data_card.json").read_text())
        (folder / "data_card.json").write_text(json.dumps({**card, "schema": 2}))
        with pytest.raises(DataError, match="schema version 2, and this version of llmrec reads 1"):
            load_prepared(folder)

    def test_missing_part(self, folder: Path) -> None:
        shutil.rmtree(folder / "histories" / "validation")
        with pytest.raises(DataError, match="histories"):
            load_prepared(folder)
        shutil.rmtree(folder / "histories")
        with pytest.raises(DataError, match="histories cannot be loaded"):
            load_prepared(folder)
        (folder / "catalogue.parquet").unlink()
        with pytest.raises(DataError, match="catalogue.parquet: file not found"):
            load_prepared(folder)

    def test_changed_catalogue(self, folder: Path) -> None:
        path = folder / "catalogue.parquet"
        pl.read_parquet(path).with_columns(pl.col("title").str.to_uppercase()).write_parquet(path)
        with pytest.raises(DataError, match="it was changed"):
            load_prepared(folder)

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_changed_histories(self, folder: Path, split: str, tmp_path: Path) -> None:
        histories = datasets.load_from_disk(str(folder / "histories"))
        changed = histories[split].to_dict()
        column = "history" if split == "train" else "target"
        changed[column][0] = [2, 2] if split == "train" else 1 - min(changed[column][0], 1)
        histories[split] = datasets.Dataset.from_dict(changed, features=histories[split].features)
        histories.save_to_disk(str(tmp_path / "changed"))
        shutil.rmtree(folder / "histories")
        (tmp_path / "changed").rename(folder / "histories")
        with pytest.raises(DataError, match="it was changed"):
            load_prepared(folder)
