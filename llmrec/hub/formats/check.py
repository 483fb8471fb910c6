"""How far an export is from the model it was made of: on real texts, in vectors and in what they rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeling_llmrec.ranking import dot_products, encode

TITLES, HISTORIES = 1000, 200
TOP = 10
# Share of titles that a server may read otherwise than we do.
MOST_OTHER_IDS = 0.05
SEED = 0
# Without a catalogue: titles of many kinds, lengths and scripts.
NEUTRAL_TITLES = (
    "Espresso Beans 1 kg", "Burr Grinder", "Milk Jug, 600 ml", "Guitar Strings", "Electric Guitar", "Tea",
    "Handbook of Gardening: Forty Weekends in a Small Yard, Second Edition", "USB-C Cable (2 m, braided)", "Café Crème",
    "Noise-Cancelling Headphones with Carrying Case", "Stainless Steel Water Bottle, 1 L", "Desk Lamp", "Yoga Mat 6 mm",
    "Watercolour Paper A3, 300 g/m², 20 Sheets", "Grüner Tee", "Road Bike Tyre 700 x 25C", "Wool Socks", "Chess Set",
    "Mechanical Keyboard, Brown Switches", "The Sea at Night: A Novel", "Baking Tray", "Plant Pot Ø 14 cm", "Raincoat",
    "Wireless Mouse", "Cat Litter 10 l", "Olive Oil, extra virgin, 0.75 l", "Sketchbook", "Torch", "Running Shoes W 40",
    "Building Blocks, 500 Pieces, for Children of 6 Years and Older", "Hand Cream", "日本語の本", "Tent for Two",
)  # fmt: skip

Encode = Callable[[list[list[int]]], np.ndarray]
"""Vectors, float32 (texts, D), of laid out token ids."""


class ExportRefusedError(ValueError):
    """The export differs from the model by more than the bound, or its server cannot run such a model."""


@dataclass(frozen=True)
class Sample:
    """The texts of a check.

    Attributes:
        titles: distinct titles.
        histories: titles of each history, oldest first.
        source: where the titles are from, for the report.
    """

    titles: list[str]
    histories: list[list[str]]
    source: str


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        titles, histories: how many of each were read.
        source: where they came from.
        largest_difference: of any number of any vector, relative to the mean length of the model's vectors (1 where
            it normalises).
        top_10_overlap: mean share of the ten best titles of a history that both find; 1 is the same.
        shapes_difference: the largest difference on made-up batches of every shape, from one token to the longest;
            None where the server cuts its batches itself.
        other_ids: titles and histories whose token ids are not ours in that server (a title that is too long); they
            are left out above. None where ids are passed.
        overlap_with_them: the top-10 overlap over all texts, those with other ids among them.
    """

    titles: int
    histories: int
    source: str
    largest_difference: float
    top_10_overlap: float
    shapes_difference: float | None = None
    other_ids: dict[str, int] | None = None
    overlap_with_them: float | None = None

    def refuse_beyond(self, bound: float, overlap: float) -> None:
        """Raise `ExportRefusedError` where the export is further away than that; NaN is."""
        worst = max(self.largest_difference, self.shapes_difference or 0.0)
        if not worst <= bound:
            raise ExportRefusedError(
                f"The vectors differ by up to {worst:.2g}, more than the bound of {bound:g}: nothing was written. "
                "If that is small enough for you, raise --bound."
            )
        if not self.top_10_overlap >= overlap:
            raise ExportRefusedError(
                f"Only {self.top_10_overlap:.4f} of the ten best titles are the same, less than {overlap:g}: nothing "
                "was written. If that is enough for you, lower --top-10-overlap."
            )
        if self.other_ids is not None and self.other_ids["titles"] > MOST_OTHER_IDS * self.titles:
            raise ExportRefusedError(
                f"{self.other_ids['titles']} of {self.titles} titles are longer than max_title_tokens, and that server "
                "would read them whole: nothing was written. Use --format onnx or openvino, where a title is cut first."
            )


def sample_texts(config: Any, titles: Sequence[str] | None = None, source: str | None = None) -> Sample:
    """Titles evenly spread over a catalogue, and histories of one to `max_history_items` of them.

    Args:
        config: the model's.
        titles: of a catalogue; neutral ones that are built in by default.
        source: what to call them in the report.
    """
    distinct = list(dict.fromkeys(NEUTRAL_TITLES if titles is None else titles))
    if len(distinct) <= TOP:
        raise ValueError(f"The catalogue has {len(distinct)} different titles; a check needs more than {TOP}.")
    chosen = np.linspace(0, len(distinct) - 1, min(TITLES, len(distinct))).round().astype(int)
    kept = [distinct[i] for i in chosen]
    random = np.random.default_rng(SEED)
    longest = min(config.max_history_items, len(kept))
    histories = [
        [kept[i] for i in random.choice(len(kept), 1 + row % longest, replace=False)]
        for row in range(HISTORIES if titles is not None else min(HISTORIES, 2 * len(kept)))
    ]
    if source is None:
        source = "built-in titles" if titles is None else "catalogue"
    return Sample(kept, histories, source)


