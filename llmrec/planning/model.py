"""The model of a run without its weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers.initialization import no_init_weights

from llmrec.backbones import resolve_backbone
from llmrec.training.model import backbone_dtype, config_fields
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.packing import Packing, can_share_prefixes
from llmrec.training.tuning import apply_tuning
from modeling_llmrec import LLMRecModel, LLMRecProcessor


def planned_model(arguments: ModelArguments) -> tuple[Any, Any]:
    """The model as training would have it, adapters included, and its processor.

    Its parameters lie on the `meta` device: they have shapes and types, and take no memory. Of the backbone only the
    configuration and the tokenizer are read. A backbone that is to be quantised has the parameters of the plain one.

    Raises:
        OSError: no configuration or no tokenizer where the backbone should be.
        ValueError: as `LLMRecModel.from_backbone` and `apply_tuning`.
    """
    source = resolve_backbone(arguments.backbone)
    revision = {"revision": arguments.backbone_revision} if arguments.backbone_revision else {}
    config = LLMRecModel.config_for_backbone(
        source, preset=arguments.preset, **revision, **config_fields(arguments, source)
    )
    processor = LLMRecProcessor.from_backbone(source, config=config, **revision)
    with torch.device("meta"), no_init_weights():
        model = LLMRecModel(config)
        model.tie_weights()  # a part of the initialisation, which is left out
        model.backbone.to(backbone_dtype(arguments))
        return apply_tuning(model, arguments), processor


def expected_packing(
    model: Any, wanted: str, share_prefixes: bool | None, attention: str | None, on_gpu: bool
) -> Packing:
    """The packing that `choose_packing` will most likely take; it tries on the loaded model, which is not here.

    Args:
        model: from `planned_model`.
        wanted, share_prefixes: arguments of the run.
        attention: the attention implementation asked for.
        on_gpu: whether the run is planned for a GPU.

    Raises:
        ValueError: prefixes are to be shared where they cannot be.
    """
    sharable = can_share_prefixes(model.config)
    if share_prefixes and not sharable:
        raise ValueError("share_prefixes=true needs a causal backbone, pooling='last' and item_order='oldest_first'")
    if wanted == "off":
        return Packing("off", False)
    share = sharable if share_prefixes is None else share_prefixes
    if wanted != "auto":
        return Packing(wanted, share)
    backbone = model.backbone
    if attention == "flash_attention_2" and not share:
        return Packing("flash", False)
    # A learned bias for every pair of tokens (T5) belongs to the whole row.
    biased = hasattr(model.config.text_config, "relative_attention_num_buckets")
    if attention == "eager" or biased:
        return Packing("mask", share)
    flexible = on_gpu and getattr(backbone, "_supports_flex_attn", False)
    return Packing("flex" if flexible or attention == "flex_attention" else "segments", share)
