"""The token ids of all titles of a catalogue, tokenised once and kept flat."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from llmrec.data import title_cache

# Enough for the tokenizer to use its threads, little enough that a million titles do not stand in memory as lists.
TITLES_AT_ONCE = 20_000


class TitleTokens(Sequence[list[int]]):
    """Token ids by item index: `tokens[i]` is a list, `tokens.lengths[i]` its length.

    Args:
        flat: (total tokens,) int32, all titles one after the other.
        offsets: (items + 1,) int64, where each title starts.
    """

    def __init__(self, flat: np.ndarray, offsets: np.ndarray) -> None:
        self.flat, self.offsets = flat, offsets

    @classmethod
    def from_titles(cls, processor: Any, titles: Sequence[str], *, progress: bool = False) -> "TitleTokens":
        """Tokenise titles as the processor of a model does: separator, limit, no special tokens.

        Raises:
            ValueError: for a blank title.
        """
        parts, lengths = [], []
        starts = range(0, len(titles), TITLES_AT_ONCE)
        for start in tqdm(starts, desc="Tokenising titles", disable=not progress or len(starts) < 2):
            for ids in processor.tokenize_titles(titles[start : start + TITLES_AT_ONCE]):
                parts.append(np.asarray(ids, dtype=np.int32))
                lengths.append(len(ids))
        flat = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))

    @classmethod
    def cached(
        cls, processor: Any, titles: Sequence[str], folder: str | os.PathLike[str], *, progress: bool = False
    ) -> "TitleTokens":
        """As `from_titles`, but from a file in `folder` where the same titles were tokenised in the same way before.

        The file is mapped into memory: several processes of a machine share it, and only what is used is read. Several
        processes may call this at once. A damaged file is made anew, with a warning; a folder that cannot be written,
        or a tokenizer whose ids cannot be kept, is no error: the ids are then held in memory.

        Raises:
            ValueError: for a blank title.
        """
        key = title_cache.cache_key(processor, titles)
        if key is None:
            return cls.from_titles(processor, titles, progress=progress)
        path = title_cache.cache_file(Path(folder), key)
        arrays = title_cache.read(path, key, len(titles))
        if arrays is None:
            made = cls.from_titles(processor, titles, progress=progress)
            written = title_cache.write(path, key, (made.flat, made.offsets))
            arrays = title_cache.read(path, key, len(titles)) if written else None
            if arrays is None:
                return made
        return cls(*arrays)

    @classmethod
    def of(cls, titles: Sequence[Sequence[int]]) -> "TitleTokens":
        """From a list of token ids for every title."""
        if isinstance(titles, TitleTokens):
            return titles
        lengths = np.array([len(ids) for ids in titles], dtype=np.int64)
        flat = [np.asarray(ids, dtype=np.int32) for ids in titles] or [np.empty(0, dtype=np.int32)]
        return cls(np.concatenate(flat), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """(items,) int64 tokens of each title."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        if not 0 <= item < len(self):
            raise IndexError(f"Item {item} of a catalogue of {len(self)} items.")
        return self.flat[self.offsets[item] : self.offsets[item + 1]].tolist()
