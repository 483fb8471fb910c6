"""Step: titles cleaned, and what becomes of items without one."""

from __future__ import annotations

import html
import re

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.interactions import Interactions

UNTITLED = ("drop", "keep")
# What the paper's code shows to the model for an item without a title.
UNTITLED_TEXT = "None"

# Only entities that end in a semicolon: html.unescape alone would also read "black&notes" as "black¬es".
_ENTITY = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
# Folded to one space: white space, control characters, zero-width spaces and byte order marks.
_SPACES = r"[\s\p{Cc}\x{200B}\x{FEFF}]+"


def clean_titles(titles: pl.Series) -> pl.Series:
    """Unescape HTML entities (also twice-escaped ones) and fold white space; a blank title becomes null."""
    frame = pl.DataFrame({"title": titles})
    escaped = pl.col("title").str.contains(r"&[#A-Za-z][0-9A-Za-z]*;")
    part = frame.with_row_index().filter(escaped)
    if part.height:
        plain = pl.Series("title", [unescape(title) for title in part["title"]], dtype=pl.String)
        frame = frame.with_row_index().update(part.select("index", plain), on="index").drop("index")
    folded = pl.col("title").str.replace_all(_SPACES, " ").str.strip_chars()
    return frame.select(pl.when(folded != "").then(folded).alias(titles.name)).to_series()


def unescape(title: str) -> str:
    """Replace HTML entities until none is left: shops escape `&` once or twice."""
    while (plain := _ENTITY.sub(lambda match: html.unescape(match[0]), title)) != title:
        title = plain
    return title


def clean_item_titles(state: Interactions) -> Interactions:
    """Clean the title of every item."""
    cleaned = clean_titles(state.items[Columns.TITLE])
    return state.with_items(state.items.with_columns(cleaned))


def handle_untitled(state: Interactions, policy: str) -> Interactions:
    """Drop items without a title together with their interactions, or keep them under the title `None`.

    Args:
        state: interactions whose titles are cleaned.
        policy: `drop`, or `keep` as the paper's code does.
    """
    if policy not in UNTITLED:
        raise DataError(f"unknown policy for untitled items '{policy}'", advice=f"Choose one of {UNTITLED}")
    if policy == "keep":
        titles = state.items[Columns.TITLE].fill_null(UNTITLED_TEXT)
        return state.with_items(state.items.with_columns(titles))
    return state.keep(items=state.items[Columns.TITLE].is_not_null().to_numpy())
