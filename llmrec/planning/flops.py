"""Floating-point operations of an epoch by parts. A multiplication and an addition count as two."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.planning.tokens import TokenCounts
from llmrec.planning.trace import LinearCost, Trace

# Multiplications, additions, roots and divisions of AdamW for each trained parameter (Loshchilov and Hutter, "Decoupled
# Weight Decay Regularization", ICLR 2019, algorithm 2).
ADAMW_FLOPS = 14


@dataclass(frozen=True)
class StepSettings:
    """What besides tokens and layers decides the cost.

    Attributes:
        embedding_dim: size of the vectors that are compared.
        head_weights: weights of the projection; 0 without.
        trained: parameters that are trained.
        checkpointing: whether layers are computed anew in the backward pass.
        steps: optimizer steps of an epoch, of one process.
        fused_attention: whether the kernel computes scores anew in the backward pass instead of keeping them.
        bank_tokens, bank_pairs: slots and pairs of the catalogue's titles, read anew `bank_refreshes` times an epoch.
        bank_columns: vectors of it that join each batch.
    """

    embedding_dim: int
    head_weights: int
    trained: int
    steps: float
    checkpointing: bool = False
    fused_attention: bool = True
    bank_tokens: float = 0
    bank_pairs: float = 0
    bank_refreshes: float = 0
    bank_columns: float = 0


def linear_flops(layers: tuple[LinearCost, ...], tokens: float, vectors: float) -> tuple[float, float, float]:
    """FLOPs of linear layers: forward, gradients of weights, gradients of inputs.

    A product of a vector with w weights takes 2·w. The backward pass takes as many for each gradient that is needed:
    frozen weights under adapters need that of their input only, and none in front of the first adapter.

    Args:
        layers: of the backbone.
        tokens: that go through it.
        vectors: that are read; some layers see these alone.
    """
    forward = weights = inputs = 0.0
    for layer in layers:
        cost = 2.0 * layer.weights * (vectors if layer.of_vectors else tokens)
        forward += cost
        weights += cost * layer.weight_gradient
        inputs += cost * layer.input_gradient
    return forward, weights, inputs


def attention_flops(trace: Trace, fused: bool = True) -> tuple[float, float]:
    """FLOPs of attention for each pair of tokens: forward, backward.

    Scores and weighted sums take 2·width each: 4·Σ l²·d over texts of length l and layers of width d. The backward
    pass has twice as many products, and a fused kernel computes the scores anew (Dao et al., "FlashAttention", NeurIPS
    2022, algorithm 4): 2.5 times.
    """
    forward = sum(4.0 * layer.width for layer in trace.attention)
    backward = sum(4.0 * layer.width for layer in trace.attention if layer.gradient) * (2.5 if fused else 2.0)
    return forward, backward


def epoch_flops(trace: Trace, tokens: TokenCounts, settings: StepSettings) -> dict[str, float]:
    """FLOPs of an epoch by parts.

    Args:
        trace: costs of the backbone's layers.
        tokens: of the epoch.
        settings: everything else.

    Returns:
        Part to FLOPs: `forward_linear`, `forward_attention`, `backward_weights`, `backward_inputs`,
        `backward_attention`, `recompute` (activation checkpointing), `gradient_caching`, `head_and_scores`,
        `catalogue_bank`, `optimizer`.
    """
    forward, weights, inputs = linear_flops(trace.linear, tokens.slots, tokens.vectors)
    cached, *_ = linear_flops(trace.linear, tokens.cached_slots, tokens.cached_vectors)
    of_bank, *_ = linear_flops(trace.linear, settings.bank_tokens, settings.bank_tokens)
    seen, seen_back = attention_flops(trace, settings.fused_attention)
    columns = tokens.scores + settings.bank_columns * tokens.examples
    vectors = tokens.examples + tokens.titles
    trains_backbone = bool(weights or inputs)
    # Scores: one product forward and two backward, but none towards the bank's vectors.
    score = 2.0 * settings.embedding_dim * (3 * columns - settings.bank_columns * tokens.examples)
    head = 2.0 * settings.head_weights * vectors * (3 if trains_backbone else 2)
    return {
        "forward_linear": forward,
        "forward_attention": seen * tokens.pairs,
        "backward_weights": weights,
        "backward_inputs": inputs,
        "backward_attention": seen_back * tokens.pairs,
        "recompute": (forward + seen * tokens.pairs) * (settings.checkpointing and trains_backbone),
        "gradient_caching": cached + seen * tokens.cached_pairs,
        "head_and_scores": head + score,
        "catalogue_bank": (of_bank + seen * settings.bank_pairs) * settings.bank_refreshes,
        "optimizer": ADAMW_FLOPS * settings.trained * settings.steps,
    }


def least_flops(trace: Trace, tokens: TokenCounts, settings: StepSettings) -> float:
    """FLOPs that the mathematics asks for: no padding, only pairs of tokens that see each other, nothing twice."""
    linear = sum(linear_flops(trace.linear, tokens.tokens, tokens.vectors))
    seen, seen_back = attention_flops(trace, fused=False)
    parts = epoch_flops(trace, tokens, settings)
    return linear + (seen + seen_back) * tokens.needed_pairs + parts["head_and_scores"] + parts["optimizer"]
