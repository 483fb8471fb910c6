"""From ordered events and a split to the three datasets of histories."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa

from llmrec.data.columns import Columns
from llmrec.data.interactions import Interactions
from llmrec.data.splits import NO_TARGET, Split

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_INDEX = datasets.Value("int32")
TRAIN_FEATURES = datasets.Features({Columns.USER: datasets.Value("string"), Columns.HISTORY: datasets.List(_INDEX)})
TARGET_FEATURES = datasets.Features({**TRAIN_FEATURES, Columns.TARGET: _INDEX})


def assemble_histories(state: Interactions, split: Split) -> datasets.DatasetDict:
    """Cut the histories out of the events, without a loop over users.

    Returns:
        train: user_id, history (all training events). validation, test: user_id, history, target. Rows are
        sorted by user id; a history is a list of item indices (int32), oldest first, and never empty.
    """
    items = state.item_codes.astype(np.int32)
    parts = {TRAIN: _histories(state, split, items, split.train_length)}
    for name, target in ((VALIDATION, split.validation_target), (TEST, split.test_target)):
        table = _histories(state, split, items, np.where(target == NO_TARGET, 0, target))
        chosen = target != NO_TARGET
        values = items[split.starts[:-1][chosen] + target[chosen]]
        parts[name] = table.append_column(Columns.TARGET, pa.array(values))
    result = datasets.DatasetDict()
    for name, table in parts.items():
        features = TRAIN_FEATURES if name == TRAIN else TARGET_FEATURES
        result[name] = datasets.Dataset(table.cast(features.arrow_schema))
    return result


def train_counts(state: Interactions, split: Split) -> np.ndarray:
    """Count the training events of each item, int64 (items)."""
    mask = _prefix_mask(split, split.train_length)
    return np.bincount(state.item_codes[mask], minlength=state.items.height).astype(np.int64)


def _prefix_mask(split: Split, lengths: np.ndarray) -> np.ndarray:
    sizes = np.diff(split.starts)
    position = np.arange(split.starts[-1]) - np.repeat(split.starts[:-1], sizes)
    return position < np.repeat(lengths, sizes)


def _histories(state: Interactions, split: Split, items: np.ndarray, lengths: np.ndarray) -> pa.Table:
    """Take the first `lengths[u]` items of each user u that has any."""
    chosen = lengths > 0
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths[chosen])]).astype(np.int32)
    histories = pa.ListArray.from_arrays(pa.array(offsets), pa.array(items[_prefix_mask(split, lengths)]))
    users = state.users.to_arrow().cast(pa.string()).filter(pa.array(chosen))
    return pa.table({Columns.USER: users, Columns.HISTORY: histories})
