"""From a collated batch to the arguments of the model: candidates of other ranks and of the catalogue join in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.catalogue_bank import CatalogueBank
from llmrec.training.gathering import exchange, gather_items, gathered_mask
from llmrec.training.titles import TitleClasses

# What the collator adds for the masks over other items; the model does not take it.
IDS = ("item_ids", "target_ids", "excluded")


def gathers(arguments: LLMRecTrainingArguments, loss: str) -> bool:
    """Whether a step contrasts with the items of all its processes."""
    return loss == "in_batch" and arguments.gather_negatives and arguments.world_size > 1


class StepInputs(NamedTuple):
    """What one forward and backward pass needs."""

    arguments: dict[str, Any]
    """Of the model's forward."""
    passes: int
    """Chunks of packed texts on the rank that has most of them."""


class InputBuilder:
    """Completes the batches of the collator.

    Args:
        text: (items,) text class of each item.
        domain_codes: (items,) where an example's negatives come from its target's domain; None where from everywhere.
        gather: contrast with the items of all ranks (in-batch loss only).
        chunked: whether batches may come in several chunks (on all ranks alike).
        bank: vectors of the catalogue; None without.
    """

    def __init__(
        self,
        text: np.ndarray,
        domain_codes: np.ndarray | None,
        gather: bool = False,
        chunked: bool = False,
        bank: CatalogueBank | None = None,
    ) -> None:
        self._text = torch.from_numpy(text)
        self._domain = None if domain_codes is None else torch.from_numpy(np.asarray(domain_codes, dtype=np.int64))
        self.gather = gather
        self.chunked = chunked
        self.bank = bank

    @classmethod
    def from_arguments(
        cls,
        arguments: LLMRecTrainingArguments,
        loss: str,
        processor: Any,
        title_tokens: Sequence[Sequence[int]],
        classes: TitleClasses,
        domain_codes: np.ndarray,
        expected_counts: np.ndarray | None = None,
    ) -> InputBuilder:
        """As the arguments of a training say.

        Args:
            arguments: `gather_negatives`, `catalogue_negatives` and so on.
            loss: the model's `contrastive_loss`.
            processor, title_tokens, classes: as for `CatalogueBank`.
            domain_codes: (items,) domain of each item.
            expected_counts: (items,) of `expected_counts`, over all processes if their items are gathered.
        """
        domains = domain_codes if arguments.negative_domain == "target" else None
        bank = None
        if arguments.catalogue_negatives:
            bank = CatalogueBank(
                processor, title_tokens, classes, domains, arguments.catalogue_negatives,
                arguments.catalogue_refresh_steps, arguments.seed, expected_counts, arguments.encode_batch_tokens,
                torch.bfloat16 if arguments.bf16 else None,
            )  # fmt: skip
        gather = gathers(arguments, loss)
        return cls(classes.text, domains, gather, arguments.max_pass_tokens is not None, bank)

    def __call__(self, batch: Mapping[str, Any], step: int) -> StepInputs:
        """All ranks must call it for every batch.

        Args:
            batch: from the collator, on the device.
            step: optimizer steps taken before; a bank that is due has been refreshed.
        """
        arguments = {name: value for name, value in batch.items() if name not in IDS}
        chunks = passes = len(batch["texts"]) if "texts" in batch else 1
        state = PartialState()
        device = batch["positive_index"].device
        if state.num_processes > 1 and (self.gather or self.chunked):
            sizes = exchange([len(batch["item_ids"]) if self.gather else 0, chunks], device)
            passes = max(number for _, number in sizes)
        if not self.gather and self.bank is None:
            return StepInputs(arguments, passes)

        item_ids, target_ids, excluded = (batch[name] for name in IDS)
        if self.gather:
            self._text = self._text.to(device)
            self._domain = None if self._domain is None else self._domain.to(device)
            items = gather_items(target_ids, item_ids, batch.get("item_log_q"), [size for size, _ in sizes])
            arguments["candidate_mask"] = gathered_mask(items, target_ids, excluded, self._text, self._domain)
            arguments["positive_index"] = items.positive_index
            arguments["items_per_rank"] = items.per_rank
            if items.log_q is not None:
                arguments["item_log_q"] = items.log_q
            item_ids = items.ids
        if self.bank is not None:
            arguments |= self.bank.candidates(step, target_ids, item_ids, excluded)
        return StepInputs(arguments, passes)
