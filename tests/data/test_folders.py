"""Output folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec.data.errors import DataError
from llmrec.data.folders import check_output, new_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_when_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "new"


def test_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("new")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file"]


def test_failure_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    for output in (tmp_path / "out", tmp_path / "other"):
        with pytest.raises(RuntimeError), new_folder(output) as folder:
            (folder / "file").write_text("half")
            raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_permissions_are_those_of_an_ordinary_folder(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_check_output(tmp_path: Path) -> None:
    check_output(tmp_path / "new", overwrite=False, marker="card.json")
    check_output(tmp_path, overwrite=False, marker="card.json")
    (tmp_path / "precious").write_text("thesis")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="not empty, and holds no card.json"):
            check_output(tmp_path, overwrite=overwrite, marker="card.json")
    with pytest.raises(DataError, match="is a file"):
        check_output(tmp_path / "precious", overwrite=True, marker="card.json")
    (tmp_path / "card.json").write_text("{}")
    check_output(tmp_path, overwrite=True, marker="card.json")
    with pytest.raises(DataError, match="already holds prepared data"):
        check_output(tmp_path, overwrite=False, marker="card.json")
