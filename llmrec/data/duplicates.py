"""Step: exact duplicate rows dropped."""

from __future__ import annotations

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.interactions import ITEM_CODE, USER_CODE, Interactions


def drop_duplicates(state: Interactions) -> Interactions:
    """Drop rows that repeat an earlier one in user, item, time and (where known) rating.

    The same user and item at another time is another interaction, and stays. The rating has done its work
    after this step and is dropped.
    """
    events = state.events
    # One key for user and item, so that fewer columns are hashed: ten million rows need less memory.
    pair = pl.col(USER_CODE).cast(pl.UInt64) * state.items.height + pl.col(ITEM_CODE).cast(pl.UInt64)
    rest = [name for name in (Columns.TIMESTAMP, Columns.ORDER, Columns.RATING) if name in events.columns]
    rows = events.select(pair.alias("pair"), *rest)
    mask = rows.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    kept = state.keep(events=mask)
    if Columns.RATING not in events.columns:
        return kept
    return Interactions(kept.users, kept.items, kept.events.drop(Columns.RATING), kept.user_keys, kept.item_keys)
