"""Who counts as a negative for whom among the items of a batch, of other processes, or of the whole catalogue."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmrec.evaluation.histories import Histories


def excluded_keys(histories: Histories, users: np.ndarray, text: np.ndarray) -> np.ndarray:
    """What the examples of a batch must not be contrasted with: every title of their users' training histories.

    Args:
        histories: whole training histories.
        users: (B,) user of each example.
        text: (items,) text class of each item.

    Returns:
        (E,) int64, ascending: `row * len(text) + text class`, each once.
    """
    rows, items = histories.events(users)
    return np.unique(rows * len(text) + text[items])


def in_batch_mask(
    target_ids: Tensor, item_ids: Tensor, excluded: Tensor, text: Tensor, domain: Tensor | None = None
) -> Tensor:
    """Which items count as negatives of which examples under the in-batch loss.

    All of them but those whose title is the target's or one of the user's training history; with `domain`, only those
    of the target's domain. Time and memory are those of the mask itself: each excluded title is looked up among the
    sorted titles of the items, so a bank of a million items costs no search for each of its entries.

    Args:
        target_ids: (B,) int64 item index of each target.
        item_ids: (M,) int64 item index of each candidate, from this batch or anywhere else.
        excluded: (E,) int64 of `excluded_keys`.
        text: (items,) int64 text class of each item of the catalogue.
        domain: (items,) domain of each item, where negatives come from the target's domain only.

    Returns:
        (B, M) bool on the device of `item_ids`. A target is no negative of its own: False in its column.
    """
    texts = text[item_ids]
    mask = text[target_ids][:, None] != texts[None, :]
    if domain is not None:
        mask &= domain[target_ids][:, None] == domain[item_ids][None, :]
    order = torch.argsort(texts)
    ordered = texts[order]
    row, title = excluded // len(text), excluded % len(text)
    first = torch.searchsorted(ordered, title)
    # An equal title of another domain is a candidate of its own, so a title may be found more than once.
    found = torch.searchsorted(ordered, title, right=True) - first
    runs = torch.cumsum(found, 0) - found
    each = torch.repeat_interleave(torch.arange(len(found), device=found.device), found)
    place = first[each] + torch.arange(len(each), device=found.device) - runs[each]
    mask[row[each], order[place]] = False
    return mask
