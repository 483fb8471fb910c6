"""The candidates of a block of users, so that memory is that of a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llmrec.evaluation.histories import Histories
from llmrec.evaluation.protocols import Protocol
from llmrec.retrieval.scorers import BLOCK_BYTES, BYTES_PER_COLUMN, MOST_USERS

# `BYTES_PER_COLUMN`, the item index on both sides (8 + 8) and its place among the block's distinct items (8).
BYTES_PER_DRAWN_ITEM = 32


@dataclass(frozen=True)
class Block:
    """Some users and what their targets are ranked against.

    Attributes:
        rows: int64 (B,), row numbers in the split.
        items: None (columns are the whole catalogue), int64 (M,) (columns are these items, for all users) or
            int64 (B, C) (each user's own).
        target_column: int64 (B,), the column that holds the target.
        off_rows: int64 (K,), position in the block (0 .. B-1) of each column that does not count: a seen
            item, or filling where a user has fewer negatives than others.
        off_columns: int64 (K,), the column. Pairs are unique, and never a target's.
    """

    rows: np.ndarray
    items: np.ndarray | None
    target_column: np.ndarray
    off_rows: np.ndarray
    off_columns: np.ndarray


def users_per_block(protocol: Protocol, n_columns: int, block_bytes: int = BLOCK_BYTES) -> int:
    """How many users are ranked at once, so that what is held for them stays within `block_bytes`."""
    width = BYTES_PER_DRAWN_ITEM if protocol.candidates == "sampled" else BYTES_PER_COLUMN
    return int(np.clip(block_bytes // (width * max(1, n_columns)), 1, MOST_USERS))


def candidate_blocks(
    protocol: Protocol,
    histories: Histories,
    targets: np.ndarray,
    domain_codes: np.ndarray,
    rows: np.ndarray,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Block]:
    """All of `rows` in blocks, each with its candidates.

    Args:
        protocol: which candidates.
        histories: of all users of the split.
        targets: int64 (U,), item index of each user's target.
        domain_codes: int (N,), domain of each item.
        rows: int64 (R,), users to rank.
        block_bytes: memory for one block.
    """
    if protocol.candidates == "catalogue":
        step = users_per_block(protocol, len(domain_codes), block_bytes)
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            positions, seen = _seen(protocol, histories, targets, block)
            yield Block(block, None, targets[block], positions, seen)
        return
    # Users of one domain together: they share their candidates, so fewer items are scored for each block.
    domains = domain_codes[targets[rows]]
    for code in np.unique(domains):
        items = np.flatnonzero(domain_codes == code)
        column = np.full(len(domain_codes), -1, dtype=np.int64)
        column[items] = np.arange(len(items))
        members = rows[domains == code]
        width = len(items) if protocol.n_negatives is None else 1 + min(protocol.n_negatives, len(items))
        step = users_per_block(protocol, width, block_bytes)
        for start in range(0, len(members), step):
            block = members[start : start + step]
            positions, seen = _seen(protocol, histories, targets, block)
            inside = column[seen] >= 0
            positions, seen = positions[inside], column[seen[inside]]
            if protocol.n_negatives is None:
                yield Block(block, items, column[targets[block]], positions, seen)
            else:
                yield _draw(protocol, block, targets[block], items, column, positions, seen, width)


def _seen(
    protocol: Protocol, histories: Histories, targets: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Unique (position in block, item) of the histories, sorted, without the targets; none if unmasked."""
    if not protocol.mask_seen:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    positions, items = histories.events(rows)
    kept = items != targets[rows][positions]
    pairs = np.unique(np.stack([positions[kept], items[kept]], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _draw(
    protocol: Protocol,
    rows: np.ndarray,
    targets: np.ndarray,
    items: np.ndarray,
    column: np.ndarray,
    seen_positions: np.ndarray,
    seen_columns: np.ndarray,
    width: int,
) -> Block:
    """Column 0 holds the target, the others what is drawn; filling after a short draw is switched off."""
    drawn = np.repeat(targets[:, None], width, axis=1)
    lengths = np.empty(len(rows), dtype=np.int64)
    bounds = np.searchsorted(seen_positions, np.arange(len(rows) + 1))
    for position, row in enumerate(rows):
        excluded = seen_columns[bounds[position] : bounds[position + 1]]
        if protocol.exclude_target:
            excluded = np.sort(np.append(excluded, column[targets[position]]))
        picks = draw_without(protocol, int(row), len(items), excluded)
        lengths[position] = len(picks)
        drawn[position, 1 : 1 + len(picks)] = items[picks]
    off_rows, off_columns = np.nonzero(np.arange(width)[None, :] > lengths[:, None])
    return Block(rows, drawn, np.zeros(len(rows), dtype=np.int64), off_rows, off_columns)


def draw_without(protocol: Protocol, row: int, size: int, excluded: np.ndarray) -> np.ndarray:
    """Draw `n_negatives` of the numbers 0 .. size-1 without replacement, or all where there are fewer.

    The draw depends on the seed and the row number alone: neither on the block nor on which users are
    evaluated.

    Args:
        row: the user's row number in the split.
        size: how many items the domain holds.
        excluded: int64 (E,), sorted unique numbers that may not be drawn.
    """
    assert protocol.n_negatives is not None
    allowed = size - len(excluded)
    if allowed <= protocol.n_negatives:
        picks = np.arange(allowed)
    else:
        generator = np.random.default_rng((protocol.seed, row))
        picks = generator.choice(allowed, protocol.n_negatives, replace=False, shuffle=False)
    # The x-th allowed number is x plus the excluded numbers below it: excluded[i] has excluded[i] - i allowed
    # numbers below it.
    return picks + np.searchsorted(excluded - np.arange(len(excluded)), picks, side="right")
