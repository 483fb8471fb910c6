"""`llmrec prepare` and the options dataclass."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from llmrec.cli import main
from llmrec.data.errors import DataError, LeakageWarning
from llmrec.data.options import PrepareOptions, prepare_from_options
from llmrec.data.prepared import load_prepared
from llmrec.data.source import Source


def test_prints_steps_and_statistics(events_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with events_file.open("a") as stream:  # a user whose training events are later than the others' targets
        stream.writelines(f"u9,i0,{4_000_000_000 + step}\n" for step in range(4))
    warnings.simplefilter("default", LeakageWarning)  # until this test ends: see the fixture `quiet`
    output = tmp_path / "out"
    arguments = ["--interactions", str(events_file), "--items", str(events_file.with_name("items.csv"))]
    assert main(["prepare", *arguments, "--k-core", "0", "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    data = load_prepared(output)
    for step in data.card["steps"]:
        assert step["step"] in out
        assert step["hash"] in out
    assert "Users by number of domains" in out
    assert f"hash {data.hash}" in out
    assert "llmrec: warning: leave-one-out leaks across users" in err


def test_sources_formats_and_options(tmp_path: Path, write_lines) -> None:
    arguments = []
    for number, domain in enumerate(("Arts", "Office")):
        ratings = [
            f"{domain}{(u + i) % 3},U{u},5.0,{1_500_000_000 + i * 1000 + number}" for u in range(4) for i in range(3)
        ]
        path = write_lines(tmp_path / f"{domain}.csv", ratings)
        write_lines(tmp_path / f"meta_{domain}.json.gz", [{"asin": f"{domain}{i}", "title": f"T{i}"} for i in range(2)])
        arguments += ["--source", f"{domain}={path}"]
    arguments += ["--format", "amazon-2018", "--missing-items", "untitled", "--untitled", "keep", "--k-core", "2"]
    arguments += ["--k-core-scope", "domain", "--order-policy", "interleave", "--max-users", "3", "--name", "pair"]
    assert main(["prepare", *arguments, "--output", str(tmp_path / "out")]) == 0
    data = load_prepared(tmp_path / "out")
    assert data.catalogue.titles == ["T0", "T1", "None"] * 2
    assert list(data.card["sources"]) == ["Arts", "Office"]
    assert data.card["sources"]["Arts"] == {
        "format": "amazon-2018", "domain": "Arts", "interactions": "Arts.csv", "items": "meta_Arts.json.gz",
    }  # fmt: skip
    options = {key: value for key, value in data.card["options"].items() if value is not None}
    assert options == {
        "k_core": 2, "k_core_scope": "domain", "untitled": "keep", "missing_items": "untitled",
        "order_policy": "interleave", "split": "leave-one-out", "max_users": 3,
    }  # fmt: skip
    assert len(data.train) == 3


def test_columns_and_cuts(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "who,what,when\n" + "".join(f"u{u},i{e % 3},{e * 1000 + u}\n" for e in range(9) for u in range(3))
    )
    (tmp_path / "shop.jsonl").write_text(
        "".join(json.dumps({"what": f"i{i}", "name": f"N{i}"}) + "\n" for i in range(3))
    )
    arguments = [
        "--source",
        f"Shop={tmp_path / 'log.csv'},{tmp_path / 'shop.jsonl'}",
        "--time-unit",
        "ms",
        "--k-core",
        "0",
    ]
    arguments += ["--columns", "user_id=who,item_id=what,timestamp=when,items.title=name"]
    arguments += ["--split", "global-time", "--cuts", "4", "1970-01-01T00:00:06"]
    assert main(["prepare", *arguments, "--output", str(tmp_path / "out")]) == 0
    data = load_prepared(tmp_path / "out")
    assert data.train["history"][0] == [0, 1, 2, 0]
    assert data.test["target"][0] == 2


def test_errors_are_one_line(events_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prepare", "--interactions", str(events_file), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--items", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: file not found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main([*arguments, "--columns", "user_id"])
    assert "not of the form OURS=THEIRS" in capsys.readouterr().err


def test_options_make_sources() -> None:
    options = PrepareOptions(sources=["A=a.csv,ai.csv", "B=b.csv"], columns={"user_id": "u"}, time_unit="ms")
    columns = {"user_id": "u"}
    assert options.make_sources() == [
        Source(Path("a.csv"), Path("ai.csv"), "A", "tables", columns, "ms"),
        Source(Path("b.csv"), None, "B", "tables", columns, "ms"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either interactions"),
        ({"interactions": "a", "sources": ["A=a"]}, "give either interactions"),
        ({"sources": ["a.csv"]}, "source 'a.csv' is not of the form"),
        ({"sources": ["=a.csv"]}, "is not of the form"),
        ({"sources": ["A=a"], "items": "i.csv"}, "items are given beside sources"),
    ],
)
def test_bad_sources(options, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PrepareOptions(**options).make_sources()


def test_options_reach_prepare(events_file: Path, tmp_path: Path) -> None:
    options = PrepareOptions(
        interactions=str(events_file), items=str(events_file.with_name("items.csv")), k_core=1, split="global-time",
        quantiles=[0.5, 0.75], name="from YAML",
    )  # fmt: skip
    card = prepare_from_options(options, tmp_path / "out").card
    assert card["name"] == "from YAML"
    assert card["options"]["quantiles"] == [0.5, 0.75]
    assert card["options"]["k_core"] == 1
