"""The real development data, where it is at hand: the counts that its description states."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec.data.errors import DataError
from llmrec.data.source import Source


def source(folder: Path) -> Source:
    return Source(folder / "interactions.parquet", folder / "items.parquet")


def test_food_kitchen(shared_data: Path, prepare_quickly) -> None:
    data = prepare_quickly(source(shared_data / "food_kitchen"))
    statistics = data.card["statistics"]
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (16_569, 27_337, 126_577)
    assert statistics["users_by_number_of_domains"]["2"] == 15_598
    assert statistics["splits"]["test"]["history_length"]["max"] == 14
    assert data.catalogue.domain_names == ["Food", "Kitchen"]


def test_arts_office_scientific(shared_data: Path, prepare_quickly) -> None:
    folder = shared_data / "arts_office_scientific"
    with pytest.raises(DataError, match="'interleave' or 'domain-blocks'"):
        prepare_quickly(source(folder))
    data = prepare_quickly(source(folder), order_policy="interleave")
    statistics = data.card["statistics"]
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (17_311, 42_781, 267_925)
    assert statistics["domain_overlap"]["Arts"]["Office"] == 9_577
    assert statistics["users_by_number_of_domains"]["3"] == 708
    assert data.card["order_policy"] == "interleave"
    assert "merged by this position" in (data.folder / "README.md").read_text()


def test_scientific_alone_is_the_set_of_the_published_tables(shared_data: Path, prepare_quickly) -> None:
    folder = shared_data / "arts_office_scientific"
    data = prepare_quickly(source(folder), domains=["Scientific"], order_policy="domain-blocks")
    assert (len(data.train), len(data.catalogue)) == (8_442, 4_385)
    assert len(data.test) == len(data.validation) == 8_442
