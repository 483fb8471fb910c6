"""From titles to packed rows of tokens: where every token of a batch stands, and where its vectors are read.

Two steps. `lay_out` strings titles together to texts, one after the other on one line (`Texts`); `pack` puts texts
into the rows that the model reads (`PackedTexts`). Both move whole arrays: the loader is measured in millions of
tokens a second, and a Python loop over tokens would be a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from llmrec.data.title_tokens import TitleTokens
from modeling_llmrec.packing import PackedTexts

How = Literal["segments", "mask", "flex", "flash"]
PACKINGS = ("segments", "mask", "flex", "flash")

# Tokens of a row under a block mask: attention costs the square of it, and shorter rows leave more padding.
ROW_TOKENS = 256
# Texts share a bucket while the longest is not longer than this times the shortest, or by this many tokens.
BUCKET_GROWTH, BUCKET_SLACK = 1.15, 4


class Text(NamedTuple):
    """One text: token ids, and for prefix sharing their positions, their queries and where vectors are read.

    Attributes:
        ids: (tokens,) token ids.
        positions: (tokens,) from 0; counted up where left out.
        queries: (tokens,) 0 for ordinary tokens, k for the tokens of query k; none where left out.
        ends: one past the last token of each vector's text; the end of the whole text where left out.
    """

    ids: Sequence[int] | np.ndarray
    positions: Sequence[int] | np.ndarray | None = None
    queries: Sequence[int] | np.ndarray | None = None
    ends: tuple[int, ...] = ()


class Specials(NamedTuple):
    """The special tokens around a history and around an item.

    Attributes:
        prefix, suffix: token ids before and after the titles.
    """

    prefix: np.ndarray
    suffix: np.ndarray

    @classmethod
    def of(cls, processor: Any) -> Specials:
        """Those of an `LLMRecProcessor`."""
        both = np.asarray(processor.layout_item([]), dtype=np.int64)
        before = len(processor.config.prefix_tokens)
        return cls(both[:before], both[before:])


@dataclass(frozen=True)
class Texts:
    """Many texts, one after the other.

    Attributes:
        ids: (tokens,) int64.
        positions: (tokens,) int64, from 0 in every text.
        queries: (tokens,) int64, 0 for ordinary tokens, k for the tokens of query k of a text; None where there are
            no queries.
        offsets: (texts + 1,) int64, where each text starts.
        ends: (vectors,) int64, index into `ids` one past the last token of each vector's text.
        owners: (vectors,) int64, the text of each vector, ascending.
    """

    ids: np.ndarray
    positions: np.ndarray
    queries: np.ndarray | None
    offsets: np.ndarray
    ends: np.ndarray
    owners: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Text | Sequence[int]]) -> Texts:
        """From single texts, or from plain lists of token ids (one vector each)."""
        each = [text if isinstance(text, Text) else Text(text) for text in texts]
        lengths = np.array([len(text.ids) for text in each], dtype=np.int64)
        offsets = offsets_of(lengths)
        positions = [np.arange(len(text.ids)) if text.positions is None else text.positions for text in each]
        queries = None
        if any(text.queries is not None for text in each):
            queries = _joined([[0] * len(text.ids) if text.queries is None else text.queries for text in each])
        ends = [np.asarray(text.ends or (len(text.ids),)) + start for text, start in zip(each, offsets, strict=False)]
        owners = np.repeat(np.arange(len(each)), [len(one) for one in ends])
        ids = _joined([text.ids for text in each])
        return cls(ids, _joined(positions), queries, offsets, _joined(ends), owners)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(texts,) int64 tokens of each text."""
        return np.diff(self.offsets)

    def select(self, rows: np.ndarray) -> tuple[Texts, np.ndarray]:
        """Some texts, in the order asked for.

        Args:
            rows: (k,) which texts.

        Returns:
            The texts, and (vectors of them,) int64 which vectors of this object theirs are.
        """
        lengths = self.lengths[rows]
        source = spans(self.offsets[rows], lengths)
        offsets = offsets_of(lengths)
        first = np.searchsorted(self.owners, np.arange(len(self) + 1))
        counts = np.diff(first)[rows]
        vectors = spans(first[rows], counts)
        shift = np.repeat(offsets[:-1] - self.offsets[rows], counts)
        chosen = Texts(
            self.ids[source],
            self.positions[source],
            None if self.queries is None else self.queries[source],
            offsets,
            self.ends[vectors] + shift,
            np.repeat(np.arange(len(rows)), counts),
        )
        return chosen, vectors


