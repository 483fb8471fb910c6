"""One small backbone folder of each family, with real vocabularies and real weights where there are any."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    ModernBertConfig,
    ModernBertModel,
    OPTConfig,
    OPTModel,
    Qwen3Config,
    Qwen3Model,
    T5ForConditionalGeneration,
)

FAMILIES = ("bert", "opt", "t5", "bart", "llama", "qwen3", "modernbert")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def backbone_folder(family: str, minilm: str, weights: Path, scratch: Path) -> str:
    """A folder with config, safetensors weights and tokenizer. BERT, BART and Llama are really pre-trained."""
    ready = {"bert": minilm, "bart": str(weights / "bart-g2p-en-us"), "llama": str(weights / "stories260K")}
    if family in ready:
        return ready[family]
    torch.manual_seed(0)
    make: dict[str, Callable[[], tuple]] = {
        "opt": lambda: _opt(weights),
        "t5": lambda: _t5(weights),
        "qwen3": lambda: _qwen3(weights),
        "modernbert": lambda: _modernbert(minilm),
    }
    model, tokenizer = make[family]()
    folder = scratch / family
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _opt(weights: Path) -> tuple:
    config = OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=512)
    return OPTModel(config), AutoTokenizer.from_pretrained(weights / "tokenizers" / "opt")


def _t5(weights: Path) -> tuple:
    folder = weights / "tokenizers" / "flan-t5-small"
    config = AutoConfig.from_pretrained(folder)
    config.update({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4})
    return T5ForConditionalGeneration(config), AutoTokenizer.from_pretrained(folder)


def _qwen3(weights: Path) -> tuple:
    tokenizer = AutoTokenizer.from_pretrained(weights / "tokenizers" / "opt")
    config = Qwen3Config(
        **SMALL, vocab_size=len(tokenizer), intermediate_size=64, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=512,
    )  # fmt: skip
    return Qwen3Model(config), tokenizer


def _modernbert(minilm: str) -> tuple:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    ids = {"pad_token_id": tokenizer.pad_token_id, "cls_token_id": tokenizer.cls_token_id,
           "sep_token_id": tokenizer.sep_token_id, "bos_token_id": tokenizer.cls_token_id,
           "eos_token_id": tokenizer.sep_token_id}  # fmt: skip
    config = ModernBertConfig(
        **SMALL, vocab_size=len(tokenizer), intermediate_size=64, max_position_embeddings=512, **ids
    )
    return ModernBertModel(config), tokenizer
