"""Asking a trained `LLMRecModel` the questions of `HeldOut`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llmrec.retrieval.encoding import encode_histories, encode_titles

from .data import HeldOut, answer

BATCH_TOKENS = 2048


def ask(model: Any, processor: Any, tokens: Sequence[Sequence[int]], heldout: HeldOut) -> dict[str, float]:
    """Loss and hits of a model, or of a PEFT model around one; see `data.answer`."""
    was_training = model.training
    model.eval()
    items, rows = heldout.questions()
    options: dict[str, Any] = {"batch_tokens": BATCH_TOKENS, "progress": False}
    users = encode_histories(model, processor, heldout.histories, tokens, **options)
    vectors = encode_titles(model, processor, tokens, items, **options)
    with torch.no_grad():
        scale = float(model.logit_scale(torch.ones((), device=next(model.parameters()).device)))
    model.train(was_training)
    return answer(users.cpu(), vectors.cpu(), rows, scale)
