"""What several processes of one run do together."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather

Result = TypeVar("Result")


class LauncherError(ValueError):
    """The processes that were asked for have not started."""


class OtherProcessError(RuntimeError):
    """The main process has failed; its own error says why."""


def on_main(state: PartialState, action: Callable[[], Result]) -> Result:
    """Call `action` on the main process alone and hand its (small) result to all.

    Raises:
        OtherProcessError: on the others, if it failed on the main one, which raises the error itself. Without this
            the others would wait for it until the time-out.
    """
    if state.num_processes == 1:
        return action()
    outcome: list = [None, None]
    error: Exception | None = None
    if state.is_main_process:
        try:
            outcome[0] = action()
        except Exception as caught:
            error, outcome[1] = caught, f"{type(caught).__name__}: {caught}"
    broadcast_object_list(outcome)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise OtherProcessError(f"the main process failed with {outcome[1]}")
    return outcome[0]


def check_world_size(state: PartialState) -> None:
    """Refuse to run as several independent trainings of one process each.

    Raises:
        LauncherError: if fewer processes take part than the launcher has started.
    """
    wanted = os.environ.get("WORLD_SIZE")
    if wanted is None and state.num_processes == 1 and "MASTER_ADDR" in os.environ:
        # `accelerate launch --cpu --num_processes 2` starts one process, and leaves only this trace of the wish.
        wanted = "several"
    if wanted is not None and wanted != str(state.num_processes):
        raise LauncherError(
            f"the launcher asked for {wanted} processes, but {state.num_processes} took part. On a machine without "
            "GPUs start with `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N train.py` or "
            "`torchrun --nproc_per_node N train.py`; for a single process unset MASTER_ADDR"
        )


def share_of(total: int, state: PartialState) -> np.ndarray:
    """(share,) int64 contiguous block of 0 … total-1 for this process; the last ones may get less, or nothing."""
    size = -(-total // state.num_processes)
    start = min(total, size * state.process_index)
    return np.arange(start, min(total, start + size))


def gather_shares(share: torch.Tensor, total: int, state: PartialState) -> torch.Tensor:
    """Put what the processes made of their `share_of(total)` together: (total, D) on the CPU of each of them."""
    if state.num_processes == 1:
        return share
    size = -(-total // state.num_processes)
    padded = share.new_zeros((size, share.shape[1]))
    padded[: len(share)] = share
    return gather(padded.to(state.device)).cpu()[:total]
