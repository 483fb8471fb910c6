"""Vectors of a whole catalogue and of many histories, in batches with little padding."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_llmrec.ranking import BATCH_TOKENS, batches_by_length

# Texts laid out and sorted at a time: bounds memory whatever the number of users.
CHUNK = 16384


def encode_titles(
    model: Any,
    processor: Any,
    title_tokens: Sequence[Sequence[int]],
    rows: Sequence[int] | np.ndarray | None = None,
    *,
    batch_tokens: int | None = None,
    progress: bool = True,
    autocast_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Vectors of items.

    Args:
        model: an `LLMRecModel`, or a PEFT model around one.
        processor: its processor.
        title_tokens: token ids of the titles of a catalogue (`TitleTokens`).
        rows: item indices to encode; all by default.
        batch_tokens: tokens of a batch, padding included.
        progress: whether to show a bar.
        autocast_dtype: e.g. `torch.bfloat16` to compute the backbone in; vectors stay float32.

    Returns:
        (rows, embedding_dim) float32 on the CPU, in the order of `rows`.
    """
    wanted = np.arange(len(title_tokens)) if rows is None else np.asarray(rows)
    # Items with the same text are encoded once: less work, and they tie to the last bit.
    seen: dict[tuple[int, ...], int] = {}
    place = np.fromiter(
        (seen.setdefault(tuple(title_tokens[int(i)]), len(seen)) for i in wanted), np.int64, len(wanted)
    )
    _, first = np.unique(place, return_index=True)
    vectors = _encode(
        model, processor, model.get_item_embeddings, wanted[first],
        lambda row: processor.layout_item(title_tokens[int(row)]), "Encoding items",
        batch_tokens, progress, autocast_dtype,
    )  # fmt: skip
    return vectors if len(first) == len(wanted) else vectors[torch.as_tensor(place)]


def encode_histories(
    model: Any,
    processor: Any,
    histories: Sequence[Sequence[int] | np.ndarray],
    title_tokens: Sequence[Sequence[int]],
    *,
    batch_tokens: int | None = None,
    progress: bool = True,
    autocast_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Vectors of histories.

    Args:
        histories: one list of item indices a user, oldest first, none empty.
        Other arguments as in `encode_titles`.

    Returns:
        (histories, embedding_dim) float32 on the CPU.

    Raises:
        ValueError: for an empty history, naming its row.
    """
    newest = processor.config.max_history_items

    def layout(row: Any) -> list[int]:
        items = histories[int(row)][-newest:]
        if not len(items):
            raise ValueError(f"History {int(row)} is empty: a user needs at least one item to be encoded.")
        return processor.layout_history([title_tokens[int(item)] for item in items])

    return _encode(
        model, processor, model.get_user_embeddings, np.arange(len(histories)), layout, "Encoding histories",
        batch_tokens, progress, autocast_dtype,
    )  # fmt: skip


@torch.inference_mode()
def _encode(
    model: Any,
    processor: Any,
    embed: Callable[..., torch.Tensor],
    rows: np.ndarray,
    layout: Callable[[Any], list[int]],
    what: str,
    batch_tokens: int | None,
    progress: bool,
    autocast_dtype: torch.dtype | None,
) -> torch.Tensor:
    device = next(model.parameters()).device
    budget = batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["other"])
    autocast = torch.autocast(device.type, autocast_dtype) if autocast_dtype else nullcontext()
    vectors = torch.empty((len(rows), model.config.embedding_dim), dtype=torch.float32)
    training = model.training
    model.eval()
    try:
        with autocast, tqdm(total=len(rows), desc=what, disable=not progress, unit="text") as bar:
            for start in range(0, len(rows), CHUNK):
                texts = [layout(row) for row in rows[start : start + CHUNK]]
                for batch in batches_by_length([len(text) for text in texts], budget):
                    padded = processor.pad([texts[i] for i in batch])
                    out = embed(padded["input_ids"].to(device), padded["attention_mask"].to(device))
                    vectors[start + torch.as_tensor(batch)] = out.float().cpu()
                    bar.update(len(batch))
    finally:
        model.train(training)
    return vectors
