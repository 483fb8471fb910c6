"""A plan as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmrec.planning.plan import Plan

TOKENS = {
    "history_tokens": "histories",
    "target_tokens": "titles of targets",
    "negative_tokens": "titles drawn for one example",
    "shared_tokens": "titles drawn for a batch",
    "padding": "padding",
}
FLOPS = {
    "forward_linear": "forward, linear layers",
    "forward_attention": "forward, attention",
    "backward_weights": "backward, gradients of weights",
    "backward_inputs": "backward, gradients of activations",
    "backward_attention": "backward, attention",
    "recompute": "activation checkpointing: forward again",
    "gradient_caching": "gradient caching: forward again",
    "head_and_scores": "projection and scores",
    "catalogue_bank": "vectors of the cached catalogue",
    "optimizer": "optimizer",
}
MEMORY = {
    "weights": "weights",
    "weight_copies": "weights cast for the computation",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations of the largest pass",
    "catalogue_bank": "cached catalogue",
    "scores": "scores",
}
WIDTH = 44


def as_text(plan: Plan) -> str:
    """The plan in lines of text."""
    tokens, device = plan.tokens, plan.device
    share = 100 * plan.trained_parameters / plan.parameters
    sharing = ", each history read once for all its targets" if plan.shares_prefixes else ""
    lines = [
        f"{plan.backbone}: {plan.tuning}, {plan.loss}, {plan.precision}, packing {plan.packing}{sharing}",
        "",
        _line("parameters", _short(plan.parameters)),
        _line("  trained", f"{_short(plan.trained_parameters)} ({share:.2f} %)"),
        _line("examples an epoch", f"{tokens.examples:,.0f}"),
        _line("steps an epoch", f"{plan.steps:,} of {plan.batch_size:,} examples"),
        "",
        _line("tokens an epoch", _short(tokens.slots)),
        *_parts({name: getattr(tokens, name) for name in TOKENS}, TOKENS, tokens.slots, _short),
        _line("  if every example read its own", _short(_separate(plan))),
        _line("    histories", _short(tokens.separate_history_tokens)),
        _line("  titles in a batch", f"{tokens.titles / tokens.batches:,.1f}"),
        "",
        _line("FLOPs an epoch", _short(sum(plan.flops.values()))),
        *_parts(plan.flops, FLOPS, sum(plan.flops.values()), _short),
        _line("  at least (no padding, nothing twice)", _short(plan.least_flops)),
        "",
        _line("memory on each device", _gigabytes(sum(plan.memory.values()))),
        *_parts(plan.memory, MEMORY, sum(plan.memory.values()), _gigabytes),
    ]
    if plan.epoch_hours is not None and device is not None:
        rate = f"{100 * plan.utilisation:.0f} % of {_short(plan.rate or 0)}FLOP/s"
        lines += [
            "",
            _line(f"an epoch on {plan.devices} × {device.name}", f"{_hours(plan.epoch_hours)} at {rate}"),
            _line(f"  the whole run, epochs: {plan.epochs:g}", _hours(plan.epoch_hours * plan.epochs)),
            _line("  floor by FLOPs", _hours(plan.hours(plan.least_flops) or 0)),
        ]
        if plan.bandwidth_hours is not None:
            lines.append(_line("  floor by bytes", _hours(plan.bandwidth_hours)))
    if plan.counted_batches < plan.tokens.batches:
        lines += ["", f"Tokens were counted on {plan.counted_batches:,} of {plan.tokens.batches:,.0f} batches."]
    lines += ["Evaluation, loading and saving come on top. Training tries the packing on the loaded model first."]
    return "\n".join([*lines, *(f"WARNING: {warning}" for warning in plan.warnings)])


def _separate(plan: Plan) -> float:
    return plan.tokens.separate_history_tokens + plan.tokens.separate_title_tokens


def _line(name: str, value: str) -> str:
    return f"{name:<{WIDTH - 1}} {value}"


def _parts(
    values: dict[str, float], names: dict[str, str], total: float, form: Callable[[float], str]
) -> Iterable[str]:
    """A line for each part that is there."""
    for name, label in names.items():
        if values[name]:
            yield _line(f"  {label}", f"{form(values[name]):<10}{100 * values[name] / total:5.1f} %")


def _short(value: float) -> str:
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f}"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e7 else f"{value / 1e6:.2f} MB"


def _hours(value: float) -> str:
    if value >= 0.1:
        return f"{value:.2f} h"
    return f"{value * 60:.2f} min" if value * 60 >= 0.1 else f"{value * 3600:.2f} s"