# -- titles to texts -------------------------------------------------------------------------------


def lay_out(
    title_tokens: TitleTokens, specials: Specials, items: np.ndarray, counts: np.ndarray, read: np.ndarray | None = None
) -> Texts:
    """Texts of titles between the special tokens, as `LLMRecProcessor.layout_history` and `layout_item` give them.

    With several vectors in a text (prefix sharing) the suffix stands after every title that a vector is read after::

        prefix, title 1, suffix, title 2, suffix, title 3, suffix

    Each of those suffixes is a query: it sees the prefix and the titles before it, its positions go on from the last
    of them, and no later token sees it. So its vector is that of the text that ends with it. Without a suffix the
    vector is read at the title's last token, and there are no queries. Exact for causal backbones, "last" pooling and
    titles that stand oldest first.

    Args:
        title_tokens: token ids of the catalogue's titles.
        specials: the special tokens.
        items: (titles,) item index of every title, in the order of the texts.
        counts: (texts,) titles of each text, at least one.
        read: (titles,) bool, the titles that a vector is read after; the last of each text must be among them, and
            only that is by default.

    Returns:
        The texts; their vectors stand in the order of the titles.
    """
    before, after = len(specials.prefix), len(specials.suffix)
    last = np.cumsum(counts) - 1
    first = last + 1 - counts
    if read is None:
        read = np.zeros(len(items), dtype=bool)
        read[last] = True
    text = np.repeat(np.arange(len(counts)), counts)
    starts = title_tokens.offsets[items]
    lengths = title_tokens.offsets[items + 1] - starts

    # Position of a title's first token: what stands before it in its text, queries left out.
    titles_before, reads_before = offsets_of(lengths)[:-1], offsets_of(read)[:-1]
    position = before + titles_before - titles_before[first][text]
    number = reads_before - reads_before[first][text]
    offsets = offsets_of(before + np.add.reduceat(lengths + after * read, first))
    place = offsets[text] + position + after * number

    ids = np.empty(offsets[-1], dtype=np.int64)
    positions = np.empty(offsets[-1], dtype=np.int64)
    target = spans(place, lengths)
    ids[target] = title_tokens.flat[spans(starts, lengths)]
    positions[target] = spans(position, lengths)
    target = offsets[:-1, None] + np.arange(before)
    ids[target], positions[target] = specials.prefix, np.arange(before)
    ends = (place + lengths)[read]
    target = ends[:, None] + np.arange(after)
    ids[target], positions[target] = specials.suffix, (position + lengths)[read][:, None] + np.arange(after)
    queries = None
    if after and len(ends) > len(counts):
        queries = np.zeros(offsets[-1], dtype=np.int64)
        # Nothing comes after the last query of a text that could see it, so it needs no number. A text with one
        # vector is then like any other, and can be read by kernels that know nothing of queries.
        is_last = np.zeros(len(items), dtype=bool)
        is_last[last] = True
        queries[target] = np.where(is_last, 0, number + 1)[read][:, None]
    return Texts(ids, positions, queries, offsets, ends + after, text[read])


def item_text(processor: Any, title_ids: Sequence[int]) -> Text:
    """The text of one item."""
    return Text(processor.layout_item(title_ids))


def history_text(processor: Any, title_ids: Sequence[Sequence[int]]) -> Text:
    """The text of one history, cut to the processor's limits.

    Args:
        processor: `LLMRecProcessor`.
        title_ids: token ids of its titles, oldest first.
    """
    return Text(processor.layout_history(title_ids))


def shared_history_text(processor: Any, title_ids: Sequence[Sequence[int]], read: Sequence[int]) -> Text:
    """One text for several prefixes of a history that start at its first title (prefix sharing).

    Args:
        processor: `LLMRecProcessor`.
        title_ids: token ids of the titles, oldest first, within the processor's limits.
        read: lengths of the prefixes in titles, ascending, the last one that of the whole.
    """
    wanted = np.zeros(len(title_ids), dtype=bool)
    wanted[np.asarray(read) - 1] = True
    texts = lay_out(
        TitleTokens.of(title_ids),
        Specials.of(processor),
        np.arange(len(title_ids)),
        np.array([len(title_ids)]),
        wanted,
    )
    return Text(texts.ids, texts.positions, texts.queries, tuple(texts.ends.tolist()))


