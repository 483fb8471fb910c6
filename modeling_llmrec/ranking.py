"""From token ids to vectors, scores and the best k: what recommending needs besides the model itself."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# A CPU's caches favour small batches, a GPU's many cores large ones.
BATCH_TOKENS = {"cpu": 2048, "other": 65536}
# Item vectors in float64 at a time.
ITEM_CHUNK = 4096


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions grouped so that texts of a batch are of like length and fit the budget once padded, longest first.

    A text longer than the budget gets a batch of its own.
    """
    batch: list[int] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        if not batch:
            longest = lengths[position]
        batch.append(position)
    if batch:
        yield batch


def encode(
    embed: Callable[[Tensor, Tensor], Tensor], processor: Any, texts: Sequence[Sequence[int]], device: torch.device
) -> Tensor:
    """Vectors of laid out texts.

    Args:
        embed: `get_item_embeddings` or `get_user_embeddings` of a model in eval mode.
        processor: its `LLMRecProcessor`.
        texts: token ids, as `layout_item` and `layout_history` give them.
        device: of the model.

    Returns:
        (texts, embedding_dim) float32 on the CPU. Equal ids are read once and get equal vectors.
    """
    places: dict[tuple[int, ...], int] = {}
    index = [places.setdefault(tuple(ids), len(places)) for ids in texts]
    distinct = list(places)
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["other"])
    order: list[int] = []
    vectors: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches_by_length([len(ids) for ids in distinct], budget):
            padded = processor.pad([distinct[i] for i in batch])
            vectors.append(embed(padded["input_ids"].to(device), padded["attention_mask"].to(device)).float().cpu())
            order += batch
    rows = torch.empty(len(order), dtype=torch.long)
    rows[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(vectors)[rows[torch.tensor(index)]]


def dot_products(users: Tensor, items: Tensor) -> Tensor:
    """(users, items) float32 scores of (users, D) and (items, D), both float32 on one device.

    Each is summed in float64 and rounded once, so that it depends neither on the number of items nor on the order of
    the work, and equal vectors tie.
    """
    scores = torch.empty((len(users), len(items)), dtype=torch.float32, device=items.device)
    exact = users.double()
    for start in range(0, len(items), ITEM_CHUNK):
        block = slice(start, start + ITEM_CHUNK)
        scores[:, block] = exact @ items[block].double().T
    return scores


def best(scores: Tensor, allowed: Tensor, k: int) -> list[int]:
    """Places of the k highest of (items,) scores among the allowed (items,) ones; equal scores keep their order.

    Raises:
        ValueError: for a score that is NaN.
    """
    if bool(scores.isnan().any()):
        raise ValueError("A score is NaN: the model overflows in this type, or its weights are broken.")
    choice = allowed.nonzero().flatten()
    if len(choice) > k:
        # Everything down to the k-th best score, so that a tie at the border is cut by order, not by chance.
        choice = choice[scores[choice] >= scores[choice].topk(k).values[-1]]
    order = torch.sort(scores[choice], descending=True, stable=True).indices[:k]
    return [int(place) for place in choice[order]]
