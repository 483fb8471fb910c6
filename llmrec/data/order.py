"""Step: the order of each user's history, by a policy that has a name."""

from __future__ import annotations

import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.errors import DataError
from llmrec.data.interactions import ITEM_CODE, USER_CODE, Interactions

ORDER_POLICIES = {
    "time": "by timestamp over all domains; equal times keep the order of the input rows",
    "interleave": (
        "order is known within a user's domain only: event i (from 0) of n in a domain stands at "
        "(i + 0.5) / n, and the domains are merged by this position; equal positions are in alphabetical "
        "order of the domains"
    ),
    "domain-blocks": ("order is known within a user's domain only: one domain after the other, in alphabetical order"),
}


def order_events(state: Interactions, policy: str) -> Interactions:
    """Sort events by user, and each user's events oldest first by the policy.

    Within a domain, `interleave` and `domain-blocks` go by `order` where the data has it and else by
    `timestamp`; equal values keep the order of the input rows.

    Raises:
        DataError: unknown policy, or `time` without timestamps.
    """
    if policy not in ORDER_POLICIES:
        raise DataError(f"unknown order policy '{policy}'", advice=f"Choose one of {', '.join(ORDER_POLICIES)}")
    if policy == "time":
        if not state.has_time:
            raise DataError(
                "order policy 'time' needs timestamps; the data has only the order within a user's domain",
                column=Columns.TIMESTAMP,
                advice="Choose order policy 'interleave' or 'domain-blocks'",
            )
        events = state.events.sort(USER_CODE, Columns.TIMESTAMP, maintain_order=True)
        return _with_events(state, events)
    within = Columns.ORDER if Columns.ORDER in state.events.columns else Columns.TIMESTAMP
    # Domain codes number the sorted names, so a sort by code is alphabetical.
    domains = pl.Series("domain_code", state.domain_codes[state.item_codes])
    events = state.events.with_columns(domains).sort(USER_CODE, "domain_code", within, maintain_order=True)
    if policy == "interleave":
        group = [USER_CODE, "domain_code"]
        position = (pl.int_range(pl.len()).over(group) + 0.5) / pl.len().over(group)
        events = events.with_columns(position.alias("position"))
        events = events.sort(USER_CODE, "position", "domain_code", maintain_order=True).drop("position")
    return _with_events(state, events.drop("domain_code"))


def _with_events(state: Interactions, events: pl.DataFrame) -> Interactions:
    assert events[ITEM_CODE].len() == state.events.height
    return Interactions(state.users, state.items, events, state.user_keys, state.item_keys)
