"""Cleaning of titles, and what becomes of items without one."""

from __future__ import annotations

import polars as pl
import pytest

from llmrec.data.errors import DataError
from llmrec.data.titles import clean_item_titles, clean_titles, handle_untitled


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("twice &amp;amp; escaped", "twice & escaped"),
        ("12&quot; wrench &#39;pro&#39; &#x2764;", "12\" wrench 'pro' ❤"),
        ("caf&eacute;", "café"),
        ("black&notes AT&T R&D;", "black&notes AT&T R&D;"),
        ("  tabs\tand\n\nlines  ", "tabs and lines"),
        ("no\u00a0break\u200b \ufeffspace&nbsp;here", "no break space here"),
        ("bell\x07", "bell"),
        ("i < 3 and 4 > 3", "i < 3 and 4 > 3"),
        ("日本 茶", "日本 茶"),
        ("", None),
        (" \u00a0 ", None),
        ("&nbsp;", None),
        (None, None),
    ],
)
def test_clean_title(raw: str | None, clean: str | None) -> None:
    assert clean_titles(pl.Series("title", [raw], dtype=pl.String)).to_list() == [clean]


def test_cleaning_keeps_the_order_of_titles() -> None:
    titles = pl.Series("title", ["b &amp; b", "plain", None, "a&#33;"])
    assert clean_titles(titles).to_list() == ["b & b", "plain", None, "a!"]


def test_untitled_items_are_dropped_with_their_events(make_state, rows_of) -> None:
    items = {"a1": ("Tea", "A"), "a2": ("  ", "A"), "a3": (None, "A")}
    state = clean_item_titles(make_state([("u", "a1", 1), ("u", "a2", 2), ("v", "a3", 3)], items))
    kept = handle_untitled(state, "drop")
    assert rows_of(kept) == [("u", "a1", 1)]
    assert kept.users.to_list() == ["u"]
    assert kept.items["item_id"].to_list() == ["a1"]


def test_untitled_items_are_kept_as_the_papers_code_does(make_state, rows_of) -> None:
    items = {"a1": ("Tea", "A"), "a2": ("  ", "A")}
    state = clean_item_titles(make_state([("u", "a1", 1), ("u", "a2", 2)], items))
    kept = handle_untitled(state, "keep")
    assert kept.items["title"].to_list() == ["Tea", "None"]
    assert len(rows_of(kept)) == 2


def test_unknown_policy(make_state) -> None:
    with pytest.raises(DataError, match="unknown policy for untitled items 'hide'"):
        handle_untitled(make_state([("u", "a1", 1)]), "hide")
