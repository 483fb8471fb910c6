"""What stands after pooling: projection, normalisation, and the scale of the scores in the loss."""

import math

import torch
from torch import Tensor, nn

# CLIP (Radford et al. 2021, section 2.4) bounds the learned scale by 100 to keep training stable.
MAX_SCALE = 100.0


class ContrastiveHead(nn.Module):
    """Optional linear projection, then optional scaling to length 1. Works and returns in float32."""

    def __init__(self, hidden_size: int, projection_dim: int | None, normalize: bool) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, projection_dim, bias=False) if projection_dim else None
        self.normalize = normalize

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, hidden_size) → (batch, embedding_dim), float32."""
        if self.projection is not None:
            pooled = nn.functional.linear(pooled.float(), self.projection.weight.float())
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


class LogitScale(nn.Module):
    """Divides scores by the temperature. A module, so that adapters can save a learned one."""

    def __init__(self, temperature: float, learn: bool) -> None:
        super().__init__()
        self.temperature = temperature
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature))) if learn else None

    def forward(self, scores: Tensor) -> Tensor:
        if self.log_scale is None:
            return scores / self.temperature
        return scores * self.log_scale.float().exp().clamp(max=MAX_SCALE)
