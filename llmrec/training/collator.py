"""From examples to the flat batch of one forward pass: histories, unique titles, and who counts for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from llmrec.data.title_tokens import TitleTokens
from llmrec.evaluation.histories import Histories
from llmrec.training.candidates import excluded_keys, in_batch_mask
from llmrec.training.examples import Example, window_starts
from llmrec.training.layout import PACKINGS, Specials, Texts, lay_out, offsets_of, pack_passes, spans
from llmrec.training.negatives import NegativeDomain, NegativeSampler
from llmrec.training.titles import TitleClasses

Loss = Literal["sampled_softmax", "in_batch", "bce"]


class Collator:
    """Lays out a list of examples for `LLMRecModel.forward`; each unique title of the batch stands there once.

    With B examples and M unique titles among their targets and negatives, a packed batch holds

    - `texts`: list of `PackedTexts`, one for each pass through the backbone; their vectors, one pass after the other,
      are those of the histories and of the titles;
    - `user_index`: (B,) int64, which vector is that of each example's history;
    - `item_index`: (M,) int64, which vector is that of each title;

    and a padded one (`packing="off"`)

    - `input_ids`, `attention_mask`: (B, L) the histories;
    - `item_input_ids`, `item_attention_mask`: (M, L') the titles;

    and both

    - `positive_index`: (B,) int64, the row of each target among the titles;
    - `candidate_mask`: (B, M) bool, the titles that count for an example. `sampled_softmax` and `bce`: its target
      and its own negatives. `in_batch`: all but the titles of the user's training history and those that equal the
      target; only the target's domain where negatives come from it;
    - `item_log_q`: (M,) float32 with the logQ correction, see `expected_counts`.

    For masks over other items than the batch's own, a batch of the `in_batch` loss also holds the arguments of
    `in_batch_mask`: `target_ids` (B,), `item_ids` (M,), `excluded` (E,), all int64.

    What a batch holds depends on the seed, the epoch and its examples only.

    Under several processes each contrasts with its own batch, unless the trainer gathers items: with the examples' own
    negatives the gradients are those of one process with the global batch; with in-batch negatives the pool is that of
    one process.

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
        packing: how texts share rows (`layout.pack`), or `"off"`.
        share_prefixes: whether histories of one user that begin at the same event are one text with several vectors.
            The model must be causal and pool the last token.
        row_tokens: tokens of a packed row.
        max_pass_tokens: tokens that go through the backbone at a time; all at once by default.
        shared_negatives: titles drawn for each domain of the batch's targets, candidates of all its examples.

    Raises:
        ValueError: for an unknown packing, prefix sharing where it cannot be exact, shared negatives without the
            in-batch loss, or a title that no history has room for.
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
        *,
        packing: str = "off",
        share_prefixes: bool = False,
        row_tokens: int | None = None,
        max_pass_tokens: int | None = None,
        shared_negatives: int = 0,
    ) -> None:
        self.processor = processor
        self.title_tokens = TitleTokens.of(title_tokens)
        self.histories = histories
        self.classes = classes
        self.domain_codes = domain_codes
        self.sampler = sampler
        self.loss = loss
        self.negative_domain = negative_domain
        self.item_counts = item_counts
        self.packing = packing
        self.share_prefixes = share_prefixes
        self.row_tokens = row_tokens
        self.max_pass_tokens = max_pass_tokens
        self.shared_negatives = shared_negatives
        self._check()
        self.specials = Specials.of(processor)
        self.tokens_before = offsets_of(self.title_tokens.lengths[histories.values])
        self._text = torch.from_numpy(classes.text)
        self._domain = torch.from_numpy(np.asarray(domain_codes)) if negative_domain == "target" else None

    def _check(self) -> None:
        config = self.processor.config
        if self.packing not in (*PACKINGS, "off"):
            raise ValueError(f"packing {self.packing!r} is none of {', '.join(PACKINGS)}, off")
        if self.share_prefixes and (config.pooling, config.item_order) != ("last", "oldest_first"):
            raise ValueError(
                "share_prefixes needs pooling='last' and item_order='oldest_first', not "
                f"{config.pooling!r} and {config.item_order!r}"
            )
        if self.share_prefixes and self.packing in ("off", "flash"):
            raise ValueError(f"share_prefixes needs packing 'segments', 'mask' or 'flex', not {self.packing!r}")
        if self.shared_negatives and self.loss != "in_batch":
            raise ValueError(f"shared_negatives={self.shared_negatives} needs the loss 'in_batch', not {self.loss!r}")
        self.room = config.max_history_tokens - len(self.processor.layout_item([]))
        longest = int(self.title_tokens.lengths.max(initial=0))
        if longest > self.room:
            raise ValueError(
                f"a title has {longest} tokens, more than max_history_tokens={config.max_history_tokens} leaves room "
                "for: take token ids from the processor's tokenize_titles"
            )

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The batch of some examples."""
        targets = self.classes.representative[[example["target"] for example in examples]]
        users = np.array([example["user"] for example in examples])
        negatives = [
            self.sampler.draw(example["epoch"], example["example"], example["target"], self.histories[example["user"]])
            for example in examples
        ]
        first = min(examples, key=lambda example: example["example"])
        shared = self.sampler.draw_shared(first["epoch"], first["example"], targets, self.shared_negatives)
        titles = np.unique(np.concatenate([targets, *negatives, shared]))
        positive_index = torch.from_numpy(np.searchsorted(titles, targets))
        batch: dict[str, Any] = self._padded(examples, titles) if self.packing == "off" else {}
        if self.packing != "off":
            batch |= self._packed(np.array([example["position"] for example in examples]), titles)
        if self.loss == "in_batch":
            known = {
                "target_ids": torch.from_numpy(targets),
                "item_ids": torch.from_numpy(titles),
                "excluded": torch.from_numpy(excluded_keys(self.histories, users, self.classes.text)),
            }
            mask = in_batch_mask(**known, text=self._text, domain=self._domain)
            batch |= known
        else:
            mask = torch.zeros((len(examples), len(titles)), dtype=torch.bool)
            rows = np.repeat(np.arange(len(examples)), [len(drawn) for drawn in negatives])
            mask[rows, np.searchsorted(titles, np.concatenate(negatives))] = True
        mask[torch.arange(len(examples)), positive_index] = True
        batch |= {"positive_index": positive_index, "candidate_mask": mask}
        if self.item_counts is not None:
            batch["item_log_q"] = torch.from_numpy(np.log(self.item_counts[titles]).astype(np.float32))
        return batch

    def texts(self, positions: np.ndarray, titles: np.ndarray) -> tuple[Texts, np.ndarray]:
        """Lay out histories and titles.

        Args:
            positions: (B,) place of each example's target in `histories.values`.
            titles: (M,) item indices.

        Returns:
            The texts, of which the vectors of the titles are the last M; and (B,) int64, which vector is that of each
            example's history.
        """
        stops, user_index = np.unique(positions, return_inverse=True)
        config = self.processor.config
        starts = window_starts(self.histories, stops, self.tokens_before, config.max_history_items, self.room)
        # A window's start lies within its user's events, so windows of equal start are of the same user.
        is_new = np.diff(starts, prepend=-1) != 0 if self.share_prefixes else np.ones(len(stops), dtype=bool)
        text = np.cumsum(is_new) - 1
        begin = starts[is_new]
        counts = stops[np.append(is_new[1:], True)] - begin
        events = spans(begin, counts)
        read = np.zeros(len(events), dtype=bool)
        read[(offsets_of(counts)[:-1] - begin)[text] + stops - 1] = True
        if config.item_order == "newest_first":
            events = np.repeat(2 * begin + counts - 1, counts) - events
        texts = lay_out(
            self.title_tokens,
            self.specials,
            np.concatenate([self.histories.values[events], titles]),
            np.concatenate([counts, np.ones_like(titles)]),
            np.concatenate([read, np.ones(len(titles), dtype=bool)]),
        )
        return texts, user_index.reshape(-1)

    def _packed(self, positions: np.ndarray, titles: np.ndarray) -> dict[str, Any]:
        texts, user_index = self.texts(positions, titles)
        passes, places = pack_passes(texts, self.packing, self.row_tokens, self.max_pass_tokens)
        return {
            "texts": passes,
            "user_index": torch.from_numpy(places[user_index]),
            "item_index": torch.from_numpy(places[len(places) - len(titles) :]),
        }

    def _padded(self, examples: Sequence[Example], titles: np.ndarray) -> dict[str, Any]:
        layout = [
            self.processor.layout_history([self.title_tokens[int(item)] for item in example["history"]])
            for example in examples
        ]
        item_layout = [self.processor.layout_item(self.title_tokens[int(item)]) for item in titles]
        item_batch = self.processor.pad(item_layout)
        return {**self.processor.pad(layout), **{f"item_{name}": tensor for name, tensor in item_batch.items()}}


def expected_counts(
    targets: np.ndarray,
    classes: TitleClasses,
    sampler: NegativeSampler,
    batch_size: int,
    shared_negatives: int = 0,
    processes: int = 1,
) -> np.ndarray:
    """How often each title is expected among the candidates of a step: the q of the logQ correction.

    A batch of B examples holds B targets, drawn as often as they occur among the training targets, n negatives
    for each, uniform over the pool of the target's domain d, and, where d is the domain of any of its targets, k
    negatives shared by all of them; W processes that gather their items hold W such batches::

        q(j) = W · ( B · count(j) / Σ count  +  B · P(d) · n / |pool(d)|  +  (1 - (1 - P(d))^B) · k / |pool(d)| )

    with P(d) the share of targets in d's pool, and n and k at most |pool(d)|. (Yi et al., "Sampling-Bias-Corrected
    Neural Modeling", RecSys 2019, with all sources of negatives added up; the targets of a batch are taken as
    independent, which they are not quite where a user's examples stand together.)

    Args:
        targets: (examples,) item index of every training target.
        classes: items grouped by title.
        sampler: the negatives' sampler, n = 0 for in-batch negatives alone.
        batch_size: B, of one process.
        shared_negatives: k.
        processes: W, those whose items are gathered; 1 where each contrasts with its own.

    Returns:
        (items,) float64, at the representatives; 0 for titles that never enter a batch.
    """
    count = np.bincount(classes.representative[targets], minlength=len(classes)).astype(np.float64)
    expected = batch_size * count / count.sum()
    for pool in sampler.pools:
        if len(pool):
            share = count[pool].sum() / count.sum()
            expected[pool] += batch_size * share * min(sampler.n, len(pool)) / len(pool)
            expected[pool] += (1 - (1 - share) ** batch_size) * min(shared_negatives, len(pool)) / len(pool)
    return processes * expected
