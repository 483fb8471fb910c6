"""From examples to the flat batch of one forward pass: histories, unique titles, and who counts for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from llmrec.evaluation.histories import Histories
from llmrec.training.examples import Example
from llmrec.training.negatives import NegativeDomain, NegativeSampler
from llmrec.training.titles import TitleClasses

Loss = Literal["sampled_softmax", "in_batch", "bce"]


class Collator:
    """Lays out a list of examples for `LLMRecModel.forward`; each unique title of the batch stands there once.

    With B examples and M unique titles among their targets and negatives, a batch holds

    - `input_ids`, `attention_mask`: (B, L) the histories;
    - `item_input_ids`, `item_attention_mask`: (M, L') the titles;
    - `positive_index`: (B,) int64, the row of each target among the titles;
    - `candidate_mask`: (B, M) bool, the titles that count for an example. `sampled_softmax` and `bce`: its target
      and its own negatives. `in_batch`: all but the titles of the user's training history and those that equal the
      target; only the target's domain where negatives come from it;
    - `item_log_q`: (M,) float32 with the logQ correction, see `expected_counts`.

    Under several processes each contrasts with its own batch only: with the examples' own negatives the gradients are
    those of one process with the global batch; with in-batch negatives the pool is that of one process.

    Args:
        processor: `LLMRecProcessor` of the model.
        title_tokens: token ids of each item's title, made once.
        histories: whole training histories, for what an example must not be contrasted with.
        classes: items grouped by title.
        domain_codes: (items,) domain of each item.
        sampler: draws the negatives of each example (none for n = 0).
        loss: which of the three losses the masks are for.
        negative_domain: `"target"` or `"any"`, as for the sampler.
        item_counts: (items,) expected count of each title in a batch, by representative, for the logQ correction;
            `None` without it.
    """

    def __init__(
        self,
        processor: Any,
        title_tokens: Sequence[Sequence[int]],
        histories: Histories,
        classes: TitleClasses,
        domain_codes: np.ndarray,
        sampler: NegativeSampler,
        loss: Loss,
        negative_domain: NegativeDomain = "target",
        item_counts: np.ndarray | None = None,
    ) -> None:
        self.processor = processor
        self.title_tokens = title_tokens
        self.histories = histories
        self.classes = classes
        self.domain_codes = domain_codes
        self.sampler = sampler
        self.loss = loss
        self.negative_domain = negative_domain
        self.item_counts = item_counts

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        targets = self.classes.representative[[example["target"] for example in examples]]
        negatives = [
            self.sampler.draw(example["epoch"], example["example"], example["target"], self.histories[example["user"]])
            for example in examples
        ]
        titles = np.unique(np.concatenate([targets, *negatives]))
        positive_index = np.searchsorted(titles, targets)
        if self.loss == "in_batch":
            mask = self._in_batch_mask(examples, targets, titles)
        else:
            mask = np.zeros((len(examples), len(titles)), dtype=bool)
            for row, drawn in enumerate(negatives):
                mask[row, np.searchsorted(titles, drawn)] = True
        mask[np.arange(len(examples)), positive_index] = True

        layout = [
            self.processor.layout_history([self.title_tokens[int(item)] for item in example["history"]])
            for example in examples
        ]
        item_layout = [self.processor.layout_item(self.title_tokens[int(item)]) for item in titles]
        batch = {
            **self.processor.pad(layout),
            **{f"item_{name}": tensor for name, tensor in self.processor.pad(item_layout).items()},
            "positive_index": torch.from_numpy(positive_index.astype(np.int64)),
            "candidate_mask": torch.from_numpy(mask),
        }
        if self.item_counts is not None:
            batch["item_log_q"] = torch.from_numpy(np.log(self.item_counts[titles]).astype(np.float32))
        return batch

    def _in_batch_mask(self, examples: Sequence[Example], targets: np.ndarray, titles: np.ndarray) -> np.ndarray:
        """(B, M) True where a title may be a negative of an example."""
        text = self.classes.text
        mask = text[targets][:, None] != text[titles][None, :]
        if self.negative_domain == "target":
            mask &= self.domain_codes[targets][:, None] == self.domain_codes[titles][None, :]
        for row, example in enumerate(examples):
            mask[row] &= ~np.isin(text[titles], text[self.histories[example["user"]]])
        return mask


def expected_counts(
    targets: np.ndarray, classes: TitleClasses, sampler: NegativeSampler, batch_size: int
) -> np.ndarray:
    """How often each title is expected in a batch: the q of the logQ correction.

    A batch of B examples holds B targets, drawn as often as they occur among the training targets, and n negatives
    for each, uniform over the pool of the target's domain d::

        q(j) = B · count(j) / Σ count  +  B · P(d) · n / |pool(d)|,    P(d) = share of targets in d's pool

    (Yi et al., "Sampling-Bias-Corrected Neural Modeling", RecSys 2019, with both sources of negatives added up.)

    Args:
        targets: (examples,) item index of every training target.
        classes: items grouped by title.
        sampler: the negatives' sampler, n = 0 for in-batch negatives alone.
        batch_size: B, of one process.

    Returns:
        (items,) float64, at the representatives; 0 for titles that never enter a batch.
    """
    count = np.bincount(classes.representative[targets], minlength=len(classes)).astype(np.float64)
    expected = batch_size * count / count.sum()
    if sampler.n:
        for pool in sampler.pools:
            if len(pool):
                share = count[pool].sum() / count.sum()
                expected[pool] += batch_size * share * min(sampler.n, len(pool)) / len(pool)
    return expected