# -- texts to rows ---------------------------------------------------------------------------------


def pack(
    texts: Texts | Sequence[Text | Sequence[int]], how: str = "segments", row_tokens: int | None = None
) -> PackedTexts:
    """Put texts into rows.

    Args:
        texts: the texts, or lists of token ids.
        how: `"segments"` and `"flash"`: one row without padding, for attention text by text; `"segments"` with
            buckets of texts of like length. `"mask"` and `"flex"`: rows of `row_tokens` that are filled by first-fit
            decreasing (longest texts first, each into the first row with room: at most 11/9 of the best number of
            rows, Johnson 1973), for attention under a block mask.
        row_tokens: tokens of a row; by default 256, and the longest text where that is longer.

    Returns:
        `PackedTexts`; its vectors stand in the order of the texts, whatever the rows.

    Raises:
        ValueError: for no texts, an unknown `how`, or queries under `"flash"`.
    """
    if not isinstance(texts, Texts):
        texts = Texts.of(texts)
    if how not in PACKINGS:
        raise ValueError(f"packing {how!r} is none of {', '.join(PACKINGS)}")
    if not len(texts):
        raise ValueError("there is no text to pack")
    if how == "flash" and texts.queries is not None:
        raise ValueError("packing 'flash' cannot share prefixes: its kernel knows no queries")
    lengths = texts.lengths
    if how in ("segments", "flash"):
        rows = np.zeros(len(texts), dtype=np.int64)
        row_tokens = int(texts.offsets[-1])
        places, numbers = texts.offsets[:-1], np.arange(1, len(texts) + 1)
    else:
        row_tokens = max(row_tokens or ROW_TOKENS, int(lengths.max()))
        rows, columns, numbers = fill_rows(lengths, row_tokens)
        if how == "mask":  # Compiled kernels like the same shape in every step, this one likes less to do.
            row_tokens = int((columns + lengths).max())
        places = rows * row_tokens + columns
    slots = (int(rows.max()) + 1) * row_tokens
    target = None if slots == len(texts.ids) and how in ("segments", "flash") else spans(places, lengths)

    def spread(values: np.ndarray) -> torch.Tensor:
        if target is not None:
            values, tokens = np.zeros(slots, dtype=np.int64), values
            values[target] = tokens
        return torch.from_numpy(values.reshape(-1, row_tokens))

    starts = places[texts.owners]
    ends = texts.ends - texts.offsets[texts.owners] + starts
    return PackedTexts(
        input_ids=spread(texts.ids),
        position_ids=spread(texts.positions),
        segment_ids=spread(np.repeat(numbers, lengths)),
        starts=torch.from_numpy(starts.astype(np.int64)),
        ends=torch.from_numpy(ends.astype(np.int64)),
        read_tokens=int((ends - starts).sum()),
        query_ids=None if texts.queries is None else spread(texts.queries),
        buckets=_buckets(texts) if how == "segments" else None,
    )


def pack_passes(
    texts: Texts, how: str = "segments", row_tokens: int | None = None, max_pass_tokens: int | None = None
) -> tuple[list[PackedTexts], np.ndarray]:
    """Pack texts, in several passes of at most `max_pass_tokens` tokens each where that is given.

    Texts of like length share a pass; a text longer than the budget stands alone.

    Returns:
        The passes, and (vectors,) int64 the place of each vector of `texts` among those of all passes in order.
    """
    if max_pass_tokens is None or texts.offsets[-1] <= max_pass_tokens:
        return [pack(texts, how, row_tokens)], np.arange(len(texts.owners))
    passes, order = [], []
    for rows in split_passes(texts.lengths, max_pass_tokens):
        chosen, vectors = texts.select(rows)
        passes.append(pack(chosen, how, row_tokens))
        order.append(vectors)
    places = np.empty(len(texts.owners), dtype=np.int64)
    places[np.concatenate(order)] = np.arange(len(places))
    return passes, places