class Reference:
    """What the model itself makes of a sample: token ids and vectors, taken before it is merged or cast."""

    def __init__(self, model: Any, processor: Any, sample: Sample) -> None:
        self.sample, self.processor = sample, processor
        self.item_ids = [processor.layout_item(ids) for ids in processor.tokenize_titles(sample.titles)]
        self.user_ids = [processor.layout_history(processor.tokenize_titles(titles)) for titles in sample.histories]
        self.shapes = [*_shapes(self.user_ids, processor.config.max_history_tokens)]
        device = next(model.parameters()).device
        model.eval()
        self.items = encode(model.get_item_embeddings, processor, self.item_ids, device)
        self.users = encode(model.get_user_embeddings, processor, self.user_ids, device)
        self._shaped = [encode(model.get_user_embeddings, processor, batch, device) for batch in self.shapes]

    def check(
        self,
        encode_items: Encode,
        encode_users: Encode | None = None,
        *,
        shapes: bool = True,
        equal_items: np.ndarray | None = None,
        equal_users: np.ndarray | None = None,
    ) -> Check:
        """Compare with an export.

        Args:
            encode_items: gives its vectors for token ids; is called with each batch of `shapes` as one batch.
            encode_users: the same for histories, where that differs.
            shapes: whether to try batches of every shape.
            equal_items, equal_users: bool, which texts the export reads with the same token ids.
        """
        items = torch.from_numpy(np.asarray(encode_items(self.item_ids), dtype=np.float32))
        users = torch.from_numpy(np.asarray((encode_users or encode_items)(self.user_ids), dtype=np.float32))
        ours, theirs = dot_products(self.users, self.items), dot_products(users, items)
        overlap, others, with_them = top_overlap(ours, theirs), None, None
        if equal_items is not None and equal_users is not None:
            others = {"titles": int((~equal_items).sum()), "histories": int((~equal_users).sum())}
            rows, columns = torch.from_numpy(equal_users), torch.from_numpy(equal_items)
            if rows.sum() and columns.sum() > TOP:
                with_them, overlap = overlap, top_overlap(ours[rows][:, columns], theirs[rows][:, columns])
        shaped = None
        if shapes:
            shaped = max(
                self._difference(torch.from_numpy(encode_items(batch)), expected)
                for batch, expected in zip(self.shapes, self._shaped, strict=True)
            )
        return Check(
            titles=len(items),
            histories=len(users),
            source=self.sample.source,
            largest_difference=max(
                self._difference(items, self.items, equal_items), self._difference(users, self.users, equal_users)
            ),
            top_10_overlap=overlap,
            shapes_difference=shaped,
            other_ids=others,
            overlap_with_them=with_them,
        )

    def _difference(self, ours: torch.Tensor, theirs: torch.Tensor, where: np.ndarray | None = None) -> float:
        if ours.shape != theirs.shape:
            raise ExportRefusedError(f"Vectors of shape {tuple(ours.shape)} came where {tuple(theirs.shape)} should.")
        difference = (ours - theirs).abs()
        if where is not None:
            difference = difference[torch.from_numpy(where)]
        if not difference.numel():
            raise ExportRefusedError("None of the texts is read with the same token ids.")
        # NaN stays NaN in max(), and no bound holds for it.
        return float(difference.max() / self.items.norm(dim=1).mean())


def top_overlap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Mean share of the ten best columns that two matrices (histories, titles) of scores have in common, row by row."""
    best = [scores.topk(TOP, dim=1).indices.tolist() for scores in (ours, theirs)]
    return float(np.mean([len(set(one) & set(other)) / TOP for one, other in zip(*best, strict=True)]))


def _shapes(texts: Sequence[list[int]], longest: int) -> list[list[list[int]]]:
    """Batches of every shape: one token alone, the longest text alone, and mixed lengths in several batch sizes."""
    stream = [token for text in texts for token in text]
    while len(stream) < 2 * longest:
        stream += stream

    def text(length: int, start: int) -> list[int]:
        return stream[start : start + length]

    middle = max(2, longest // 3)
    return [
        [text(1, 0)],
        [text(longest, 0)],
        [text(middle, 1), text(middle, 2)],
        [text(longest, 3), text(1, 4), text(middle, 5)],
        [text(1 + n % 12, n) for n in range(32)],
    ]
