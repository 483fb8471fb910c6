"""Items that a model cannot tell apart: those whose titles have the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec.data.title_tokens import TitleTokens


class TitleClasses:
    """Groups items by title, so that each unique title of a batch is encoded once and never its own negative.

    Args:
        title_tokens: token ids of each item's title.
        domain_codes: (items,) domain of each item.

    Attributes:
        text: (items,) int64; equal for two items exactly if their titles have the same tokens.
        representative: (items,) int64; the first item of the same title AND the same domain. Batches are made of
            representatives: an equal title of another domain stays apart, because it belongs to other candidates.
    """

    def __init__(self, title_tokens: Sequence[Sequence[int]], domain_codes: np.ndarray) -> None:
        first: dict[bytes, int] = {}
        text = np.empty(len(domain_codes), dtype=np.int64)
        tokens = TitleTokens.of(title_tokens)
        bounds = tokens.offsets.tolist()
        for item in range(len(domain_codes)):
            text[item] = first.setdefault(tokens.flat[bounds[item] : bounds[item + 1]].tobytes(), item)
        self.text = text
        pairs = text * (int(domain_codes.max(initial=0)) + 1) + domain_codes
        _, first_item, group = np.unique(pairs, return_index=True, return_inverse=True)
        self.representative = first_item[group].astype(np.int64)

    def __len__(self) -> int:
        return len(self.text)