def split_passes(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Share texts out over passes of at most `max_tokens` tokens, longest first; one that is longer stands alone.

    Args:
        lengths: (texts,) tokens of each.

    Returns:
        For each pass (its texts,) int64 which they are. Every text is in exactly one.
    """
    order = np.argsort(-lengths, kind="stable")
    total = np.cumsum(lengths[order])
    passes, start, done = [], 0, 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(total, done + max_tokens, side="right")))
        passes.append(order[start:stop])
        start, done = stop, int(total[stop - 1])
    return passes


def fill_rows(lengths: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First-fit decreasing: longest texts first, each into the first row that has room.

    All texts of one length are placed at once: each row in turn takes as many as fit, which is what placing them one
    by one comes to.

    Args:
        lengths: (texts,) tokens of each, none above `row_tokens`.

    Returns:
        (texts,) int64 each: its row, its first column, and its number within the row, from 1.
    """
    order = np.argsort(-lengths, kind="stable")
    values, counts = np.unique(-lengths, return_counts=True)
    room = np.empty(0, dtype=np.int64)
    parts = []
    for length, count in zip((-values).tolist(), counts.tolist(), strict=True):
        fits = room // length
        missing = count - int(fits.sum())
        if missing > 0:
            per_row = row_tokens // length
            new = -(-missing // per_row)
            room = np.concatenate([room, np.full(new, row_tokens, dtype=np.int64)])
            fits = np.concatenate([fits, np.full(new, per_row, dtype=np.int64)])
        taken = np.minimum(fits, np.maximum(0, count - (np.cumsum(fits) - fits)))
        room = room - taken * length
        parts.append(np.repeat(np.arange(len(room)), taken))
    rows = np.empty(len(lengths), dtype=np.int64)
    rows[order] = np.concatenate(parts)
    # Within a row in the order of placement, which is that of `order`.
    by_row = order[np.argsort(rows[order], kind="stable")]
    first = np.flatnonzero(np.diff(rows[by_row], prepend=-1))
    members = np.diff(np.append(first, len(by_row)))
    before = offsets_of(lengths[by_row])[:-1]
    columns, numbers = np.empty_like(rows), np.empty_like(rows)
    columns[by_row] = before - np.repeat(before[first], members)
    numbers[by_row] = np.arange(len(by_row)) - np.repeat(first, members) + 1
    return rows, columns, numbers


def _buckets(texts: Texts) -> list[torch.Tensor]:
    """Indices of the tokens of texts of like length; texts with queries stay apart from those without."""
    lengths = texts.lengths
    queried = np.zeros(len(texts), dtype=bool)
    if texts.queries is not None:
        queried = np.bincount(texts.owners, minlength=len(texts)) > 1
    buckets = []
    for kind in (False, True):
        members = np.flatnonzero(queried == kind)
        members = members[np.argsort(lengths[members], kind="stable")]
        sorted_lengths = lengths[members]
        start = 0
        while start < len(members):
            shortest = int(sorted_lengths[start])
            longest = max(int(BUCKET_GROWTH * shortest), shortest + BUCKET_SLACK)
            stop = int(np.searchsorted(sorted_lengths, longest, side="right"))
            chosen = members[start:stop]
            column = np.arange(sorted_lengths[stop - 1])
            index = np.where(column < lengths[chosen][:, None], texts.offsets[chosen][:, None] + column, -1)
            buckets.append(torch.from_numpy(index))
            start = stop
    return buckets


# -- figures for the log ---------------------------------------------------------------------------


def tokens(packed: PackedTexts | Sequence[PackedTexts]) -> int:
    """Tokens that are no padding."""
    return sum(int((one.segment_ids != 0).sum()) for one in _listed(packed))


def fill_rate(packed: PackedTexts | Sequence[PackedTexts]) -> float:
    """Share of the slots of `input_ids` that hold a token, not padding."""
    return tokens(packed) / sum(one.input_ids.numel() for one in _listed(packed))


def _listed(packed: PackedTexts | Sequence[PackedTexts]) -> Sequence[PackedTexts]:
    return [packed] if isinstance(packed, PackedTexts) else packed


# -- flat arrays -----------------------------------------------------------------------------------


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """(n + 1,) int64 where each of n runs of these lengths starts, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(sum of lengths,) int64: `starts[0], starts[0] + 1, …`, `lengths[0]` numbers, then those of the next run."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def _joined(parts: Sequence[Any]) -> np.ndarray:
    if not parts:
        return np.empty(0, dtype=np.int64)
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
