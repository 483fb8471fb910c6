"""Ranking a sample of validation users while training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from llmrec.evaluation.histories import Histories
from llmrec.evaluation.metrics import calc_metric
from llmrec.evaluation.protocols import Protocol
from llmrec.evaluation.ranker import SmallDomainWarning, rank
from llmrec.retrieval.encoding import encode_histories, encode_titles
from llmrec.retrieval.scorers import EmbeddingScorer
from llmrec.training.processes import gather_shares, share_of

METRICS = ("ndcg@10", "recall@10", "recall@1", "mrr@10")


@dataclass(frozen=True)
class Embeddings:
    """Vectors of the whole catalogue and of some users of a split."""

    users: torch.Tensor
    """(rows, D) float32, in the order of the rows asked for."""
    items: torch.Tensor
    """(items, D) float32."""


def embed(
    model: Any,
    processor: Any,
    title_tokens: Sequence[Sequence[int]],
    histories: Histories,
    rows: np.ndarray,
    *,
    batch_tokens: int | None = None,
    autocast_dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Embeddings:
    """Encode the catalogue and the histories of `rows`, shared out over the processes of a distributed run.

    Every process returns all vectors. It must be called by all of them.
    """
    state = PartialState()
    options: dict[str, Any] = {
        "batch_tokens": batch_tokens,
        "autocast_dtype": autocast_dtype,
        "progress": progress and state.is_main_process,
    }
    mine = share_of(len(title_tokens), state)
    items = encode_titles(model, processor, title_tokens, rows=mine, **options)
    own_rows = rows[share_of(len(rows), state)]
    users = encode_histories(model, processor, [histories[row] for row in own_rows], title_tokens, **options)
    return Embeddings(
        users=gather_shares(users, len(rows), state), items=gather_shares(items, len(title_tokens), state)
    )


class RankingValidation:
    """The evaluation during training: a fixed sample of users, one protocol, four metrics.

    Args:
        processor: of the model.
        title_tokens: token ids of each item's title.
        histories: of all users of the validation split.
        targets: (users,) their targets.
        domain_codes: (items,) domain of each item.
        domain_names: names of the domains, for warnings.
        protocol: what a target is ranked against.
        rows: (sample,) users to rank.
        batch_tokens: tokens of an encoding batch.
        autocast_dtype: number format of the backbone while it encodes.
    """

    def __init__(
        self,
        processor: Any,
        title_tokens: Sequence[Sequence[int]],
        histories: Histories,
        targets: np.ndarray,
        domain_codes: np.ndarray,
        domain_names: list[str],
        protocol: Protocol,
        rows: np.ndarray,
        batch_tokens: int | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.processor = processor
        self.title_tokens = title_tokens
        self.histories = histories
        self.targets = targets
        self.domain_codes = domain_codes
        self.domain_names = domain_names
        self.protocol = protocol
        self.rows = rows
        self.batch_tokens = batch_tokens
        self.autocast_dtype = autocast_dtype
        self._warned_of_small_domains = False

    def __call__(self, model: Any) -> dict[str, float]:
        """Means over the sample, by metric name; the same on every process, all of which must call it."""
        vectors = embed(
            model, self.processor, self.title_tokens, self.histories, self.rows,
            batch_tokens=self.batch_tokens, autocast_dtype=self.autocast_dtype,
        )  # fmt: skip
        state = PartialState()
        mine = share_of(len(self.rows), state)
        ranks = torch.empty(0, 1, dtype=torch.float64)
        if len(mine):
            scorer = EmbeddingScorer("model", vectors.users, vectors.items, rows=self.rows)
            with warnings.catch_warnings():
                if self._warned_of_small_domains:
                    # The sample is the same at every evaluation, and so is what there is to say about it.
                    warnings.simplefilter("ignore", SmallDomainWarning)
                result = rank(
                    scorer,
                    histories=self.histories,
                    targets=self.targets,
                    domain_codes=self.domain_codes,
                    protocol=self.protocol,
                    rows=self.rows[mine],
                    progress=False,
                    domain_names=self.domain_names,
                )
            self._warned_of_small_domains = True
            ranks = torch.from_numpy(result.ranks)[:, None]
        everyone = gather_shares(ranks, len(self.rows), state)[:, 0].numpy()
        return {name: float(calc_metric(name, everyone).mean()) for name in METRICS}
