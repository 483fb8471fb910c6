"""Tokens of an epoch by parts, counted on the very batches that training would see."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec.data.prepared import PreparedData
from llmrec.data.title_tokens import TitleTokens
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.collator import Collator
from llmrec.training.examples import Example, PrefixExamples, split_histories, window_starts
from llmrec.training.negatives import NegativeSampler
from llmrec.training.packing import Packing
from llmrec.training.sampling import EpochSampler
from llmrec.training.titles import TitleClasses
from llmrec.training.trainer import BATCHES_A_GROUP


@dataclass(frozen=True)
class TokenCounts:
    """Sums over batches; those of an epoch may be fractions where they were extrapolated.

    Attributes:
        batches, examples: batches of one process, and examples in them.
        slots: tokens that go through the backbone's layers, padding included.
        history_tokens: tokens of histories, those read for several targets counted once.
        target_tokens, negative_tokens, shared_tokens: tokens of titles: the targets', those drawn for single
            examples, and those drawn for the batch (each title of a batch counted once, for the first that applies).
        targets, negatives, shared: those titles.
        vectors: those that are read off the slots.
        separate_history_tokens: tokens of histories if each example read its own.
        separate_title_tokens: tokens of titles if each example read its target and its own negatives.
        pairs: pairs of tokens that attention multiplies, padding and hidden ones included.
        needed_pairs: pairs of tokens of which one may see the other.
        scores: products of a history's vector with a title's.
        cached_slots, cached_pairs, cached_vectors: those of batches that are read twice (gradient caching).
        pass_slots: slots of the largest pass that is held for the backward pass; not a sum but a maximum.
        batch_scores: scores of the largest batch.
    """

    batches: float = 0
    examples: float = 0
    slots: float = 0
    history_tokens: float = 0
    target_tokens: float = 0
    negative_tokens: float = 0
    shared_tokens: float = 0
    targets: float = 0
    negatives: float = 0
    shared: float = 0
    vectors: float = 0
    separate_history_tokens: float = 0
    separate_title_tokens: float = 0
    pairs: float = 0
    needed_pairs: float = 0
    scores: float = 0
    cached_slots: float = 0
    cached_pairs: float = 0
    cached_vectors: float = 0
    pass_slots: float = 0
    batch_scores: float = 0

    @property
    def tokens(self) -> float:
        """Tokens read, padding left out."""
        return self.history_tokens + self.target_tokens + self.negative_tokens + self.shared_tokens

    @property
    def titles(self) -> float:
        """Titles read."""
        return self.targets + self.negatives + self.shared

    @property
    def padding(self) -> float:
        """Slots without a token."""
        return self.slots - self.tokens

    def __add__(self, other: TokenCounts) -> TokenCounts:
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return TokenCounts(**{n: max(ours[n], theirs[n]) if n in _MAXIMA else ours[n] + theirs[n] for n in ours})

    def scaled(self, factor: float) -> TokenCounts:
        """All sums times a factor; maxima stay."""
        values = dataclasses.asdict(self)
        return TokenCounts(**{name: value * (1 if name in _MAXIMA else factor) for name, value in values.items()})


_MAXIMA = ("pass_slots", "batch_scores")


@dataclass
class PlannedData:
    """The examples of a run in their order, and their collator.

    Attributes:
        examples: all examples.
        order: (examples,) in which an epoch takes them.
        collator: lays out batches.
        batch_size: examples of a batch of one process.
        classes: items grouped by title.
        causal: whether tokens see only those before them.
    """

    examples: PrefixExamples
    order: np.ndarray
    collator: Collator
    batch_size: int
    classes: TitleClasses
    causal: bool

    @classmethod
    def of(
        cls,
        processor: Any,
        title_tokens: TitleTokens,
        data: PreparedData,
        arguments: LLMRecTrainingArguments,
        packing: Packing,
        causal: bool,
        processes: int = 1,
    ) -> PlannedData:
        """As the trainer makes them, without the logQ correction, which costs nothing."""
        config, domain_codes = processor.config, np.asarray(data.catalogue.domain_codes)
        histories = split_histories(data.train)
        examples = PrefixExamples(
            histories, config.max_history_items, arguments.max_train_examples, arguments.seed, packing.share_prefixes
        )
        classes = TitleClasses(title_tokens, domain_codes)
        sampler = NegativeSampler(
            classes, domain_codes, data.catalogue.domain_names, int(arguments.negatives_per_example or 0),
            arguments.negative_domain, arguments.seed,
        )  # fmt: skip
        collator = Collator(
            processor, title_tokens, histories, classes, domain_codes, sampler, config.contrastive_loss,
            arguments.negative_domain, packing=packing.how, share_prefixes=packing.share_prefixes,
            row_tokens=arguments.row_tokens, max_pass_tokens=arguments.max_pass_tokens,
            shared_negatives=arguments.shared_negatives,
        )  # fmt: skip
        by_length = arguments.train_sampling_strategy == "group_by_length"
        lengths = examples.history_tokens(title_tokens.lengths) if by_length else None
        size = arguments.per_device_train_batch_size
        order = EpochSampler(examples, arguments.data_seed or 0, lengths, size * processes * BATCHES_A_GROUP)
        return cls(examples, np.fromiter(order, dtype=np.int64), collator, size, classes, causal)

    @property
    def batches(self) -> int:
        """Batches of an epoch, of all processes together."""
        return -(-len(self.order) // self.batch_size)

    def batch(self, number: int) -> list[Example]:
        """The examples of a batch."""
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        return [self.examples[int(row)] for row in rows]


def count_epoch(planned: PlannedData, max_batches: int | None = None) -> TokenCounts:
    """Count an epoch.

    Args:
        planned: the data.
        max_batches: count so many, spread evenly over the epoch, and extrapolate by their examples; all by default.
    """
    numbers = np.arange(planned.batches)
    if max_batches is not None and max_batches < planned.batches:
        # The middle of each of as many equal stretches.
        numbers = ((np.arange(max_batches) + 0.5) * planned.batches / max_batches).astype(np.int64)
    total = TokenCounts()
    for number in numbers:
        total += count_batch(planned, planned.batch(int(number)))
    counts = total.scaled(len(planned.order) / total.examples)
    # The last batch is a smaller one, so batches are no multiple of the examples; histories are known in full.
    separate = float(separate_history_tokens(planned).sum())
    return dataclasses.replace(counts, batches=planned.batches, separate_history_tokens=separate)


def separate_history_tokens(planned: PlannedData) -> np.ndarray:
    """(examples,) int64 tokens of each example's history within the limits, special tokens included."""
    collator, examples = planned.collator, planned.examples
    starts = window_starts(
        examples.histories, examples.positions, collator.tokens_before, examples.max_history_items, collator.room
    )
    specials = len(collator.specials.prefix) + len(collator.specials.suffix)
    return collator.tokens_before[examples.positions] - collator.tokens_before[starts] + specials


