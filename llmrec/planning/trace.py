"""One pass of the model over made-up tokens, without numbers: which products it takes, and what it keeps.

The pass runs on tensors that have shape and type but no memory, so a model of any size can be followed, and every
architecture tells by itself how wide its layers are and which of them need gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from llmrec.training.layout import Text, Texts, pack
from modeling_llmrec.last_layer import find_last_layer, only_where_read
from modeling_llmrec.presets import is_causal
from modeling_llmrec.reading import read_packed

ATTENTION = "llmrec_plan"
FLOAT32 = 4
# Token counts of the passes. What is kept of them is c0 + c1·tokens: c0 is copies of weights in another type.
LENGTHS = (32, 96)
# With a bias for every pair of tokens (T5) also + c2·tokens², which depends on how texts are packed and is left out.
BIASED_LENGTHS = (32, 64, 96)


class LinearCost(NamedTuple):
    """A linear layer: a product of `weights` numbers with each token, or, at the end, with each token that is read."""

    weights: int
    of_vectors: bool
    weight_gradient: bool
    input_gradient: bool
    is_adapter: bool


class AttentionCost(NamedTuple):
    """An attention layer: `width` is heads times size of a head."""

    width: int
    gradient: bool


@dataclass(frozen=True)
class Trace:
    """What a pass through the backbone costs.

    Attributes:
        linear: linear layers, adapters included.
        attention: attention layers.
        saved_per_token: bytes that autograd keeps for the backward pass, for each token; attention keeps its queries,
            keys, values and output, as fused kernels do.
        saved_outside: the part of it that is kept outside the layers that can be computed anew.
        saved_weights: bytes of copies of weights in the type of the computation, kept with them.
        blocks: layers that can be computed anew in the backward pass.
        block_input: bytes for each token that each of them keeps then.
        causal: whether tokens see only those before them.
    """

    linear: tuple[LinearCost, ...]
    attention: tuple[AttentionCost, ...]
    saved_per_token: float
    saved_outside: float
    saved_weights: float
    blocks: int
    block_input: int
    causal: bool


def trace(model: Any, bf16: bool, *, gpu: bool = False, packed: bool = True, checkpointing: bool = False) -> Trace:
    """Follow a pass through the backbone.

    Args:
        model: from `planned_model`. Its parameters are replaced by such that can be computed with; it is of no use
            afterwards but for counting them.
        bf16: whether the run computes in bf16 (autocast).
        gpu: whether on a GPU, whose dropout and normalisation keep other things than those of a processor.
        packed: whether texts are packed; the last layer of a decoder then computes only what is read.
        checkpointing: whether layers are computed anew in the backward pass. The pass that is followed keeps
            everything all the same; but adapters then ask for gradients of the embeddings.

    Raises:
        ValueError: the backbone cannot be followed; with what it said.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal = is_causal(base.config.text_config) and not base.config.encoder_only
    biased = hasattr(base.config.text_config, "relative_attention_num_buckets")
    lengths = BIASED_LENGTHS if biased else LENGTHS
    try:
        with _as_on_gpu(bf16) if gpu else nullcontext():
            narrow = packed and causal and not checkpointing
            passes = _follow(model, base, lengths, causal, bf16, narrow, checkpointing and base is not model)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"the cost of this backbone ({base.config.text_config.model_type}) cannot be planned: a pass without "
            f"numbers through it failed with {type(error).__name__}: {error}"
        ) from error
    *_, per_token, constant = np.polyfit(lengths, [float(one.saved) for one in passes], len(lengths) - 1)
    *_, outside, _ = np.polyfit(lengths, [float(one.outside) for one in passes], len(lengths) - 1)
    last = passes[-1]
    blocks = [module for module in base.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    # A mean over tokens keeps the last hidden states in float32; a single token is copied out of them.
    pooled = last.hidden_elements * FLOAT32 if base.config.pooling == "mean" and last.keeps else 0
    return Trace(
        linear=tuple(last.linear),
        attention=tuple(last.attention),
        saved_per_token=max(0.0, float(per_token)) + pooled,
        saved_outside=max(0.0, float(outside)) + pooled,
        saved_weights=max(0.0, float(constant)),
        blocks=len(blocks),
        block_input=last.hidden_bytes,
        causal=causal,
    )


@dataclass
class _Pass:
    linear: list[LinearCost] = dataclasses.field(default_factory=list)
    attention: list[AttentionCost] = dataclasses.field(default_factory=list)
    saved: int = 0
    outside: int = 0
    hidden_bytes: int = 0
    hidden_elements: int = 0
    keeps: bool = False


class _KeepLikeFlash(torch.autograd.Function):
    """Keeps for the backward pass what a fused attention kernel keeps, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise RuntimeError("a planned pass has no backward pass")


_calls: list[AttentionCost] = []


def _planned_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    needs = query.requires_grad or key.requires_grad or value.requires_grad
    _calls.append(AttentionCost(query.shape[1] * query.shape[3], needs))
    return _KeepLikeFlash.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _planned_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def _as_on_gpu(bf16: bool) -> Iterator[None]:
    """Dropout keeps a byte for each number, and under autocast layer normalisation works in float32."""
    namespace: Any = functional
    dropout, layer_norm = functional.dropout, functional.layer_norm

    def gpu_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(input, p, True)[0] if training and 0 < p < 1 else input

    def gpu_layer_norm(input: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        wide = [one if one is None else one.float() for one in (weight, bias)]
        return layer_norm(input.float(), shape, wide[0], wide[1], eps)

    namespace.dropout = gpu_dropout
    if bf16:
        namespace.layer_norm = gpu_layer_norm
    try:
        yield
    finally:
        namespace.dropout, namespace.layer_norm = dropout, layer_norm


@contextmanager
def _narrowed(base: Any, wanted: bool) -> Iterator[None]:
    """The last layer as `LLMRecModel.get_packed_embeddings` reads it."""
    last = find_last_layer(base.backbone) if wanted and base.config.pooling == "last" else None
    with nullcontext() if last is None else only_where_read(last, torch.zeros(1, dtype=torch.long)):
        yield


def _follow(
    model: nn.Module, base: Any, lengths: Sequence[int], causal: bool, bf16: bool, narrow: bool, ask: bool
) -> list[_Pass]:
    backbone = base.backbone
    backbone.set_attn_implementation(ATTENTION)
    model.train()
    mode = FakeTensorMode()
    passes = []
    with mode, _narrowed(base, narrow):
        _give_shapes(model)
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        for length in lengths:
            packed = pack(Texts.of([Text(list(range(length)))]), "mask", length)
            packed = packed._map(mode.from_tensor)
            passes.append(_one_pass(backbone, packed, causal, bf16, ask, parameters))
    return passes


def _ask_for_gradients(module: nn.Module, inputs: Any, output: Tensor) -> None:
    """As PEFT does where layers are checkpointed."""
    output.requires_grad_(True)


def _one_pass(backbone: Any, packed: Any, causal: bool, bf16: bool, ask: bool, parameters: set[int]) -> _Pass:
    found = _Pass()
    kept: dict[int, Tensor] = {}  # the tensors themselves too: the address of a freed one may come up again
    outside: set[int] = set()
    inside = [0]
    tokens = packed.input_ids.numel()

    def step_in(change: int) -> Any:
        def hook(*_: Any) -> None:
            inside[0] += change

        return hook

    def note(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            rows, weight = inputs[0].numel() // inputs[0].shape[-1], module.weight
            cost = LinearCost(
                weight.numel(), rows < tokens, weight.requires_grad, inputs[0].requires_grad, ".lora_" in name
            )
            found.linear.append(cost)

        return hook

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in parameters:
            if storage not in kept and not inside[0]:
                outside.add(storage)
            kept[storage] = tensor
        return tensor

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    for module in backbone.modules():
        if isinstance(module, GradientCheckpointingLayer):
            hooks += [module.register_forward_pre_hook(step_in(1)), module.register_forward_hook(step_in(-1))]
    if ask:
        hooks.append(backbone.get_input_embeddings().register_forward_hook(_ask_for_gradients))
    _calls.clear()
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            hidden = read_packed(backbone, packed, causal)
    finally:
        for hook in hooks:
            hook.remove()
    found.attention = list(_calls)
    found.saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    found.outside = sum(kept[storage].untyped_storage().nbytes() for storage in outside)
    found.hidden_elements, found.keeps = hidden.shape[-1], hidden.requires_grad
    found.hidden_bytes = hidden.shape[-1] * hidden.element_size()
    return found


def _give_shapes(model: nn.Module) -> None:
    """Replace parameters and buffers on the `meta` device by tensors of the mode that is active."""
    made: dict[int, Any] = {}

    def twin(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                shared = made.get(id(parameter))
                if not isinstance(shared, nn.Parameter):
                    made[id(parameter)] = nn.Parameter(twin(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = twin(buffer)
