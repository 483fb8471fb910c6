"""Memory of a training step by parts, and the bytes that an epoch must move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmrec.planning.tokens import TokenCounts
from llmrec.planning.trace import Trace

FLOAT32 = 4
# 4 bits a weight, one byte for each block of 64, four bytes for each 256 of those (QLoRA, section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Part of a GPU's memory that tensors can fill: the context, kernels and gaps between tensors take the rest.
USABLE = 0.9


@dataclass(frozen=True)
class MemorySettings:
    """What besides the model and its tokens decides the memory.

    Attributes:
        optim: transformers' name of the optimizer.
        checkpointing: whether layers are computed anew in the backward pass.
        nf4: whether linear layers of the backbone are in 4 bits.
        embedding_dim: size of the vectors that are compared.
        bank_rows: vectors of the catalogue bank.
        bank_columns: those that join each batch.
        examples: of a batch.
    """

    optim: str
    checkpointing: bool
    nf4: bool
    embedding_dim: int
    bank_rows: float
    bank_columns: float
    examples: int


def state_bytes(optim: str, parameter: torch.Tensor) -> float:
    """Bytes that an optimizer keeps for a parameter.

    AdamW keeps two float32 moments. In 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR
    2022) each takes a byte and four for a block of 256, and small parameters stay in float32. Adafactor keeps a row
    and a column. SGD keeps nothing without momentum, Lion and RMSprop one moment.
    """
    size = parameter.numel()
    if "adafactor" in optim:
        return FLOAT32 * float(sum(parameter.shape[-2:]) if parameter.dim() > 1 else size)
    if optim == "sgd":
        return 0.0
    moments = 1 if any(word in optim for word in ("lion", "rmsprop", "adagrad")) else 3 if "ademamix" in optim else 2
    if "8bit" in optim and size >= 4096:
        return moments * size * (1 + 4 / 256)
    return moments * size * FLOAT32


def weight_bytes(model: nn.Module, nf4: bool = False) -> float:
    """Bytes of all weights; with `nf4`, of a backbone whose linear layers are in 4 bits and the rest in float32."""
    if not nf4:
        return float(sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()))
    packed = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and "lora_" not in name
    }
    return sum(p.numel() * (NF4_BYTES if id(p) in packed else FLOAT32) for p in model.parameters())


def step_memory(model: Any, trace: Trace, tokens: TokenCounts, settings: MemorySettings) -> dict[str, float]:
    """Bytes of a training step on each device by parts.

    - `activations`: what autograd keeps of the largest pass: slots times the bytes that a token leaves in all layers.
      With checkpointing each layer keeps its input only, and one layer at a time all of its own.
    - `weight_copies`: weights cast to the type of the computation, kept with them.
    - `scores`: of the largest batch, in float32: scores, logits, probabilities and their gradient.

    Args:
        model: from `planned_model`.
        trace: costs of the backbone's layers.
        tokens: of the epoch.
        settings: everything else.

    Returns:
        Part to bytes: `weights`, `weight_copies`, `gradients`, `optimizer`, `activations`, `catalogue_bank`, `scores`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    activations = tokens.pass_slots * trace.saved_per_token
    copies = trace.saved_weights
    if settings.checkpointing and trace.blocks and trace.saved_per_token:
        in_blocks = trace.saved_per_token - trace.saved_outside
        per_token = trace.blocks * trace.block_input + trace.saved_outside + in_blocks / trace.blocks
        activations, copies = tokens.pass_slots * per_token, copies / trace.blocks
    columns = tokens.batch_scores + settings.bank_columns * settings.examples
    return {
        "weights": weight_bytes(model, settings.nf4),
        "weight_copies": copies,
        "gradients": float(sum(parameter.numel() * parameter.element_size() for parameter in trained)),
        "optimizer": sum(state_bytes(settings.optim, parameter) for parameter in trained),
        "activations": activations,
        "catalogue_bank": settings.bank_rows * settings.embedding_dim * FLOAT32,
        "scores": 4 * columns * FLOAT32,
    }


def moved_bytes(
    memory: dict[str, float], trace: Trace, tokens: TokenCounts, passes: float, steps: float
) -> dict[str, float]:
    """Least bytes that an epoch moves between memory and processor, by parts.

    Weights are read forward and backward in every pass; gradients are written and read, and the optimizer reads and
    writes its states and the trained weights, once a step; what is kept of every token is written once and read once.

    Args:
        memory: from `step_memory`.
        trace, tokens: as there.
        passes: forward and backward passes of an epoch.
        steps: optimizer steps of an epoch.
    """
    updated = 2 * memory["optimizer"] + 4 * memory["gradients"]
    return {
        "weights": 2 * memory["weights"] * passes,
        "optimizer": updated * steps,
        "activations": 2 * trace.saved_per_token * tokens.slots,
    }
