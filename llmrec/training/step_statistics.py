"""What the log says of the steps besides their loss: fill rate, speed, negatives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class StepStatistics:
    """Sums over the steps since the last log. They stay on the device until then: no step waits for them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what came before."""
        self._sums: list[Tensor] = []
        self._slots = self._examples = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time since the last log; without effect once a step was counted."""
        if not self._sums:
            self._start = time.perf_counter()

    def add(self, arguments: Mapping[str, Any]) -> None:
        """Count the arguments of one forward pass of the model."""
        if "texts" in arguments:
            tokens = sum((chunk.segment_ids != 0).sum() for chunk in arguments["texts"])
            self._slots += sum(chunk.input_ids.numel() for chunk in arguments["texts"])
        else:
            masks = [arguments["attention_mask"], arguments["item_attention_mask"]]
            tokens = sum(mask.sum() for mask in masks)
            self._slots += sum(mask.numel() for mask in masks)
        positive_index = arguments["positive_index"]
        self._examples += len(positive_index)
        # The target counts whatever the mask says of it.
        counted = arguments["candidate_mask"].scatter(1, positive_index[:, None], True).sum() - len(positive_index)
        if arguments.get("bank_mask") is not None:
            counted = counted + arguments["bank_mask"].sum()
        new = torch.stack([tokens, counted])
        self._sums = [self._sums[0] + new] if self._sums else [new]

    def summary(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """What is to be logged; empty without steps. All starts anew.

        Args:
            add_up: sums a tensor over all processes.

        Returns:
            `fill_rate`: share of the slots (rows * length) that hold a token, of all processes together;
            `tokens_per_second`: tokens read by all processes together over the time since the last log, evaluations
            and checkpoints left out; a second reading by gradient caching or activation checkpointing does not count;
            `negatives`: candidates that count besides the target, mean over the examples.
        """
        if not self._sums:
            return {}
        own = torch.tensor([self._slots, self._examples], device=self._sums[0].device)
        tokens, counted, slots, examples = add_up(torch.cat([self._sums[0], own])).tolist()
        seconds = time.perf_counter() - self._start
        self.restart()
        return {
            "fill_rate": round(tokens / slots, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "negatives": round(counted / examples, 2),
        }
