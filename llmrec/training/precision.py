"""Which number format the forward and backward passes use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]

# Without one of these instructions a processor emulates bf16, and training gets slower instead of faster.
CPU_BF16_FLAGS = ("avx512_bf16", "amx_bf16")


def runs_on_cpu(use_cpu: bool = False) -> bool:
    """Whether training runs on the processor: asked for, or no accelerator there."""
    asked = use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return asked or not torch.accelerator.is_available()


def cpu_has_bf16() -> bool:
    """Whether the processor computes in bf16 itself (Linux tells; elsewhere the answer is no)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return any(flag in flags for flag in CPU_BF16_FLAGS)


def resolve_precision(wanted: str, on_cpu: bool) -> tuple[Precision, str]:
    """The precision to use, and the reason for it as a clause for the log.

    Args:
        wanted: `"auto"`, `"fp32"` or `"bf16"`.
        on_cpu: whether training runs on the processor.

    Raises:
        ValueError: for another word, or for bf16 on an accelerator that cannot compute in it.
    """
    if wanted not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision={wanted!r} is none of 'auto', 'fp32', 'bf16'")
    if wanted == "fp32":
        return "fp32", "asked for"
    if on_cpu:
        if wanted == "bf16":
            return (
                "bf16",
                "asked for" if cpu_has_bf16() else "asked for, though this processor only emulates it",
            )
        return (
            ("bf16", "the processor has it") if cpu_has_bf16() else ("fp32", "the processor has no bf16 instructions")
        )
    supported = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bf16":
        if not supported:
            raise ValueError("precision='bf16': this accelerator has no bf16; use precision='fp32' or 'auto'")
        return "bf16", "asked for"
    return ("bf16", "the GPU has it") if supported else ("fp32", "the accelerator has no bf16")
