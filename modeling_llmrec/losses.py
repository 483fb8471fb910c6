"""Contrastive losses over one matrix of scores.

All three take the logits of B histories against the M unique items of a batch, the row of each
history's target among those items, and a mask of the items that count for it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _checked(logits: Tensor, positive_index: Tensor, candidate_mask: Tensor | None) -> Tensor:
    if candidate_mask is None:
        return torch.ones_like(logits, dtype=torch.bool)
    if candidate_mask.shape != logits.shape:
        raise ValueError(f"candidate_mask has shape {tuple(candidate_mask.shape)}, the scores {tuple(logits.shape)}.")
    # The target always counts for its own history, whatever the mask says of it.
    return candidate_mask.bool().scatter(1, positive_index.unsqueeze(1), True)


def sampled_softmax(logits: Tensor, positive_index: Tensor, candidate_mask: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy over the target and each history's own negatives (LLM-Rec, section 3).

    Args:
        logits: (B, M) scores divided by the temperature.
        positive_index: (B,) column of each target.
        candidate_mask: (B, M), True for a history's target and negatives; `None` for all.

    Returns:
        Mean loss over the batch, a scalar.
    """
    mask = _checked(logits, positive_index, candidate_mask)
    return F.cross_entropy(logits.masked_fill(~mask, float("-inf")), positive_index)


def in_batch_infonce(
    logits: Tensor,
    positive_index: Tensor,
    candidate_mask: Tensor | None = None,
    item_log_q: Tensor | None = None,
) -> Tensor:
    """InfoNCE over the items of the batch (van den Oord et al. 2018), with an optional logQ correction.

    In-batch negatives come up as often as they are bought, which punishes popular items.
    Subtracting the log of the rate at which an item is drawn removes that bias
    (Yi et al., "Sampling-Bias-Corrected Neural Modeling", RecSys 2019).

    Args:
        logits: (B, M); positive_index: (B,); candidate_mask: (B, M), False for items that the user
            has bought or that equal the target.
        item_log_q: (M,) log of each item's expected count in a batch.

    Returns:
        Mean loss over the batch, a scalar.
    """
    if item_log_q is not None:
        logits = logits - item_log_q.to(logits)
    return sampled_softmax(logits, positive_index, candidate_mask)


def binary_cross_entropy(logits: Tensor, positive_index: Tensor, candidate_mask: Tensor | None = None) -> Tensor:
    """-log σ(s⁺) - Σ log(1 - σ(s⁻)) over each history's own negatives, averaged over the batch.

    Args and result as in `sampled_softmax`.
    """
    mask = _checked(logits, positive_index, candidate_mask)
    is_positive = torch.zeros_like(mask).scatter(1, positive_index.unsqueeze(1), True)
    per_pair = F.binary_cross_entropy_with_logits(logits, is_positive.to(logits.dtype), reduction="none")
    return (per_pair * mask).sum() / logits.shape[0]