def count_batch(planned: PlannedData, examples: Sequence[Example]) -> TokenCounts:
    """Collate a batch and count it."""
    collator, tokens = planned.collator, planned.collator.title_tokens
    batch = collator(examples)
    specials = len(collator.specials.prefix) + len(collator.specials.suffix)
    targets = planned.classes.representative[[example["target"] for example in examples]]
    drawn = [
        collator.sampler.draw(one["epoch"], one["example"], one["target"], collator.histories[one["user"]])
        for one in examples
    ]
    first = min(examples, key=lambda example: example["example"])
    shared = collator.sampler.draw_shared(first["epoch"], first["example"], targets, collator.shared_negatives)
    own = np.setdiff1d(np.concatenate(drawn), targets)
    shared = np.setdiff1d(shared, np.concatenate([targets, own]))
    kinds = [np.unique(targets), own, shared]
    title_tokens = [float((tokens.lengths[kind] + specials).sum()) for kind in kinds]
    passes = [_count_padded(batch)] if "texts" not in batch else [
        _count_packed(chunk, collator.packing, planned.causal) for chunk in batch["texts"]
    ]  # fmt: skip
    read, slots, pairs, needed = (sum(column) for column in zip(*passes, strict=True))
    twice = len(passes) > 1
    vectors = float(sum(map(len, batch["texts"])) if "texts" in batch else len(examples) + sum(map(len, kinds)))
    scores = float(len(examples) * sum(map(len, kinds)))
    return TokenCounts(
        batches=1,
        examples=len(examples),
        slots=slots,
        history_tokens=read - sum(title_tokens),
        target_tokens=title_tokens[0],
        negative_tokens=title_tokens[1],
        shared_tokens=title_tokens[2],
        targets=len(kinds[0]),
        negatives=len(kinds[1]),
        shared=len(kinds[2]),
        vectors=vectors,
        separate_title_tokens=float(sum((tokens.lengths[one] + specials).sum() for one in [targets, *drawn])),
        pairs=pairs,
        needed_pairs=needed if planned.causal or "texts" in batch else _bidirectional_pairs(batch),
        scores=scores,
        cached_slots=slots if twice else 0,
        cached_pairs=pairs if twice else 0,
        cached_vectors=vectors if twice else 0,
        pass_slots=max(one[1] for one in passes),
        batch_scores=scores,
    )


