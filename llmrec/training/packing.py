"""How texts share rows: the fastest way that a backbone can really take, found out by trying."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from llmrec.data.title_tokens import TitleTokens
from llmrec.training.layout import Specials, Text, Texts, lay_out, pack
from modeling_llmrec.presets import is_causal
from modeling_llmrec.segment_attention import ATTENTION

logger = logging.getLogger(__name__)

ATTENTION_OF = {
    "segments": ATTENTION,
    "mask": "sdpa",
    "flex": "flex_attention",
    "flash": "flash_attention_2",
}
"""Attention implementation of the backbone for each way of packing."""

# Largest difference, relative to the longest vector, that rounding may make between a packed text and the same alone.
# Texts that see each other, or positions that are off, differ by orders of magnitude more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class Packing(NamedTuple):
    """How a run packs its texts.

    Attributes:
        how: `"segments"`, `"mask"`, `"flex"`, `"flash"`, or `"off"` for one padded row a text.
        share_prefixes: whether a user's history is read once for several targets.
    """

    how: str
    share_prefixes: bool


def can_share_prefixes(config: Any) -> bool:
    """Whether one pass over a history can give the vectors of all its prefixes: what comes later must not be seen, the
    vector must be read at the end, and later titles must stand behind earlier ones."""
    causal = is_causal(config.text_config) and not config.encoder_only
    return causal and config.pooling == "last" and config.item_order == "oldest_first"


def choose_packing(model: Any, processor: Any, wanted: str = "auto", share_prefixes: bool | None = None) -> Packing:
    """Choose, set the backbone's attention accordingly, and check on a few texts that vectors stay the same.

    Packing rests on the backbone keeping texts of one row apart. Not every architecture does (recurrent layers,
    attention of its own making), and those that do not would train on wrong vectors without a word; so each way is
    tried on the model itself, and taken only if it gives the vectors of the same texts one by one.

    Args:
        model: an `LLMRecModel`, or a PEFT model around one, on the device of the training.
        processor: its processor.
        wanted: a way of packing, or `"auto"` for the fastest that passes.
        share_prefixes: whether to; None where it is possible.

    Returns:
        The choice; logged.

    Raises:
        ValueError: where what was asked for is not possible, with the reason.
    """
    sharable = can_share_prefixes(model.config)
    if share_prefixes and not sharable:
        raise ValueError(
            "share_prefixes=true needs a causal backbone, pooling='last' and item_order='oldest_first'; this model is "
            f"{'causal' if is_causal(model.config.text_config) else 'not causal'}, with "
            f"pooling={model.config.pooling!r} and item_order={model.config.item_order!r}"
        )
    share = sharable if share_prefixes is None else share_prefixes
    if wanted == "off":
        logger.info("packing off: one padded row a text")
        return Packing("off", False)
    before = model.backbone.config._attn_implementation
    reasons = []
    for how in [wanted] if wanted != "auto" else _candidates(model, share):
        reason = _try(model, processor, how, share)
        if reason is None:
            logger.info(
                "packing %s (%s attention), prefixes %s", how, model.backbone.config._attn_implementation,
                "read once for all targets of a user" if share else "read one by one",
            )  # fmt: skip
            return Packing(how, share)
        logger.info("packing %s was tried and left: %s", how, reason)
        reasons.append(f"{how}: {reason}")
        model.backbone.set_attn_implementation(before)
    if wanted != "auto":
        raise ValueError(f"packing={wanted!r} does not work for this backbone ({reasons[0]}); use packing: auto")
    logger.warning("texts of this backbone cannot be packed, each gets a padded row (%s)", "; ".join(reasons))
    return Packing("off", False)


def _candidates(model: Any, share: bool) -> list[str]:
    """Ways to try, the fastest first; an attention implementation that was asked for is respected."""
    asked = model.backbone.config._attn_implementation
    for how, attention in ATTENTION_OF.items():
        if asked == attention and how != "mask":
            return [how]
    if asked == "eager":
        return ["mask"]
    on_gpu = next(model.parameters()).device.type == "cuda"
    ways = ["segments", "mask"]
    if on_gpu and getattr(model.backbone, "_supports_flex_attn", False):
        ways.insert(0, "flex")
    if on_gpu and not share and importlib.util.find_spec("flash_attn") is not None:
        ways.insert(0, "flash")
    return ways


def _try(model: Any, processor: Any, how: str, share: bool) -> str | None:
    """Set the attention and read the same texts packed and alone; None if that is the same, else what is wrong."""
    try:
        # Rows under a mask need no attention of their own: eager and SDPA both take it.
        if not (how == "mask" and model.backbone.config._attn_implementation == "eager"):
            model.backbone.set_attn_implementation(ATTENTION_OF[how])
        if is_deepspeed_zero3_enabled():
            return None  # the weights are spread over the ranks, and come together in the wrapped model only
        difference = packing_error(model, processor, how, share)
    except (ValueError, TypeError, RuntimeError, ImportError, IndexError, NotImplementedError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    tolerance = TOLERANCE.get(next(model.backbone.parameters()).dtype, TOLERANCE[torch.bfloat16])
    return None if difference <= tolerance else f"vectors of packed texts are off by {difference:.1e}"


@torch.no_grad()
def packing_error(model: Any, processor: Any, how: str, share: bool) -> float:
    """Largest difference between vectors of packed texts and of the same texts one by one, relative to their length.

    The texts are made of arbitrary tokens: three items, and a history of three titles whose prefixes are read too
    where they are shared.
    """
    device = next(model.parameters()).device
    size = model.get_input_embeddings().weight.shape[0]
    titles = [[(7 * item + 3 * place + 11) % size for place in range(4 + 3 * item)] for item in range(3)]
    read = np.ones(3, dtype=bool) if share else None
    history = lay_out(TitleTokens.of(titles), Specials.of(processor), np.arange(3), np.array([3]), read)
    ends = tuple(history.ends.tolist())
    items = [processor.layout_item(title) for title in titles]
    texts = [*map(Text, items), Text(history.ids, history.positions, history.queries, ends)]
    prefixes = [processor.layout_item(sum(titles[:count], [])) for count in ((1, 2, 3) if share else (3,))]
    training = model.training
    model.eval()
    try:
        packed = model(texts=pack(Texts.of(texts), how).to(device)).embeddings
        alone = [model.get_user_embeddings(torch.tensor([text], device=device)) for text in (*items, *prefixes)]
    finally:
        model.train(training)
    single = torch.cat(alone)
    return float((packed - single).abs().max() / single.norm(dim=1).max())
