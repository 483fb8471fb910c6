"""The backbones: real MiniLM, and the shapes of OPT and T5 with random weights, each as a folder to load from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPT_CONFIG = {
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_function": "relu",
    "do_layer_norm_before": True,
}


def opt_shape(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    """Fields of `OPTConfig` for one of the published sizes from 125M on (350M has a form of its own)."""
    return {
        **OPT_CONFIG,
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
    }


@dataclass(frozen=True)
class Shape:
    """A backbone of the benchmark.

    Attributes:
        family: `minilm`, `opt` or `t5`.
        label: how tables name it.
        tokenizer: folder of its vocabulary below `weights/tokenizers/`; "" for one that comes with the weights.
        config: fields of the random backbone's configuration.
        learning_rate: the authors'.
    """

    family: str
    label: str
    tokenizer: str = ""
    config: dict[str, Any] | None = None
    learning_rate: float = 5e-5


TINY = {"vocab_size": 0, "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "ffn_dim": 64}  # fmt: skip
TINY_T5 = {"vocab_size": 0, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2,
           "num_heads": 2}  # fmt: skip
TINY_BERT = {"vocab_size": 0, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 512}  # fmt: skip

SHAPES = {
    "minilm": Shape("minilm", "MiniLM (real weights)"),
    "decoder": Shape("opt", "shape of OPT-125M (random weights)", "opt", opt_shape(12, 768, 12)),
    # flan-t5-small's own configuration stands beside its vocabulary.
    "t5": Shape("t5", "encoder of T5-small (random weights)", "flan-t5-small", {}, learning_rate=3e-4),
    "opt-1.3b": Shape("opt", "shape of OPT-1.3B (random weights)", "opt", opt_shape(24, 2048, 32)),
    "opt-6.7b": Shape("opt", "shape of OPT-6.7B (random weights)", "opt", opt_shape(32, 4096, 32)),
}
TINY_SHAPES = {
    "minilm": Shape("bert", "tiny BERT (random weights)", "words", TINY_BERT),
    "decoder": Shape("opt", "tiny OPT (random weights)", "words", {**OPT_CONFIG, **TINY}),
    "t5": Shape("t5", "tiny T5 encoder (random weights)", "words", TINY_T5, learning_rate=3e-4),
    "opt-tiny": Shape("opt", "tiny OPT (random weights)", "words", {**OPT_CONFIG, **TINY}),
}


class UnavailableError(RuntimeError):
    """A backbone's vocabulary or weights are not on this machine."""


def tokenizer_folder(shape: Shape, shared: Path) -> Path | None:
    """Where the vocabulary of a shape lies; None for one that is made from the titles.

    Raises:
        UnavailableError: if it is not there.
    """
    if shape.tokenizer == "words":
        return None
    folder = shared / "weights" / "tokenizers" / shape.tokenizer
    if not (folder / "tokenizer.json").is_file():
        raise UnavailableError(
            f"{shape.label}: no vocabulary at {folder}; name a folder with weights/tokenizers/{shape.tokenizer} "
            "by --shared, or download the tokenizer of a published model of this family there"
        )
    return folder


def make_backbone(shape: Shape, shared: Path, titles: Sequence[str], work: Path) -> str:
    """Where `from_pretrained` reads weights and vocabulary from: a folder, or for MiniLM what `resolve_backbone` finds.

    Args:
        shape: which backbone.
        shared: folder with `weights/tokenizers/`.
        titles: the catalogue's, for a vocabulary of words.
        work: where a random backbone is written, into a folder of its own.

    Raises:
        UnavailableError: if weights or vocabulary are not on this machine.
    """
    if shape.family == "minilm":
        from llmrec.backbones import MINILM, BackboneNotFoundError, resolve_backbone

        try:
            return resolve_backbone(MINILM)
        except BackboneNotFoundError as error:
            raise UnavailableError(str(error)) from error
    import torch

    config, tokenizer = config_and_tokenizer(shape, shared, titles)
    torch.manual_seed(0)
    folder = work / shape.label.replace(" ", "-").replace("(", "").replace(")", "")
    _model_class(shape.family)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def config_and_tokenizer(shape: Shape, shared: Path, titles: Sequence[str]) -> tuple[Any, Any]:
    """Configuration and tokenizer of a random backbone.

    Raises:
        UnavailableError: if the vocabulary is not on this machine.
    """
    from transformers import AutoConfig, AutoTokenizer, BertConfig, OPTConfig, T5Config

    folder = tokenizer_folder(shape, shared)
    fields = dict(shape.config or {})
    limit = fields.get("vocab_size") or None
    tokenizer = word_tokenizer(titles, limit) if folder is None else AutoTokenizer.from_pretrained(folder)
    if fields.get("vocab_size") == 0:
        fields["vocab_size"] = len(tokenizer)
    if shape.family == "t5":
        config = AutoConfig.from_pretrained(folder) if folder is not None else T5Config()
        config.update(fields)
    else:
        config = {"opt": OPTConfig, "bert": BertConfig}[shape.family](**fields)
    return config, tokenizer


def _model_class(family: str) -> Any:
    from transformers import BertModel, OPTModel, T5ForConditionalGeneration

    return {"opt": OPTModel, "bert": BertModel, "t5": T5ForConditionalGeneration}[family]


def word_tokenizer(titles: Sequence[str], limit: int | None = None) -> Any:
    """A vocabulary of the words of the titles, for where no real one is at hand: one token a word.

    Args:
        titles: any texts.
        limit: most entries of the vocabulary; rarer words are unknown.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for title in titles for word, _ in splitter.pre_tokenize_str(title))
    special = ["<pad>", "<unk>", "<s>", "</s>", ";"]
    words = [word for word, _ in counts.most_common() if word != ";"]
    if limit is not None:
        words = words[: limit - len(special)]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = splitter
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", model_max_length=512,
    )  # fmt: skip
