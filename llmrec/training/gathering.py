"""The items of all ranks as one set of candidates: which stand where, and who counts for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import gather
from torch import Tensor

from llmrec.training.candidates import in_batch_mask

NOBODY = -1
"""Item id of a column that holds no item, or one that an earlier column holds already."""


def exchange(numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """A few numbers of every rank, rank by rank. All ranks must call it; it waits for the device."""
    return gather(torch.tensor([list(numbers)], device=device)).tolist()


@dataclass(frozen=True)
class GatheredItems:
    """The columns of the loss when the items of all ranks are candidates: `per_rank` columns for each rank in turn."""

    ids: Tensor
    """(ranks * per_rank,) int64 representative in each column, -1 where the column does not count."""
    per_rank: int
    """Largest number of items of one rank: the others' columns are filled up to it."""
    positive_index: Tensor
    """(B,) int64 column of each target of this rank."""
    log_q: Tensor | None
    """(ranks * per_rank,) float32; 0 in columns without an item."""


def gather_items(
    target_ids: Tensor, item_ids: Tensor, item_log_q: Tensor | None, sizes: Sequence[int]
) -> GatheredItems:
    """Exchange the items of a step. All ranks must call it.

    A title that several ranks have counts once, in the first column that holds it, as in one process with the batches
    of all; a target's column is that one too, so its gradient goes to the rank that the column belongs to.

    Args:
        target_ids: (B,) representatives.
        item_ids: (M,) representatives, the targets among them.
        item_log_q: (M,) or None, on all ranks alike.
        sizes: M of every rank.
    """
    per_rank = max(sizes)
    missing = per_rank - len(item_ids)
    ids = gather(torch.nn.functional.pad(item_ids, (0, missing), value=NOBODY))
    log_q = None if item_log_q is None else gather(torch.nn.functional.pad(item_log_q, (0, missing)))
    # A stable sort leaves equal ids in the order of their columns, and a search on the left finds the first of them.
    ordered, order = torch.sort(ids, stable=True)
    repeats = torch.zeros_like(ids, dtype=torch.bool)
    repeats[order[1:]] = ordered[1:] == ordered[:-1]
    positive_index = order[torch.searchsorted(ordered, target_ids)]
    return GatheredItems(ids.masked_fill(repeats, NOBODY), per_rank, positive_index, log_q)


def gathered_mask(
    items: GatheredItems, target_ids: Tensor, excluded: Tensor, text: Tensor, domain: Tensor | None
) -> Tensor:
    """(B, ranks * per_rank) bool, the columns that count for each example of this rank, its target's included.

    Arguments as of `in_batch_mask`.
    """
    mask = in_batch_mask(target_ids, items.ids.clamp(min=0), excluded, text, domain) & (items.ids >= 0)
    return mask.scatter(1, items.positive_index[:, None], True)
