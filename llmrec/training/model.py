"""The model that a run starts from."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from llmrec.backbones import resolve_backbone
from llmrec.training.model_arguments import ModelArguments
from modeling_llmrec import LLMRecModel, LLMRecProcessor


def build_model(arguments: ModelArguments, **overrides: Any) -> tuple[Any, Any]:
    """The untrained model around a pre-trained backbone, and its processor.

    The backbone is read straight into `backbone_dtype`, or into 4 bits; head and temperature are float32.

    Raises:
        ModuleNotFoundError: `quantization` without bitsandbytes.
    """
    source = resolve_backbone(arguments.backbone)
    fields = config_fields(arguments, source, **overrides)
    quantization = quantization_config(arguments)
    if quantization is not None:
        fields["quantization_config"] = quantization
    model = LLMRecModel.from_backbone(
        source,
        revision=arguments.backbone_revision,
        preset=arguments.preset,
        dtype=backbone_dtype(arguments),
        attn_implementation=arguments.attn_implementation,
        **fields,
    )
    revision = {"revision": arguments.backbone_revision} if arguments.backbone_revision else {}
    return model, LLMRecProcessor.from_backbone(source, config=model.config, **revision)


def config_fields(arguments: ModelArguments, source: str, **overrides: Any) -> dict[str, Any]:
    """Fields of `LLMRecConfig` that the arguments set; `source` is where the backbone is read from."""
    fields = {**arguments.config_overrides, **overrides}
    if source != arguments.backbone:
        # The published name stands there, and not a path of this machine; at home `load_model` knows the way back.
        fields["backbone_name_or_path"] = arguments.backbone
    return fields


def backbone_dtype(arguments: ModelArguments) -> torch.dtype:
    """The type that the backbone's weights are loaded in, before 4-bit quantisation."""
    in_bf16 = arguments.backbone_dtype == "bfloat16" or arguments.quantization is not None
    return torch.bfloat16 if in_bf16 else torch.float32


def quantization_config(arguments: ModelArguments) -> Any:
    """How the backbone is quantised while it is loaded; None where it is not.

    NormalFloat4 with double quantisation, products in bf16 (Dettmers et al., "QLoRA", NeurIPS 2023, section 3): about
    4.13 bits a weight of the linear layers.

    Raises:
        ModuleNotFoundError: bitsandbytes is not installed.
    """
    if arguments.quantization is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(
            f"quantization={arguments.quantization!r} needs bitsandbytes: `pip install bitsandbytes` (extra `qlora`); "
            "it is made for GPUs, and slow without one"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
