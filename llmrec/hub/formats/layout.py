"""A `tokenizer.json` that lays out texts by itself, for servers that know nothing of our processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class LayoutTokenizer:
    """The tokenizer of a processor, with its layout built in: separator at the end, special tokens around.

    A title given to it becomes the item's token ids, and titles in lines of their own become the history's, with two
    exceptions, which `equal` finds: a title beyond `max_title_tokens` is not cut on its own, and a few tokenizers treat
    the start of a text otherwise than the start of a line. It cuts at `max_history_tokens`.

    Args:
        processor: an `LLMRecProcessor` with a fast tokenizer.

    Raises:
        ValueError: for a tokenizer that has no `tokenizer.json`.
    """

    def __init__(self, processor: Any) -> None:
        from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors

        if not processor.tokenizer.is_fast:
            raise ValueError(f"{type(processor.tokenizer).__name__} has no tokenizer.json: it is not a fast tokenizer.")
        self.processor, config = processor, processor.config
        inner = Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())
        inner.no_padding()
        # Before the tokenizer's own steps, as the processor joins each title and its separator and tokenises it alone.
        separator = config.item_separator
        steps: list[Any] = [
            normalizers.Replace(Regex(r"\z"), separator),
            normalizers.Replace("\n", f"{separator}\n"),
        ]
        inner.normalizer = normalizers.Sequence([*steps, inner.normalizer] if inner.normalizer else steps)
        lines = pre_tokenizers.Split("\n", "removed")
        inner.pre_tokenizer = pre_tokenizers.Sequence([lines, inner.pre_tokenizer]) if inner.pre_tokenizer else lines
        names = [*config.prefix_tokens, *config.suffix_tokens]
        inner.post_processor = processors.TemplateProcessing(
            single=[*config.prefix_tokens, "$A", *config.suffix_tokens],
            special_tokens=[(name, inner.token_to_id(name)) for name in dict.fromkeys(names)],
        )
        inner.enable_truncation(config.max_history_tokens)
        # Through its file, which is all that the server sees.
        self.tokenizer = Tokenizer.from_str(inner.to_str())

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of titles, or of histories that `join` made."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

    def join(self, titles: list[str]) -> str:
        """A history, oldest first, as one text: the newest titles that fit, one a line, in the order they are read."""
        kept = self.processor.kept_items([len(ids) for ids in self.processor.tokenize_titles(titles)])
        newest = titles[-kept:]
        return "\n".join(newest if self.processor.config.item_order == "oldest_first" else newest[::-1])

    def equal(self, texts: list[str], ids: list[list[int]]) -> np.ndarray:
        """bool (texts,): where the token ids are those of the processor."""
        return np.array([ours == theirs for ours, theirs in zip(self.encode(texts), ids, strict=True)])

    def too_long(self, titles: list[str]) -> np.ndarray:
        """bool (titles,): where the processor cuts the title."""
        separator, limit = self.processor.config.item_separator, self.processor.config.max_title_tokens
        whole = self.processor.tokenizer([title + separator for title in titles], add_special_tokens=False)["input_ids"]
        return np.array([len(ids) > limit for ids in whole])

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and what transformers needs to read that file and no other."""
        from transformers import PreTrainedTokenizerFast

        plain, config = self.processor.tokenizer, self.processor.config
        pad = plain.pad_token or plain.eos_token or plain.unk_token
        PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer,
            pad_token=pad,
            padding_side="right",
            truncation_side="right",
            model_max_length=config.max_history_tokens,
            model_input_names=["input_ids", "attention_mask"],
        ).save_pretrained(folder)
        # The name that older releases know too; the newest one is of transformers 5.
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_layout(processor: Any) -> dict[str, Any]:
    """The layout in words and ids, for whoever builds token ids without our processor."""
    config = processor.config
    vocabulary = processor.tokenizer.get_vocab()
    return {
        "item": "prefix_ids + ids(title + item_separator)[:max_title_tokens] + suffix_ids",
        "history": "prefix_ids + those ids of the newest titles that fit, whole titles, + suffix_ids",
        "padding": "right, masked by attention_mask",
        "item_separator": config.item_separator,
        "prefix_ids": [vocabulary[token] for token in config.prefix_tokens],
        "suffix_ids": [vocabulary[token] for token in config.suffix_tokens],
        "max_title_tokens": config.max_title_tokens,
        "max_history_items": config.max_history_items,
        "max_history_tokens": config.max_history_tokens,
        "item_order": config.item_order,
    }
