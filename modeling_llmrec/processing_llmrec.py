"""From histories and titles to token ids. Travels to the Hub beside the weights."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from .configuration_llmrec import AUTO_MAP, LLMRecConfig
from .tokenizer_files import read_tokenizer, save_tokenizer

TokenIds = Sequence[int]

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
# What the Auto classes and `pipeline` hand to every part of a model: for the weights, or for choosing the code.
NOT_FOR_TOKENIZERS = (
    "trust_remote_code", "code_revision", "_from_auto", "_from_pipeline", "_commit_hash",
    "dtype", "torch_dtype", "device_map", "attn_implementation", "quantization_config",
)  # fmt: skip
# The only options of a tokenizer that do not change which tokens are read, with the values that are ours anyway.
LAYOUT_OPTIONS: dict[str, tuple[Any, ...]] = {
    "padding": (True, "longest"),
    "truncation": (True, "longest_first", "only_first"),
    "return_tensors": ("pt",),
    "add_special_tokens": (True,),
    "return_attention_mask": (True,),
    "max_length": (None,),
}
# What SentenceTransformer reads: one module, which calls this processor with `text=` and takes the model's
# `embeddings`. The usual pair of modules, Transformer and Pooling, would leave out the head.
SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "embeddings"}},
        "module_output_name": "sentence_embedding",
        # With flash-attention it would lay the texts of a batch end to end, without the masks that our model reads.
        "unpad_inputs": False,
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "dot",
        "requirements": {"sentence-transformers": ">=6.0"},
    },
}


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
        text: str | Sequence[str | Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenise histories, items or both.

        Args:
            histories: one list of titles a user, oldest first.
            items: titles.
            text: titles and histories alike, as a SentenceTransformer passes them: a history is a list of titles, or
                a string with one title a line, oldest first; a title is a history of one.
            **kwargs: only with `text`, and only what the layout does anyway (`padding=True`, …).

        Returns:
            `input_ids`, `attention_mask` (histories, length) and `item_input_ids`,
            `item_attention_mask` (items, length): what `LLMRecModel.forward` takes.

        Raises:
            ValueError: for neither, an empty history, or a blank title, naming its place.
            TypeError: for an option that would change the layout.
        """
        if text is not None:
            if histories is not None or items is not None:
                raise ValueError("Pass text, or histories and items: not both.")
            self._check_options(kwargs)
            texts = [text] if isinstance(text, str) else text
            histories = [self._lines(one) if isinstance(one, str) else one for one in texts]
        elif kwargs:
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

    @staticmethod
    def _lines(text: str) -> list[str]:
        lines = [line for line in text.split("\n") if line.strip()]
        return lines if len(lines) > 1 else [text]

    @staticmethod
    def _check_options(options: dict[str, Any]) -> None:
        """Take the options that a SentenceTransformer sends along, refuse those that would change the vectors."""
        # By kind of input, as transformers' processors take them; ours reads text only.
        flat = {name: value for name, value in options.items() if not name.endswith("_kwargs")}
        flat |= options.get("common_kwargs") or {}
        flat |= options.get("text_kwargs") or {}
        for name, value in flat.items():
            if not any(value is allowed or value == allowed for allowed in LAYOUT_OPTIONS.get(name, ())):
                raise TypeError(f"Unexpected argument {name}={value!r}: the layout comes from the checkpoint's config.")

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
        """Load tokenizer and config from a saved model, local or on the Hub.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            **kwargs: as in transformers (`revision`, `token`, …); others go to the tokenizer.
        """
        options = {name: value for name, value in kwargs.items() if name not in NOT_FOR_TOKENIZERS}
        hub = {name: options.pop(name) for name in HUB_ARGUMENTS if name in options}
        hub = {name: value for name, value in hub.items() if value is not None}
        config = options.pop("config", None)
        if config is None:
            config = LLMRecConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        return cls(read_tokenizer(pretrained_model_name_or_path, config, **hub, **options), config=config)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the tokenizer, what a SentenceTransformer reads, and `config.json` where the folder has none yet."""
        if push_to_hub:
            raise ValueError("Publish a whole model folder with push_to_hub.py: a processor alone is of no use.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer._set_processor_class(type(self).__name__)
        save_tokenizer(self.tokenizer, folder)
        settings = {"processor_class": type(self).__name__, "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}}
        path = folder / "processor_config.json"
        for name, content in {path.name: settings, **SENTENCE_TRANSFORMERS_FILES}.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if not (folder / "config.json").exists():
            self.config.save_pretrained(folder)
        return [str(path)]


__all__ = ["LLMRecProcessor"]