def _count_padded(batch: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """(tokens, slots, pairs, needed pairs) of histories and titles, both held until the backward pass."""
    masks = [batch["attention_mask"], batch["item_attention_mask"]]
    lengths = [mask.sum(dim=1).double() for mask in masks]
    return (
        float(sum(length.sum() for length in lengths)),
        float(sum(mask.numel() for mask in masks)),
        float(sum(mask.shape[0] * mask.shape[1] ** 2 for mask in masks)),
        float(sum((length * (length + 1) / 2).sum() for length in lengths)),
    )


def _bidirectional_pairs(batch: Mapping[str, Any]) -> float:
    masks = [batch["attention_mask"], batch["item_attention_mask"]]
    return float(sum((mask.sum(dim=1).double() ** 2).sum() for mask in masks))


def _count_packed(packed: Any, how: str, causal: bool) -> tuple[float, float, float, float]:
    """The same of one pass of packed texts."""
    segments = packed.segment_ids.numpy()
    rows, length = segments.shape
    # Texts numbered over all rows, in the order of their tokens.
    numbers = (segments + np.arange(rows)[:, None] * (int(segments.max()) + 1))[segments > 0]
    _, text, lengths = np.unique(numbers, return_inverse=True, return_counts=True)
    if packed.buckets is not None:
        pairs = sum(bucket.shape[0] * bucket.shape[1] ** 2 for bucket in packed.buckets)
    elif how == "flash":
        pairs = int((lengths.astype(np.int64) ** 2).sum())
    else:
        pairs = rows * length**2
    if not causal:
        needed = float((lengths.astype(np.float64) ** 2).sum())
    else:
        queries = None if packed.query_ids is None else packed.query_ids.numpy()[segments > 0]
        needed = _causal_pairs(text.reshape(-1), lengths, queries)
    return float(lengths.sum()), float(segments.size), float(pairs), needed


def _causal_pairs(text: np.ndarray, lengths: np.ndarray, queries: np.ndarray | None) -> float:
    """Pairs of a token with those before it and itself, where no token sees the queries of others."""
    first = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    seen = np.arange(len(text)) - first[text] + 1
    if queries is None:
        return float(seen.sum())
    hidden = np.cumsum(queries > 0)
    hidden_before_text = np.where(first > 0, hidden[first - 1], 0)[text]
    # Tokens of queries up to here, less those of the token's own query, which it sees.
    own = np.zeros(len(text), dtype=np.int64)
    is_query = queries > 0
    begins = is_query & (np.diff(queries, prepend=0) + np.diff(text, prepend=0) != 0)
    own[is_query] = np.flatnonzero(is_query) - np.flatnonzero(begins)[np.cumsum(begins)[is_query] - 1] + 1
    return float((seen - (hidden - hidden_before_text) + own).sum())
