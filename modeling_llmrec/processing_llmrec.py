"""From histories and titles to token ids. Travels to the Hub beside the weights."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from .configuration_llmrec import AUTO_MAP, LLMRecConfig

TokenIds = Sequence[int]


class LLMRecProcessor(ProcessorMixin):
    r"""
    Lays out histories and items as token ids, exactly as the checkpoint's config says.

    Each title is tokenised by itself, followed by the separator, without special tokens, and cut to
    `max_title_tokens`. A history is the concatenation of its titles between the config's special
    tokens; an item is a history of one. So a title's token ids can be computed once and reused.

    Args:
        tokenizer: a tokenizer of transformers.
        config (`LLMRecConfig`): the configuration of the model it serves.

    Example:

    ```python
    >>> batch = processor(histories=[["Espresso Beans 1 kg", "Burr Grinder"]], items=["Milk Jug", "Guitar Strings"])
    >>> model(**batch).scores.shape
    torch.Size([1, 2])
    ```
    """

    def __init__(self, tokenizer: Any = None, config: Any = None) -> None:
        super().__init__(tokenizer)
        if config is None:
            raise ValueError("LLMRecProcessor needs the model's config: pass config=model.config.")
        self.config = config
        self._prefix = self._special_ids(config.prefix_tokens, "prefix_tokens")
        self._suffix = self._special_ids(config.suffix_tokens, "suffix_tokens")
        # Padding is masked, so any id will do where a tokenizer has none (OPT-like and Llama-like ones).
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        self._pad = pad if pad is not None else eos if eos is not None else 0

    def _special_ids(self, tokens: Sequence[str], field: str) -> list[int]:
        vocabulary = self.tokenizer.get_vocab()
        missing = [token for token in tokens if token not in vocabulary]
        if missing:
            raise ValueError(
                f"{field} of the config names {missing[0]!r}, which the tokenizer "
                f"{self.tokenizer.name_or_path or type(self.tokenizer).__name__} does not have."
            )
        return [vocabulary[token] for token in tokens]

    # -- one title, one history, one item ---------------------------------------------------------

    def tokenize_titles(self, titles: Sequence[str]) -> list[list[int]]:
        """Token ids of each title with its separator, cut to `max_title_tokens`, no special tokens.

        Raises:
            ValueError: for a title that is blank or of which no token is left, naming its position.
        """
        for position, title in enumerate(titles):
            if not isinstance(title, str) or not title.strip():
                raise ValueError(f"Title {position} is {title!r}: a title must be a non-blank string.")
        if not titles:
            return []
        ids = self.tokenizer(
            [title + self.config.item_separator for title in titles],
            add_special_tokens=False,
            truncation=True,
            max_length=self.config.max_title_tokens,
            return_attention_mask=False,
        )["input_ids"]
        for position, one in enumerate(ids):
            if not one:
                raise ValueError(f"Title {position}, {titles[position]!r}, has no tokens in this vocabulary.")
        return ids

    def kept_items(self, lengths: Sequence[int]) -> int:
        """How many of the newest items of a history are read, given the tokens of each, oldest first."""
        room = self.config.max_history_tokens - len(self._prefix) - len(self._suffix)
        kept = 0
        for length in reversed(lengths[-self.config.max_history_items :]):
            if length > room:
                break
            room -= length
            kept += 1
        return kept

    def layout_history(self, title_ids: Sequence[TokenIds]) -> list[int]:
        """Token ids of a history from those of its titles, oldest first.

        Keeps the newest `max_history_items` that fit into `max_history_tokens`, whole items only.

        Raises:
            ValueError: for an empty history.
        """
        if not len(title_ids):
            raise ValueError("A history must have at least one item.")
        kept_items = self.kept_items([len(ids) for ids in title_ids])
        if not kept_items:
            raise ValueError(
                f"The newest title has {len(title_ids[-1])} tokens, more than max_history_tokens="
                f"{self.config.max_history_tokens} leaves room for: take its ids from tokenize_titles."
            )
        kept = list(title_ids[-kept_items:])
        if self.config.item_order == "newest_first":
            kept.reverse()
        return [*self._prefix, *(token for ids in kept for token in ids), *self._suffix]

    def layout_item(self, title_ids: TokenIds) -> list[int]:
        """Token ids of an item from those of its title: a history of one."""
        return [*self._prefix, *title_ids, *self._suffix]

    def pad(self, sequences: Sequence[TokenIds]) -> dict[str, torch.Tensor]:
        """Pad on the right (absolute positions are wrong after left padding).

        Returns:
            `input_ids` and `attention_mask`, both (batch, longest) int64.
        """
        longest = max(len(ids) for ids in sequences)
        input_ids = torch.full((len(sequences), longest), self._pad, dtype=torch.long)
        attention_mask = torch.zeros((len(sequences), longest), dtype=torch.long)
        for row, ids in enumerate(sequences):
            input_ids[row, : len(ids)] = torch.as_tensor(ids, dtype=torch.long)
            attention_mask[row, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    # -- batches of text ---------------------------------------------------------------------------

    def __call__(
        self,
        histories: Sequence[Sequence[str]] | None = None,
        items: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenise histories, items or both.

        Args:
            histories: one list of titles a user, oldest first.
            items: titles.

        Returns:
            `input_ids`, `attention_mask` (histories, length) and `item_input_ids`,
            `item_attention_mask` (items, length): what `LLMRecModel.forward` takes.

        Raises:
            ValueError: for neither, an empty history, or a blank title, naming its place.
        """
        if kwargs:
            raise TypeError(f"Unexpected arguments {sorted(kwargs)}: the layout comes from the checkpoint's config.")
        if histories is None and items is None:
            raise ValueError("Pass histories=[[title, …], …], items=[title, …], or both.")
        batch: dict[str, torch.Tensor] = {}
        if histories is not None:
            batch |= self.pad([self._history(i, titles) for i, titles in enumerate(histories)])
        if items is not None:
            if isinstance(items, str):
                raise ValueError("items is a string: pass a list of titles.")
            padded = self.pad([self.layout_item(ids) for ids in self.tokenize_titles(items)])
            batch |= {f"item_{name}": tensor for name, tensor in padded.items()}
        return BatchFeature(batch)

    def _history(self, row: int, titles: Sequence[str]) -> list[int]:
        if isinstance(titles, str):
            raise ValueError(f"History {row} is a string: a history is a list of titles, oldest first.")
        try:
            return self.layout_history(self.tokenize_titles(titles[-self.config.max_history_items :]))
        except ValueError as error:
            raise ValueError(f"History {row}: {error}") from error

    # -- loading and saving ------------------------------------------------------------------------

    @classmethod
    def from_backbone(cls, name_or_path: str | os.PathLike, config: Any, **kwargs: Any) -> "LLMRecProcessor":
        """A processor with the tokenizer of a backbone and the layout of a model's config."""
        return cls(AutoTokenizer.from_pretrained(name_or_path, **kwargs), config=config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "LLMRecProcessor":
        """Load tokenizer and config from a saved model, local or on the Hub."""
        for name in ("trust_remote_code", "_from_auto", "code_revision"):
            kwargs.pop(name, None)
        hub = {name: value for name, value in kwargs.items() if value is not None}
        config = LLMRecConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        # With the backbone's config the tokenizer is chosen as it was for the backbone, and no code is asked for.
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, config=config.text_config, **hub)
        return cls(tokenizer, config=config)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the tokenizer, and `config.json` where the folder has none yet."""
        if push_to_hub:
            raise ValueError("Publish a whole model folder with push_to_hub.py: a processor alone is of no use.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer._set_processor_class(type(self).__name__)
        self.tokenizer.save_pretrained(folder)
        settings = {"processor_class": type(self).__name__, "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}}
        path = folder / "processor_config.json"
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if not (folder / "config.json").exists():
            self.config.save_pretrained(folder)
        return [str(path)]


__all__ = ["LLMRecProcessor"]
