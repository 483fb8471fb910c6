"""Attention text by text over one flat row of packed texts, for any backbone that takes its attention from a table.

Linear layers then see every real token once and no padding, and attention costs the sum of the squared lengths of the
texts instead of the square of the row. The function is registered with transformers as `ATTENTION`; a call without
`segments` is plain SDPA, so a backbone may keep the name for padded batches too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .packing import PackedTexts, queries_apart

ATTENTION = "llmrec_segments"
# Arguments of some backbones' attention that change its result; what is not known here must not be dropped.
UNSUPPORTED = ("position_bias", "softcap", "s_aux", "cache")


class Segments:
    """The buckets of a flat row, made once for all layers of a forward pass.

    Args:
        packed: one flat row with its buckets.
        causal: whether the backbone looks back only.
    """

    def __init__(self, packed: PackedTexts, causal: bool) -> None:
        if packed.buckets is None or packed.input_ids.shape[0] != 1:
            raise ValueError("Attention text by text needs one flat row with buckets.")
        self.causal = causal
        self.positions = packed.position_ids[0]
        self.queries = None if packed.query_ids is None else packed.query_ids[0]
        self.filled = [bucket >= 0 for bucket in packed.buckets]
        self.index = [bucket.clamp(min=0) for bucket in packed.buckets]
        # Tokens of all buckets, one bucket after the other, and where each token of the row stands among them.
        self.slots = torch.cat([index.flatten() for index in self.index])
        self.sizes = [index.numel() for index in self.index]
        slots = torch.cat([bucket.flatten() for bucket in packed.buckets])
        place = torch.empty(packed.input_ids.shape[1] + 1, dtype=torch.long, device=slots.device)
        place[slots] = torch.arange(len(slots), device=slots.device)  # padding slots (-1) write the extra last place
        self.place = place[:-1]
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def mask(self, bucket: int, window: int | None) -> Tensor | None:
        """(texts, 1, length or 1, length) bool; None where causality alone (or nothing) hides a token."""
        key = (bucket, window)
        if key not in self._masks:
            self._masks[key] = self._make_mask(bucket, window)
        return self._masks[key]

    def _make_mask(self, bucket: int, window: int | None) -> Tensor | None:
        index, filled = self.index[bucket], self.filled[bucket]
        length = index.shape[1]
        queries = None if self.queries is None else self.queries[index]
        if queries is not None and queries.device.type == "cpu" and not bool(queries.any()):
            queries = None  # a mask less; on an accelerator the look would wait for the device
        if not self.causal and (window is None or window >= length):
            return filled[:, None, None, :]
        if self.causal and queries is None and (window is None or window >= length):
            return None  # padding stands on the right, where no real token looks
        mask = torch.ones((len(index), length, length), dtype=torch.bool, device=index.device)
        mask = mask.tril() if self.causal else mask & filled[:, None, :]
        if queries is not None:
            mask &= queries_apart(queries)
        if window is not None:
            positions = self.positions[index]
            mask &= (positions[:, :, None] - positions[:, None, :]).abs() < window
            # A padding token may stand far from all others: it sees itself, so that its row is not NaN.
            mask |= torch.eye(length, dtype=torch.bool, device=index.device)
        return mask[:, None]


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, size); key, value: (1, heads or key-value heads, tokens, size).
        attention_mask: looked at only without `segments`.
        dropout: of the attention weights.
        scaling: factor of the scores; 1/√size by default.
        segments: the texts of the row; plain SDPA without them.
        sliding_window: tokens see others at fewer than this many positions.

    Returns:
        (1, tokens, heads, size), and no weights.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
            sliding_window=sliding_window, **kwargs,
        )  # fmt: skip
    given = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if given:
        raise ValueError(f"Attention text by text knows no {given[0]}: use packing by block masks.")
    groups = getattr(module, "num_key_value_groups", 1)
    # One gather for all buckets: the gradient of a gather for each would be as many rows of zeros, added up.
    queries, keys, values = (
        tensor[0].transpose(0, 1).index_select(0, segments.slots).split(segments.sizes)
        for tensor in (query, key, value)
    )
    outputs = []
    for number, index in enumerate(segments.index):
        mask = segments.mask(number, sliding_window)
        output = scaled_dot_product_attention(
            _texts(queries[number], index), _texts(keys[number], index, groups), _texts(values[number], index, groups),
            attn_mask=mask, dropout_p=dropout, scale=scaling,
            is_causal=segments.causal and mask is None and index.shape[1] > 1,
        )  # fmt: skip
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, segments.place).unsqueeze(0), None


def _texts(tokens: Tensor, index: Tensor, repeats: int = 1) -> Tensor:
    """(tokens of a bucket, heads, size) → (texts, heads * repeats, length, size)."""
    texts = tokens.unflatten(0, index.shape).transpose(1, 2)
    return texts if repeats == 1 else texts.repeat_interleave(repeats, dim=1)


AttentionInterface.register(ATTENTION, segment_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
