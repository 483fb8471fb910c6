"""Several texts in one row: what a batch of packed texts holds, and who may look at whom in it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


@dataclass
class PackedTexts:
    """Token ids of many texts without padding between them, and where the vectors are read.

    A text may give several vectors (prefix sharing): its ordinary tokens are the titles, and each of its queries is a
    short run of tokens that sees the titles before it and that no other token sees. So the vector of a query is that
    of the text which ends there.

    Attributes:
        input_ids: (rows, length) int64.
        position_ids: (rows, length) int64, from 0 in every text. A query and the title after it start at the same one.
        segment_ids: (rows, length) int64, number of the text within its row, from 1; 0 for padding.
        starts: (vectors,) int64, flat index (row * length + column) of the first token of the text of a vector.
        ends: (vectors,) int64, flat index one past its last token.
        read_tokens: sum of `ends - starts`.
        query_ids: (rows, length) int64, 0 for ordinary tokens, k for the tokens of query k of a text; None where no
            text has queries.
        buckets: for attention text by text: each (texts, longest) int64 flat indices of the tokens of texts of like
            length, -1 where a text is shorter. Every token stands in exactly one of them.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    starts: Tensor
    ends: Tensor
    read_tokens: int
    query_ids: Tensor | None = None
    buckets: list[Tensor] | None = None

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self.starts)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "PackedTexts":
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = change(value)
            elif isinstance(value, list):
                value = [change(tensor) for tensor in value]
            values[field.name] = value
        return type(self)(**values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedTexts":
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedTexts":
        """The same in page-locked memory; data loaders call it."""
        return self._map(lambda tensor: tensor.pin_memory())


def block_mask(packed: PackedTexts, causal: bool, window: int | None = None) -> Tensor:
    """Who sees whom in packed rows.

    A token sees the tokens of its own text; in a causal backbone those up to itself; of queries its own one only; in
    a layer with a sliding window those at fewer than `window` positions from it.

    Returns:
        (rows, 1, length, length) bool. Padding sees padding: a row that sees nothing would be NaN.
    """
    segments, positions = packed.segment_ids, packed.position_ids
    mask = segments[:, :, None] == segments[:, None, :]
    if causal:
        mask &= torch.ones(mask.shape[1:], dtype=torch.bool, device=mask.device).tril()
    if packed.query_ids is not None:
        mask &= queries_apart(packed.query_ids)
    if window is not None:
        mask &= (positions[:, :, None] - positions[:, None, :]).abs() < window
    return mask[:, None]


def queries_apart(query_ids: Tensor) -> Tensor:
    """(rows, length, length) bool: an ordinary token is seen by all, the token of a query by that query alone."""
    return (query_ids[:, None, :] == 0) | (query_ids[:, None, :] == query_ids[:, :, None])


def flex_block_mask(packed: PackedTexts, causal: bool, window: int | None = None) -> BlockMask:
    """`block_mask` for flex attention, which skips blocks of it that are all False."""
    segments, positions, queries = packed.segment_ids, packed.position_ids, packed.query_ids

    def allowed(row: Tensor, head: Tensor, reader: Tensor, seen: Tensor) -> Tensor:
        mask = segments[row, reader] == segments[row, seen]
        if causal:
            mask = mask & (seen <= reader)
        if queries is not None:
            mask = mask & ((queries[row, seen] == 0) | (queries[row, seen] == queries[row, reader]))
        if window is not None:
            mask = mask & ((positions[row, reader] - positions[row, seen]).abs() < window)
        return mask

    rows, length = segments.shape
    return create_block_mask(allowed, rows, None, length, length, device=segments.device)
