"""The catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.data.catalogue import Catalogue
from llmrec.data.errors import DataError


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(["i0", "i1", "i2"], ["Tea", "Mug", "Grinder"], ["Food", "Kitchen", "Kitchen"], np.array([3, 0, 1]))


def test_items_and_domains(catalogue: Catalogue) -> None:
    assert len(catalogue) == 3
    assert catalogue.domain_names == ["Food", "Kitchen"]
    assert catalogue.domain_codes.tolist() == [0, 1, 1]
    assert catalogue.domain_codes.dtype == np.int32
    assert catalogue.items_of_domain("Kitchen").tolist() == [1, 2]
    assert catalogue.items_of_domain("Kitchen").dtype == np.int64
    assert catalogue.index_of("i2") == 2


def test_save_and_load(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.save(tmp_path / "catalogue.parquet")
    loaded = Catalogue.load(tmp_path / "catalogue.parquet")
    assert (loaded.item_ids, loaded.titles, loaded.domains) == (catalogue.item_ids, catalogue.titles, catalogue.domains)
    assert loaded.train_count.tolist() == [3, 0, 1]
    assert loaded.train_count.dtype == np.int64
    assert [path.name for path in tmp_path.iterdir()] == ["catalogue.parquet"]


def test_add_items_leaves_the_old_one_alone(catalogue: Catalogue) -> None:
    larger = catalogue.add_items(titles=["Beans"], item_ids=["i3"], domains=["Food"])
    assert len(catalogue) == 3
    assert larger.titles == ["Tea", "Mug", "Grinder", "Beans"]
    assert larger.train_count.tolist() == [3, 0, 1, 0]
    assert larger.items_of_domain("Food").tolist() == [0, 3]


def test_errors(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no item 'i9' in the catalogue of 3 items"):
        catalogue.index_of("i9")
    with pytest.raises(DataError, match="no domain 'Garden'.*Food, Kitchen"):
        catalogue.items_of_domain("Garden")
    with pytest.raises(DataError, match="item 'i1' is already in the catalogue"):
        catalogue.add_items(["Mug"], ["i1"], ["Kitchen"])
    with pytest.raises(DataError, match="'i3' occurs twice"):
        catalogue.add_items(["a", "b"], ["i3", "i3"], ["Food", "Food"])
    with pytest.raises(DataError, match="differ in length"):
        catalogue.add_items(["a"], ["i3", "i4"], ["Food", "Food"])
    with pytest.raises(DataError, match="nowhere.parquet: file not found"):
        Catalogue.load(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(DataError, match="text.parquet: not a readable Parquet file"):
        Catalogue.load(tmp_path / "text.parquet")
    catalogue.to_frame().drop("title").write_parquet(tmp_path / "short.parquet")
    with pytest.raises(DataError, match="short.parquet, column 'title': missing column"):
        Catalogue.load(tmp_path / "short.parquet")
    catalogue.to_frame().with_columns(pl.Series("title", ["a", None, "c"])).write_parquet(tmp_path / "null.parquet")
    with pytest.raises(DataError, match="null.parquet, row 2, column 'title': null value"):
        Catalogue.load(tmp_path / "null.parquet")
