"""From the hidden states of a text to one vector."""

import torch
from torch import Tensor


def pool(hidden: Tensor, attention_mask: Tensor, how: str) -> Tensor:
    """Reduce hidden states to one vector a row.

    Args:
        hidden: (batch, length, hidden_size), any float type.
        attention_mask: (batch, length), 1 for real tokens. Padding must be on the right.
        how: `"cls"` (first token), `"last"` (last real token) or `"mean"` (all real tokens).

    Returns:
        (batch, hidden_size) in float32: sums over a history in half precision lose digits.

    Raises:
        ValueError: for another `how`, or a row without a real token.
    """
    lengths = attention_mask.sum(dim=1)
    # On an accelerator this look would wait for the device at every step; the processor refuses empty texts.
    if lengths.device.type == "cpu" and not torch.jit.is_tracing() and bool((lengths == 0).any()):
        row = int((lengths == 0).nonzero()[0])
        raise ValueError(f"Row {row} of the batch has no tokens: a history or title must not be empty.")
    if how == "cls":
        return hidden[:, 0].float()
    if how == "last":
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, lengths.to(hidden.device) - 1].float()
    if how == "mean":
        weights = attention_mask.to(hidden.device).unsqueeze(-1).float()
        return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
    raise ValueError(f"pooling={how!r} is none of 'cls', 'last', 'mean'.")
