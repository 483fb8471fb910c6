"""The last layer of a decoder, where vectors are read and nowhere else.

What the last layer makes of a token matters to that token's vector alone: its keys and values are needed of every
token, but the output projection, the feed-forward block and the final normalisation only of the tokens that are read.
In a batch of packed titles that is one token in twenty, so most of the last layer need not be computed, forward or
backward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

# Names that transformers gives the parts of a decoder layer that normalises before its attention.
NORMS = ("input_layernorm", "self_attn_layer_norm")
OUTPUTS = ("o_proj", "out_proj")


class LastLayer(NamedTuple):
    """The parts of the last layer that are hooked: the layer, its first normalisation, attention, output projection."""

    layer: nn.Module
    norm: nn.Module
    attention: nn.Module
    output: nn.Module


def find_last_layer(backbone: nn.Module) -> LastLayer | None:
    """The last decoder layer, or None for an architecture whose parts have other names or another order, or whose
    layers are computed again in the backward pass, when the hooks are gone."""
    config: Any = backbone.config
    if not getattr(config, "do_layer_norm_before", True):
        return None
    if any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules()):
        return None
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            layer = module[-1]
            attention = getattr(layer, "self_attn", None)
            norm, output = _first(layer, NORMS), _first(attention, OUTPUTS)
            if attention is not None and norm is not None and output is not None:
                return LastLayer(layer, norm, attention, output)
    return None


@contextmanager
def only_where_read(last: LastLayer, rows: Tensor) -> Iterator[None]:
    """Within it, the last hidden state of the backbone is (1, len(rows), hidden_size).

    Args:
        last: from `find_last_layer`.
        rows: flat indices (row * length + column) of the tokens that are read.
    """
    full: list[Tensor] = []

    def keep_read(hidden: Tensor) -> Tensor:
        return hidden.flatten(0, 1).index_select(0, rows).unsqueeze(0)

    def before_layer(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        # The residual stream is that of the tokens read ...
        full[:] = [args[0] if args else kwargs["hidden_states"]]
        chosen = keep_read(full[0])
        return ((chosen, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": chosen})

    def before_attention(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        # ... while attention looks at all tokens ...
        every = last.norm(full[0])
        return ((every, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": every})

    hooks = [
        last.layer.register_forward_pre_hook(before_layer, with_kwargs=True),
        last.attention.register_forward_pre_hook(before_attention, with_kwargs=True),
        # ... and what it found for the others goes no further.
        last.output.register_forward_pre_hook(lambda module, args: (keep_read(args[0]), *args[1:])),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first(module: nn.Module | None, names: tuple[str, ...]) -> nn.Module | None:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)
