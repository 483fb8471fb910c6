"""The one ranker: where each user's target comes among its candidates."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from llmrec.evaluation.candidates import Block, candidate_blocks
from llmrec.evaluation.histories import Histories
from llmrec.evaluation.protocols import Protocol
from llmrec.retrieval.scorers import BLOCK_BYTES, Scorer, score_items

TIED_CANDIDATES = 0.10
TIED_USERS = 0.01


class CollapsedModelWarning(UserWarning):
    """The model gives many items the same score: its ranks say little."""


class SmallDomainWarning(UserWarning):
    """A domain holds fewer items than a sampled protocol wants to draw."""


@dataclass(frozen=True)
class RankResult:
    """Ranks of some users, sorted by row number.

    Attributes:
        rows: int64 (U,), row number in the split.
        ranks: float64 (U,), 0-based expected rank: candidates with a higher score, plus half of the other
            candidates with the same score.
        candidates: int64 (U,), how many items were ranked, the target included.
        ties: int64 (U,), how many other candidates have the target's score.
    """

    rows: np.ndarray
    ranks: np.ndarray
    candidates: np.ndarray
    ties: np.ndarray

    @staticmethod
    def merge(parts: Iterable[RankResult]) -> RankResult:
        """Put together what several processes ranked.

        Raises:
            ValueError: a row comes twice.
        """
        parts = list(parts)
        rows = np.concatenate([part.rows for part in parts])
        order = np.argsort(rows, kind="stable")
        again = np.flatnonzero(np.diff(rows[order]) == 0)
        if len(again):
            raise ValueError(f"user row {rows[order][again[0]]} was ranked twice")
        return RankResult(
            rows[order],
            np.concatenate([part.ranks for part in parts])[order],
            np.concatenate([part.candidates for part in parts])[order],
            np.concatenate([part.ties for part in parts])[order],
        )


def rank(
    scorer: Scorer,
    *,
    histories: Histories | Sequence[Any],
    targets: np.ndarray | Sequence[int],
    domain_codes: np.ndarray,
    protocol: Protocol,
    rows: np.ndarray | None = None,
    progress: bool = True,
    domain_names: Sequence[str] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> RankResult:
    """Rank each user's target.

    The target's score is a column of the same computation as its competitors', so equal items tie. Memory is
    that of one block of users, whatever their number.

    Args:
        scorer: gives the scores.
        histories: of all U users of the split: a list of arrays of item indices, an Arrow list column, or
            `Histories`.
        targets: int (U,), item index of each user's target.
        domain_codes: int (N,), domain of each item of the catalogue.
        protocol: what the target competes with.
        rows: int (R,), the users to rank; all by default. Other processes may take other rows (one process
            none, where there are few): see `RankResult.merge`.
        progress: show a progress bar.
        domain_names: names for warnings; codes are shown otherwise.
        block_bytes: memory for one block of users.

    Raises:
        ValueError: an index lies outside the catalogue, a row outside the split, or a score is NaN. The
            message names the system and the user's row.

    Warns:
        CollapsedModelWarning: see `collapse_message`.
        SmallDomainWarning: users of a domain got fewer negatives than the protocol wants.
    """
    histories = Histories.of(histories)
    targets = np.asarray(targets, dtype=np.int64)
    domain_codes = np.asarray(domain_codes)
    rows = np.arange(len(targets)) if rows is None else np.unique(np.asarray(rows, dtype=np.int64))
    _check(histories, targets, rows, len(domain_codes))
    ranks = np.empty(len(rows), dtype=np.float64)
    candidates = np.empty(len(rows), dtype=np.int64)
    ties = np.empty(len(rows), dtype=np.int64)
    bar = tqdm(total=len(rows), desc=f"rank {scorer.name}, {protocol.name}", unit="user", disable=not progress)
    with bar, torch.inference_mode():
        for block in candidate_blocks(protocol, histories, targets, domain_codes, rows, block_bytes):
            place = np.searchsorted(rows, block.rows)
            higher, equal, counted = _rank_block(scorer, block, targets)
            ranks[place] = higher + 0.5 * equal
            ties[place] = equal
            candidates[place] = counted
            bar.update(len(block.rows))
    result = RankResult(rows, ranks, candidates, ties)
    message = collapse_message(scorer, result)
    if message is not None:
        warnings.warn(message, CollapsedModelWarning, stacklevel=2)
    for small in small_domains(protocol, domain_codes[targets[rows]], candidates, domain_names):
        warnings.warn(
            f"protocol {protocol.name!r}: domain {small['domain']!r} holds too few items to draw "
            f"{protocol.n_negatives:,} negatives; {small['users']:,} users got all there are, "
            f"{small['fewest_negatives']:,} at least",
            SmallDomainWarning,
            stacklevel=2,
        )
    return result


def collapse_message(scorer: Scorer, result: RankResult) -> str | None:
    """A sentence if the model looks collapsed, else None.

    It does if more than 1 % of the users have more than 10 % (and at least two) of the other candidates tied
    with the target, or if all its item or user vectors are practically the same. A scorer with
    `ties_expected` (popularity) is not judged.
    """
    if getattr(scorer, "ties_expected", False):
        return None
    tied = (result.ties > TIED_CANDIDATES * (result.candidates - 1)) & (result.ties >= 2)
    if len(tied) and tied.mean() > TIED_USERS:
        return (
            f"system {scorer.name!r}: {tied.mean():.1%} of the users have more than {TIED_CANDIDATES:.0%} of "
            "the candidates tied with the target; the model has collapsed, or its scores are too coarse"
        )
    collapse = getattr(scorer, "collapse", None)
    return collapse() if collapse is not None else None


def small_domains(
    protocol: Protocol, domains: np.ndarray, candidates: np.ndarray, domain_names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Domains in which users got fewer negatives than a sampled protocol wants.

    Args:
        domains: int (U,), code of each target's domain.
        candidates: int64 (U,), as in `RankResult`.

    Returns:
        One {"domain", "users", "fewest_negatives"} for each such domain.
    """
    if protocol.n_negatives is None:
        return []
    short = candidates - 1 < protocol.n_negatives
    found = []
    for code in np.unique(domains[short]):
        members = short & (domains == code)
        found.append(
            {
                "domain": domain_names[code] if domain_names is not None else str(code),
                "users": int(members.sum()),
                "fewest_negatives": int(candidates[members].min()) - 1,
            }
        )
    return found


