"""Vectors of all ranks, with exact gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllGather(torch.autograd.Function):
    """Concatenates equal shapes over the ranks; the gradient of a share is the sum of what all ranks ask of it."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        ctx.rows = share.shape[0]
        parts = [torch.empty_like(share) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather_rows(vectors: Tensor, rows: int) -> Tensor:
    """The vectors of all ranks, in the order of the ranks.

    With a loss that is each rank's mean, and gradients averaged over the ranks, as DDP does, the gradients are those of
    one process with all examples: every rank's loss asks something of every rank's vectors, and gets it.

    Args:
        vectors: (at most rows, D) of this rank.
        rows: the same number on every rank; shorter shares are padded with zeros.

    Returns:
        (ranks * rows, D).
    """
    padded = torch.nn.functional.pad(vectors, (0, 0, 0, rows - len(vectors)))
    return _AllGather.apply(padded) if dist.is_available() and dist.is_initialized() else padded
