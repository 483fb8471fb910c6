"""Packed texts through a backbone of any family: positions and masks in the form that it takes them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .packing import PackedTexts, block_mask, flex_block_mask
from .segment_attention import Segments

SLIDING = "sliding_attention"


def read_packed(backbone: Any, packed: PackedTexts, causal: bool) -> Tensor:
    """Hidden states of packed texts.

    Args:
        backbone: a text model of transformers; its attention implementation decides how texts are kept apart:
            flash attention by the borders of the texts, flex attention by a `BlockMask`, others by a boolean mask;
            rows with buckets are read text by text (`segment_attention`).
        packed: the texts.
        causal: whether the backbone looks back only.

    Returns:
        (rows, length, hidden_size).
    """
    arguments: dict[str, Any] = {"input_ids": packed.input_ids}
    attention = str(backbone.config._attn_implementation)
    if packed.buckets is not None:
        # Four dimensions tell transformers to leave the mask alone; nothing reads it.
        arguments["attention_mask"] = torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=packed.input_ids.device)
        arguments["segments"] = Segments(packed, causal)
    elif attention.startswith("flash_attention"):
        arguments |= _borders(packed)
    else:
        arguments["attention_mask"] = _masks(backbone, packed, causal, attention)
    with _positions(backbone, packed.position_ids, arguments):
        return backbone(**arguments).last_hidden_state


def _borders(packed: PackedTexts) -> dict[str, Any]:
    """Arguments of variable-length flash attention; one vector a text, and texts in the order of the row."""
    if packed.query_ids is not None or packed.input_ids.shape[0] != 1:
        raise ValueError("Flash attention takes one flat row of texts without queries.")
    borders = torch.cat([packed.starts, packed.ends[-1:]]).to(torch.int32)
    longest = int(borders.diff().max())
    return {
        "attention_mask": None,
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _masks(backbone: Any, packed: PackedTexts, causal: bool, attention: str) -> Any:
    """One mask, or one for each kind of layer where a backbone mixes full and sliding ones."""
    config = backbone.config
    window = getattr(config, "sliding_window", None)
    if window is not None and not causal:
        window += 1  # encoders count a half window, the token itself left out

    def make(limit: int | None) -> Any:
        if attention == "flex_attention":
            return flex_block_mask(packed, causal, limit)
        mask = block_mask(packed, causal, limit)
        if attention != "eager":
            return mask
        # Eager attention adds its mask to the scores, and would take True for 1.
        return torch.zeros(mask.shape, dtype=backbone.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(backbone.dtype).min
        )

    kinds = set(getattr(config, "layer_types", None) or ())
    if SLIDING in kinds:
        return {"full_attention": make(None), SLIDING: make(window)}
    return make(window if not kinds else None)


@contextmanager
def _positions(backbone: Any, position_ids: Tensor, arguments: dict[str, Any]) -> Iterator[None]:
    """Hand the positions over: as an argument, to the embedding of positions where the backbone takes none (BART's
    encoder), or not at all where positions are relative (T5)."""
    embedding = position_embedding(backbone)
    padding = getattr(embedding, "padding_idx", None)
    if padding is not None:
        position_ids = position_ids + padding + 1  # RoBERTa counts from there
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        arguments["position_ids"] = position_ids
        yield
    elif embedding is None:
        yield
    else:
        # Such a table takes one list of positions for all rows: give it those of all rows, one after the other.
        hooks = [
            embedding.register_forward_pre_hook(
                lambda module, args, kwargs: (args, {**kwargs, "position_ids": position_ids.flatten()}),
                with_kwargs=True,
            ),
            embedding.register_forward_hook(
                lambda module, args, output: output.reshape(*position_ids.shape, output.shape[-1])
            ),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def position_embedding(backbone: nn.Module) -> nn.Embedding | None:
    """The table of learned absolute positions, or None where there is none."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "embed_positions"):
            return module
    return None