def _rank_block(scorer: Scorer, block: Block, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Higher and equal candidates, and all candidates with the target, int64 (B,) each."""
    scores = score_items(scorer, block.rows, block.items)
    bad = torch.isnan(scores)
    if bad.any():
        position, column = (int(index[0]) for index in torch.nonzero(bad, as_tuple=True))
        items = block.items
        item = column if items is None else items[column] if items.ndim == 1 else items[position, column]
        raise ValueError(
            f"system {scorer.name!r}: the score of item {int(item)} for user row {block.rows[position]} is NaN, "
            "so there is no rank. Check the model's vectors (training may have diverged)"
        )
    target = scores.gather(1, torch.as_tensor(block.target_column, device=scores.device)[:, None])
    higher = (scores > target).sum(dim=1)
    equal = (scores == target).sum(dim=1) - 1
    # What does not count is taken off by its index: no users x items mask is built.
    off_rows = torch.as_tensor(block.off_rows, device=scores.device)
    off = scores[off_rows, torch.as_tensor(block.off_columns, device=scores.device)]
    higher.index_add_(0, off_rows, (off > target[off_rows, 0]).long(), alpha=-1)
    equal.index_add_(0, off_rows, (off == target[off_rows, 0]).long(), alpha=-1)
    counted = scores.shape[1] - np.bincount(block.off_rows, minlength=len(block.rows))
    return higher.cpu().numpy(), equal.cpu().numpy(), counted


def _check(histories: Histories, targets: np.ndarray, rows: np.ndarray, n_items: int) -> None:
    if len(histories) != len(targets):
        raise ValueError(f"{len(histories)} histories but {len(targets)} targets: one of each for every user row")
    outside = rows[(rows < 0) | (rows >= len(targets))]
    if len(outside):
        wrong = outside[0]
        raise ValueError(f"user row {wrong} is outside the split of {len(targets)} users")
    wrong_targets = np.flatnonzero((targets < 0) | (targets >= n_items))
    if len(wrong_targets):
        row = wrong_targets[0]
        raise ValueError(f"user row {row}: target {targets[row]} is not an item of the catalogue (0 .. {n_items - 1})")
    wrong_events = np.flatnonzero((histories.values < 0) | (histories.values >= n_items))
    if len(wrong_events):
        event = wrong_events[0]
        row = int(np.searchsorted(histories.offsets, event, side="right")) - 1
        raise ValueError(
            f"user row {row}: history holds item {histories.values[event]}, not an item of the catalogue "
            f"(0 .. {n_items - 1})"
        )
