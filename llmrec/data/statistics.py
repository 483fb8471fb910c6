"""Statistics of prepared data, for the data card."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow.compute as pc

from llmrec.data.columns import Columns
from llmrec.data.interactions import Interactions
from llmrec.data.splits import format_moment

QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}


def summarise(values: np.ndarray) -> dict[str, float]:
    """Give mean and quantiles (values that occur, no interpolation) of numbers; empty for none."""
    if not len(values):
        return {}
    points = np.quantile(values, list(QUANTILES.values()), method="lower")
    return {"mean": round(float(values.mean()), 2), **dict(zip(QUANTILES, points.tolist(), strict=True))}


def describe_data(state: Interactions, histories: datasets.DatasetDict, train_count: np.ndarray) -> dict[str, Any]:
    """Compute the statistics of the data card.

    Args:
        state: interactions after the last step.
        histories: the three splits.
        train_count: int64 (items), training interactions of each item.
    """
    names = state.domain_names
    membership = _user_domains(state, len(names))
    result: dict[str, Any] = {
        "users": len(state.users),
        "items": state.items.height,
        "interactions": state.events.height,
        "items_without_interactions": state.items.height - state.active_items(),
        "domains": _domains(state, names, membership),
        "users_by_number_of_domains": _by_number(membership),
        "domain_overlap": _overlap(names, membership),
        "titles": describe_titles(state.items[Columns.TITLE]),
        "splits": {name: _split(part, state, train_count) for name, part in histories.items()},
    }
    if state.has_time:
        times = state.events[Columns.TIMESTAMP].to_numpy()
        result["first_interaction"] = format_moment(int(times.min()))
        result["last_interaction"] = format_moment(int(times.max()))
    return result


def describe_titles(titles: pl.Series) -> dict[str, Any]:
    """Lengths of titles in characters and words, and how many items share a title with another."""
    counts = titles.value_counts(name="items").filter(pl.col("items") > 1)
    return {
        "characters": summarise(titles.str.len_chars().to_numpy()),
        "words": summarise(titles.str.count_matches(r"\S+").to_numpy()),
        "titles_of_several_items": counts.height,
        "items_sharing_a_title": int(counts["items"].sum()),
    }


def _user_domains(state: Interactions, n_domains: int) -> np.ndarray:
    """Boolean (users, domains): who has an interaction where."""
    membership = np.zeros((len(state.users), n_domains), dtype=bool)
    membership[state.user_codes, state.domain_codes[state.item_codes]] = True
    return membership


def _domains(state: Interactions, names: list[str], membership: np.ndarray) -> dict[str, dict[str, int]]:
    codes = state.domain_codes
    items = np.bincount(codes, minlength=len(names))
    events = np.bincount(codes[state.item_codes], minlength=len(names))
    return {
        name: {
            "users": int(membership[:, code].sum()),
            "items": int(items[code]),
            "interactions": int(events[code]),
        }
        for code, name in enumerate(names)
    }


def _by_number(membership: np.ndarray) -> dict[str, int]:
    counts = np.bincount(membership.sum(axis=1), minlength=membership.shape[1] + 1)
    return {str(number): int(count) for number, count in enumerate(counts) if number}


def _overlap(names: list[str], membership: np.ndarray) -> dict[str, dict[str, int]]:
    shared = {
        a: {b: int(np.count_nonzero(membership[:, i] & membership[:, j])) for j, b in enumerate(names)}
        for i, a in enumerate(names)
    }
    return shared


def _split(part: datasets.Dataset, state: Interactions, train_count: np.ndarray) -> dict[str, Any]:
    lengths = pc.list_value_length(part.data.column(Columns.HISTORY)).to_numpy()
    result: dict[str, Any] = {"users": len(part), "history_length": summarise(lengths)}
    if Columns.TARGET not in part.column_names:
        result["examples"] = int((lengths - 1).sum())
        result["interactions"] = int(lengths.sum())
        return result
    targets = part.data.column(Columns.TARGET).to_numpy()
    cold = train_count[targets] == 0
    result["targets_without_training"] = int(np.count_nonzero(cold))
    result["share_of_targets_without_training"] = round(float(cold.mean()), 4)
    names = state.domain_names
    counts = np.bincount(state.domain_codes[targets], minlength=len(names))
    result["targets_by_domain"] = {name: int(count) for name, count in zip(names, counts, strict=True)}
    return result
