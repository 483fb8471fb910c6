"""Text layout and pooling by the kind of backbone, for the presets `default` and `paper`."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

PRESETS = ("default", "paper")


def is_causal(text_config: PreTrainedConfig) -> bool:
    """Whether a token sees only what stands before it (OPT, Llama, Qwen), read off the Auto tables.

    BERT-like models appear in the causal table too, but they also have a masked-language head.
    """
    model_type = text_config.model_type
    return (
        not text_config.is_encoder_decoder
        and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def template_tokens(tokenizer: Any) -> tuple[list[str], list[str]]:
    """Special tokens that a tokenizer itself puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(
        (i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare),
        None,
    )
    if start is None:
        raise ValueError(
            f"Cannot read the special tokens of {type(tokenizer).__name__}: set prefix_tokens and suffix_tokens."
        )
    before, after = full[:start], full[start + len(bare) :]
    return tokenizer.convert_ids_to_tokens(before), tokenizer.convert_ids_to_tokens(after)


def _needed(tokenizer: Any, role: str) -> str:
    token = getattr(tokenizer, role)
    if token is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no {role}, which this "
            "preset puts around every text. Add one to the tokenizer, or set prefix_tokens and suffix_tokens."
        )
    return token


def preset_fields(preset: str, text_config: PreTrainedConfig, tokenizer: Any) -> dict[str, Any]:
    """Fields of `LLMRecConfig` that a preset chooses for a backbone.

    - `paper`: what the authors run. An encoder reads `[CLS]` + titles, without `[SEP]`, and gives
      its first vector; a decoder, and the encoder of an encoder-decoder, read titles + `</s>`,
      without a leading token, and give the last vector. Raw dot products, no temperature, softmax
      over the target and its own negatives.
    - `default`: the tokenizer's own special tokens; mean pooling for encoders (as sentence encoders
      are trained), the closing token's vector for decoders; cosines over a temperature of 0.05;
      in-batch negatives.

    Args:
        preset: `"default"` or `"paper"`.
        text_config: configuration of the backbone.
        tokenizer: its tokenizer.

    Raises:
        ValueError: for an unknown preset, or a tokenizer without a special token that is needed.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is none of {', '.join(map(repr, PRESETS))}.")
    causal = is_causal(text_config)
    if preset == "paper":
        first_token = not causal and not text_config.is_encoder_decoder
        return {
            "pooling": "cls" if first_token else "last",
            "prefix_tokens": [_needed(tokenizer, "cls_token")] if first_token else [],
            "suffix_tokens": [] if first_token else [_needed(tokenizer, "eos_token")],
            "normalize": False,
            "temperature": 1.0,
            "contrastive_loss": "sampled_softmax",
            "item_order": "oldest_first",
            "item_separator": "; ",
            "max_title_tokens": 40,
            "max_history_items": 10,
        }
    before, after = template_tokens(tokenizer)
    # The vector of a decoder is read at its closing token: the only one that has seen the whole text.
    suffix = [_needed(tokenizer, "eos_token")] if causal else after
    return {
        "pooling": "last" if causal else "mean",
        "prefix_tokens": before,
        "suffix_tokens": suffix,
        "normalize": True,
        "temperature": 0.05,
        "contrastive_loss": "in_batch",
    }
