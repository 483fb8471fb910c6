"""Step: a sample of users, for experiments that must be short."""

from __future__ import annotations

import numpy as np

from llmrec.data.errors import DataError
from llmrec.data.interactions import Interactions


def sample_users(state: Interactions, max_users: int | None) -> Interactions:
    """Keep the users whose hashed id comes first; the catalogue stays whole, so ranking is as hard as before.

    The same id is always in or out of a sample of a given rank, on every machine, and a smaller sample is
    part of a larger one.

    Args:
        state: interactions.
        max_users: how many users to keep; None keeps all.
    """
    if max_users is None or max_users >= len(state.users):
        return state
    if max_users < 1:
        raise DataError(f"a sample of {max_users} users", advice="Give a number from 1 up")
    chosen = np.zeros(len(state.users), dtype=bool)
    chosen[np.argsort(state.user_keys, kind="stable")[:max_users]] = True
    return state.keep(events=chosen[state.user_codes])
