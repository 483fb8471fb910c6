"""From the hidden states of a text to one vector."""

import torch
from torch import Tensor

from .packing import PackedTexts


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
    # On an accelerator this look would wait for the device at every step, and an exported graph has no place for it;
    # the processor refuses empty texts.
    looks = lengths.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_exporting()
    if looks and bool((lengths == 0).any()):
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


def pool_packed(hidden: Tensor, packed: PackedTexts, how: str) -> Tensor:
    """Reduce the hidden states of packed texts to one vector for each place that is read.

    Args:
        hidden: (rows, length, hidden_size), any float type.
        packed: the texts; `how` as in `pool`.

    Returns:
        (vectors, hidden_size) in float32.

    Raises:
        ValueError: for another `how`, or one that cannot be told for texts that share their prefixes.
    """
    flat = hidden.flatten(0, 1)
    if how == "last":
        return flat[packed.ends - 1].float()
    if packed.query_ids is not None:
        raise ValueError(f"pooling={how!r} cannot be read off shared prefixes: only 'last' can.")
    if how == "cls":
        return flat[packed.starts].float()
    if how == "mean":
        lengths = packed.ends - packed.starts
        vectors = torch.arange(len(lengths), device=flat.device)
        vectors = torch.repeat_interleave(vectors, lengths, output_size=packed.read_tokens)
        within = torch.arange(packed.read_tokens, device=flat.device) - (lengths.cumsum(0) - lengths)[vectors]
        sums = torch.zeros((len(lengths), flat.shape[1]), dtype=torch.float32, device=flat.device)
        sums = sums.index_add(0, vectors, flat[packed.starts[vectors] + within].float())
        return sums / lengths.unsqueeze(1)
    raise ValueError(f"pooling={how!r} is none of 'cls', 'last', 'mean'.")
