"""One technique at a time, added to the layout of side (a): what each is worth alone.

Model, loss, optimizer and the eleven separately encoded candidates are those of `paper.py`, but for the one thing:

- `packing`: histories and candidates without padding, attention text by text; nothing is shared.
- `prefix_sharing`: the examples of a batch come user by user, and each user's history is one row that gives the
  vectors of all its prefixes; rows are padded to the longest, candidates are as before. Causal backbones only.

(Candidates shared by the batch, bf16, and all together need no layout of their own: the first is our trainer with
`packing: off`, the second `paper.py` under autocast.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.training.examples import Example
from llmrec.training.layout import Texts, pack, shared_history_text
from llmrec.training.packing import choose_packing
from modeling_llmrec.packing import PackedTexts

from .gate import Gate
from .machine import peak_memory_gib
from .paper import PaperRecipe

WARM_UP_EXAMPLES = 2


def one_text_a_row(texts: Texts, length: int) -> PackedTexts:
    """Padded rows for texts with queries: each text alone in its row, under the mask of `PackedTexts`.

    Args:
        texts: the texts.
        length: tokens of a row.
    """
    lengths = texts.lengths
    shape = (len(texts), length)
    row = np.repeat(np.arange(len(texts)), lengths)
    column = np.arange(len(texts.ids)) - texts.offsets[row]

    def spread(values: np.ndarray) -> Tensor:
        table = np.zeros(shape, dtype=np.int64)
        table[row, column] = values
        return torch.from_numpy(table)

    starts = texts.owners * length
    ends = texts.ends - texts.offsets[texts.owners] + starts
    return PackedTexts(
        input_ids=spread(texts.ids),
        position_ids=spread(texts.positions),
        segment_ids=spread(np.ones(len(texts.ids), dtype=np.int64)),
        starts=torch.from_numpy(starts),
        ends=torch.from_numpy(ends),
        read_tokens=int((ends - starts).sum()),
        query_ids=None if texts.queries is None else spread(texts.queries),
    )


def group_by_user(examples: Sequence[Example]) -> list[list[Example]]:
    """Consecutive examples of one user whose histories begin at the same event.

    Histories are cut to the newest items, so once a user's are longer than that they begin later and later, and each
    is a group of its own.
    """
    groups: list[list[Example]] = []
    for example in examples:
        last = groups[-1][-1] if groups else None
        grown = last is not None and last["user"] == example["user"] and _continues(last, example)
        if grown:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def _continues(before: Example, after: Example) -> bool:
    return len(after["history"]) > len(before["history"]) and bool(
        (after["history"][: len(before["history"])] == before["history"]).all()
    )


class TechniqueRecipe(PaperRecipe):
    """The authors' recipe with one technique; see the module.

    Args:
        technique: `packing` or `prefix_sharing`.
    """

    def __init__(self, technique: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.technique = technique
        wanted = "auto" if technique == "packing" else "mask"
        self.packing = choose_packing(self.model, self.processor, wanted, technique == "prefix_sharing").how
        if technique == "prefix_sharing":
            # The users of an epoch in random order, the examples of each in theirs.
            users = self.batches.examples.users[self.batches.order]
            _, first = np.unique(users, return_index=True)
            rank = np.empty(int(users.max()) + 1, dtype=np.int64)
            rank[users[np.sort(first)]] = np.arange(len(first))
            self.batches.order = np.lexsort((np.arange(len(users)), rank[self.batches.examples.users]))

    def slices(self, examples: Sequence[Example], size: int) -> list[list[Example]]:
        """A batch in slices of at least `size` examples; a user's examples stay together."""
        groups = group_by_user(examples) if self.technique == "prefix_sharing" else [[one] for one in examples]
        slices: list[list[Example]] = [[]]
        for group in groups:
            if len(slices[-1]) >= size:
                slices.append([])
            slices[-1] += group
        return slices

    def history_texts(self, examples: Sequence[Example]) -> Texts:
        """Texts of histories, whose vectors stand in the order of the examples."""
        titles = [[self.tokens[int(item)] for item in example["history"]] for example in examples]
        if self.technique == "packing":
            return Texts.of([self.processor.layout_history(each) for each in titles])
        texts = []
        for group in group_by_user(examples):
            longest = [self.tokens[int(item)] for item in group[-1]["history"]]
            texts.append(shared_history_text(self.processor, longest, [len(each["history"]) for each in group]))
        return Texts.of(texts)

    def item_texts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of eleven candidates an example."""
        return [
            self.processor.layout_item(self.tokens[item]) for example in examples for item in self.candidates(example)
        ]

    def packed(self, examples: Sequence[Example], history_length: int, item_length: int) -> list[PackedTexts]:
        """Histories and candidates of one slice; lengths are those of the batch's padded rows."""
        histories, items = self.history_texts(examples), Texts.of(self.item_texts(examples))
        if self.technique == "packing":
            return [pack(histories, self.packing), pack(items, self.packing)]
        return [one_text_a_row(histories, history_length), one_text_a_row(items, item_length)]

    def packed_loss(self, texts: list[PackedTexts], examples: int) -> Tensor:
        """Sum of the losses of a slice, a scalar."""
        vectors = self.model(texts=[each.to(self.device) for each in texts]).embeddings
        users, items = vectors[:examples], vectors[examples:].view(examples, -1, vectors.shape[1])
        scores = torch.einsum("ud,ucd->uc", users, items)
        first = torch.zeros(examples, dtype=torch.long, device=scores.device)
        return torch.nn.functional.cross_entropy(scores, first, reduction="sum")


def run(
    gate: Gate,
    *,
    technique: str,
    backbone: str,
    data_folder: Path,
    batch_size: int,
    seed: int,
    learning_rate: float,
    slice_size: int,
    sampled: bool = False,
    device: str = "cpu",
    threads: int = 1,
) -> dict[str, Any]:
    """The side, for `Side`; arguments as in `paper.run`."""
    recipe = TechniqueRecipe(technique, backbone, data_folder, batch_size, seed, learning_rate, device)
    few = recipe.batches[0][:WARM_UP_EXAMPLES]
    lengths = _longest(recipe, few)
    (recipe.packed_loss(recipe.packed(few, *lengths), len(few)) / len(few)).backward()
    recipe.optimizer.zero_grad()
    number = 0
    going = gate.begin(precision="fp32", packing=recipe.packing, negatives_mean=10, negatives_min=10)
    while going:
        counts = _step(recipe, recipe.batches[number], slice_size, gate if sampled else None)
        number += 1
        going = gate.step(**counts)
    return {"peak_memory_gib": round(peak_memory_gib(device), 2)}


def _longest(recipe: TechniqueRecipe, examples: Sequence[Example]) -> tuple[int, int]:
    histories = recipe.history_texts(examples)
    return int(histories.lengths.max()), max(len(ids) for ids in recipe.item_texts(examples))


def _step(recipe: TechniqueRecipe, batch: Sequence[Example], slice_size: int, gate: Gate | None) -> dict[str, float]:
    lengths = _longest(recipe, batch)
    done = tokens = slots = 0
    for part in recipe.slices(batch, slice_size):
        texts = recipe.packed(part, *lengths)
        (recipe.packed_loss(texts, len(part)) / len(batch)).backward()
        tokens += sum(int((each.segment_ids > 0).sum()) for each in texts)
        slots += sum(each.input_ids.numel() for each in texts)
        done += len(part)
        if gate is not None and gate.overdue:
            break
    return {"examples": done, "tokens": tokens, "slots": slots} | recipe.timed_update(done / len(batch))
