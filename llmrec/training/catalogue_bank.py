"""Negatives from the whole catalogue: a matrix of its vectors, computed now and then, without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from llmrec.retrieval.encoding import encode_titles
from llmrec.training.candidates import in_batch_mask
from llmrec.training.processes import gather_shares, share_of
from llmrec.training.titles import TitleClasses

# Tells the draws apart from those of other parts with the same seed.
_STREAM = 3


class CatalogueBank:
    """Vectors of every title of the catalogue, some or all of which join the candidates of a batch.

    The matrix is computed with the weights of the moment, in evaluation mode, at the first step and then after every
    `refresh_steps` optimizer steps; in between it grows stale, and gradients never reach it: they reach the histories
    that are contrasted with it. All processes hold the same matrix and draw the same negatives.

    With the logQ correction (Yi et al., RecSys 2019) the logit of item j is lowered by the log of the chance π(j) to be
    among the candidates, so that the softmax over them estimates the one over the catalogue. An item is there if it is
    drawn from the bank, with the chance b = drawn / pool for each, or if it is in the batch. There it is expected q(j)
    times; the draws of a batch being independent, their number is about Poisson, and so

        π(j) = 1 - (1 - b) · exp(-q(j)).

    An item in both counts once. With the whole catalogue b = 1, hence π = 1: a full softmax needs no correction.

    Args:
        processor: of the model.
        title_tokens: token ids of each item's title.
        classes: items grouped by title.
        domain_codes: (items,) where an example's negatives come from its target's domain; None where from everywhere.
        negatives: titles drawn for each step, uniformly and without replacement; -1 for all.
        refresh_steps: optimizer steps after which the matrix is computed anew.
        seed: of the draws.
        expected_counts: (items,) q by representative, of all batches that a step's candidates come from; None without
            the correction.
        batch_tokens, autocast_dtype: as for `encode_titles`.
    """

    def __init__(
        self,
        processor: Any,
        title_tokens: Sequence[Sequence[int]],
        classes: TitleClasses,
        domain_codes: np.ndarray | None,
        negatives: int,
        refresh_steps: int,
        seed: int = 0,
        expected_counts: np.ndarray | None = None,
        batch_tokens: int | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.processor = processor
        self.title_tokens = title_tokens
        self.refresh_steps = refresh_steps
        self.seed = seed
        self.batch_tokens = batch_tokens
        self.autocast_dtype = autocast_dtype
        # Texts are encoded once, also where several domains sell a thing of that name.
        self.titles = np.unique(classes.text)
        # What counts as one candidate: a title of a domain, or a title where domains do not matter.
        same = classes.text if domain_codes is None else classes.representative
        self.pool = np.unique(same)
        self.drawn = len(self.pool) if negatives == -1 else min(negatives, len(self.pool))
        tables = {"pool": self.pool, "rows": np.searchsorted(self.titles, classes.text[self.pool])}
        tables |= {"text": classes.text, "same": same}
        if domain_codes is not None:
            tables["domain"] = np.asarray(domain_codes, dtype=np.int64)
        if expected_counts is not None:
            count = np.bincount(same, weights=expected_counts, minlength=len(same))
            chance = 1 - (1 - self.drawn / len(self.pool)) * np.exp(-count)
            tables["log_chance"] = np.log(chance).astype(np.float32)
        self._tables = {name: torch.from_numpy(table) for name, table in tables.items()}
        self.vectors: Tensor | None = None
        self.refreshed_at = -1

    def is_due(self, step: int) -> bool:
        """Whether the matrix is to be computed anew before the step after `step` optimizer steps."""
        return self.vectors is None or (step % self.refresh_steps == 0 and step != self.refreshed_at)

    def refresh(self, model: Any, step: int, device: torch.device) -> None:
        """Compute the matrix anew. All processes must call it. It leaves the random state alone.

        Args:
            model: the model, not wrapped for several processes.
            step: optimizer steps taken before this one.
            device: where the matrix is kept.
        """
        state = PartialState()
        share = encode_titles(
            model, self.processor, self.title_tokens, rows=self.titles[share_of(len(self.titles), state)],
            batch_tokens=self.batch_tokens, progress=False, autocast_dtype=self.autocast_dtype,
        )  # fmt: skip
        # A clone, because what is made in inference mode may not take part in a graph.
        self._take(gather_shares(share, len(self.titles), state).clone(), step, device)

    def _take(self, vectors: Tensor, step: int, device: torch.device) -> None:
        self.vectors, self.refreshed_at = vectors.to(device), step
        self._tables = {name: table.to(device) for name, table in self._tables.items()}

    def draw(self, step: int) -> np.ndarray:
        """(drawn,) int64 places in the pool, ascending; they depend on the seed and the step only."""
        if self.drawn == len(self.pool):
            return np.arange(len(self.pool))
        rng = np.random.default_rng((self.seed, step, 0, _STREAM))
        return np.sort(rng.choice(len(self.pool), size=self.drawn, replace=False, shuffle=False))

    def candidates(self, step: int, target_ids: Tensor, item_ids: Tensor, excluded: Tensor) -> dict[str, Tensor]:
        """What the bank adds to the arguments of the model.

        Args:
            step: optimizer steps taken before this one.
            target_ids: (B,) representatives.
            item_ids: (M,) representatives of all items that are candidates already, on all ranks; -1 for nothing.
            excluded: (E,) as of `in_batch_mask`.

        Returns:
            `bank` (drawn, D), `bank_mask` (B, drawn) without titles that are among the items, and with the correction
            `bank_log_q` (drawn,) and `item_log_q` (M,), which replaces that of the batch alone.
        """
        if self.vectors is None:
            raise RuntimeError("the bank is empty: call refresh before")
        tables = self._tables
        places = torch.from_numpy(self.draw(step)).to(self.vectors.device)
        ids = tables["pool"][places]
        empty = item_ids < 0
        batch = tables["same"][item_ids.clamp(min=0)]
        mask = in_batch_mask(target_ids, ids, excluded, tables["text"], tables.get("domain"))
        mask &= ~torch.isin(ids, batch.masked_fill(empty, -1))
        added = {"bank": self.vectors[tables["rows"][places]], "bank_mask": mask}
        if "log_chance" in tables:
            added["bank_log_q"] = tables["log_chance"][ids]
            added["item_log_q"] = tables["log_chance"][batch].masked_fill(empty, 0.0)
        return added

    # -- checkpoints ---------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on with the same matrix; the same on all processes, nothing before step 1."""
        if self.vectors is None:
            return {}
        return {"vectors": self.vectors.cpu(), "refreshed_at": torch.tensor(self.refreshed_at)}

    def load_state_tensors(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Take up what `state_tensors` gave.

        Raises:
            ValueError: if it belongs to another catalogue.
        """
        if not tensors:
            return
        if len(tensors["vectors"]) != len(self.titles):
            raise ValueError(
                f"the checkpoint's matrix of the catalogue has {len(tensors['vectors'])} titles, the catalogue "
                f"{len(self.titles)}: it belongs to other data"
            )
        self._take(tensors["vectors"], int(tensors["refreshed_at"]), device)
