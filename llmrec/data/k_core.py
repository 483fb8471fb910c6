"""Step: k-core, every user and every item with at least k interactions."""

from __future__ import annotations

import numpy as np

from llmrec.data.errors import DataError
from llmrec.data.interactions import Interactions

SCOPES = ("merged", "domain")


def k_core(state: Interactions, k: int, scope: str = "merged") -> Interactions:
    """Drop users, then items, with fewer than k interactions, and again until nothing changes.

    Args:
        state: interactions.
        k: the least number of interactions. 0 drops nothing, not even items that nobody interacted with; 1
            drops just those.
        scope: `merged` counts a user's interactions over all domains (the paper); `domain` within each
            domain, so a user may stay in one domain and go from another. An item is in one domain anyway.

    Raises:
        DataError: unknown scope, negative k, or nothing left.
    """
    if scope not in SCOPES:
        raise DataError(f"unknown k-core scope '{scope}'", advice=f"Choose one of {', '.join(SCOPES)}")
    if k < 0:
        raise DataError(f"k-core of {k}", advice="Give a whole number from 0 (no k-core) up")
    if k == 0:
        return state
    users = state.user_codes.astype(np.int64)
    if scope == "domain":
        users = users * len(state.domain_names) + state.domain_codes[state.item_codes]
    alive = core_mask(users, state.item_codes.astype(np.int64), k)
    if not alive.any():
        raise DataError(
            f"nothing left after the {k}-core (scope '{scope}') of {len(alive)} interactions",
            advice="Lower k, or check that the user and item ids of the tables belong together",
        )
    items = np.zeros(state.items.height, dtype=bool)
    items[state.item_codes[alive]] = True
    return state.keep(events=alive, items=items)


def core_mask(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Find the events of the k-core.

    Args:
        users: int64 code of the user (or user and domain) of each event.
        items: int64 code of the item of each event.
        k: the least number of events of each user and item that stay.

    Returns:
        boolean mask over events. The largest set with the property; the order of dropping does not change it.
    """
    alive = np.arange(len(users))
    while True:
        before = len(alive)
        for codes in (users, items):
            counts = np.bincount(codes[alive])
            alive = alive[counts[codes[alive]] >= k] if len(alive) else alive
        if len(alive) == before:
            mask = np.zeros(len(users), dtype=bool)
            mask[alive] = True
            return mask
