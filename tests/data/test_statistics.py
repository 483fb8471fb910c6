"""Statistics and their rendering, by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import yaml

from llmrec.data.card import render_card, render_statistics, size_category, text_table
from llmrec.data.statistics import describe_titles, summarise

# Users by domains: u0 A, u1 A and B, u2 A, B and C, u3 B and C.
EVENTS = [("u0", "a0", 1), ("u0", "a0", 2), ("u0", "a1", 3), ("u1", "a0", 1), ("u1", "b0", 2), ("u1", "b0", 3)]
EVENTS += [("u2", "a0", 1), ("u2", "b0", 2), ("u2", "c0", 3), ("u3", "b0", 1), ("u3", "c0", 2), ("u3", "c1", 3)]


@pytest.fixture
def card(make_raw, prepare_quickly):
    return prepare_quickly(make_raw(EVENTS), name='A "name": with | marks').card


def test_by_hand(card) -> None:
    statistics = card["statistics"]
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (4, 5, 12)
    assert statistics["users_by_number_of_domains"] == {"1": 1, "2": 2, "3": 1}
    assert statistics["domain_overlap"] == {
        "A": {"A": 3, "B": 2, "C": 1},
        "B": {"A": 2, "B": 3, "C": 2},
        "C": {"A": 1, "B": 2, "C": 2},
    }
    assert statistics["domains"]["B"] == {"users": 3, "items": 1, "interactions": 4}
    # Training holds the first event of each user: a0, a0, a0, b0. Targets: a1, b0, c0, c1.
    test = statistics["splits"]["test"]
    assert (test["targets_without_training"], test["share_of_targets_without_training"]) == (3, 0.75)
    assert test["targets_by_domain"] == {"A": 1, "B": 1, "C": 2}
    assert statistics["splits"]["train"]["examples"] == 0
    assert statistics["splits"]["test"]["history_length"]["mean"] == 2.0
    assert statistics["first_interaction"] == "1970-01-01T00:00:00.001000Z"


def test_titles_by_hand() -> None:
    titles = describe_titles(pl.Series(["a bc", "a bc", "ab", "é", "é", "é"]))
    assert titles["titles_of_several_items"] == 2
    assert titles["items_sharing_a_title"] == 5
    assert (titles["characters"]["min"], titles["characters"]["max"]) == (1, 4)
    assert (titles["words"]["min"], titles["words"]["max"], titles["words"]["mean"]) == (1, 2, 1.33)


def test_summarise() -> None:
    assert summarise(np.arange(101))["95%"] == 95
    assert summarise(np.array([])) == {}


def test_card_is_readable(card) -> None:
    text = render_card(card)
    front = yaml.safe_load(text.split("---")[1])
    assert front["pretty_name"] == 'A "name": with | marks'
    assert front["size_categories"] == ["n<1K"]
    assert card["hash"] in text
    assert "**Order policy `time`**" in text
    assert "Warning" not in text  # no training event is later than a test target
    assert "| A | 3 | 2 | 1 |" in text
    for line in text.splitlines():
        if line.startswith("|---"):
            assert set(line) == {"|", "-"}
    for step in card["steps"]:
        assert f"`{step['hash']}`" in text


def test_statistics_for_the_terminal(card) -> None:
    text = render_statistics(card["statistics"])
    assert "Users by number of domains" in text
    assert "3 (75.0%)" in text
    assert text_table([("name", "n"), ("a", 1234)]) == "  name      n\n  a     1,234"


def test_size_category() -> None:
    assert [size_category(n) for n in (0, 999, 1000, 126_577, 10**9)] == [
        "n<1K", "n<1K", "1K<n<10K", "100K<n<1M", "n>1B",
    ]  # fmt: skip
