"""What the figures were measured on: hardware, versions, and the memory of one process."""

from __future__ import annotations

import os
import platform
import re
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "peft", "sentence-transformers", "numpy", "datasets")
STATUS = Path("/proc/self/status")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the figures; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def hardware(device: str, threads: int) -> dict[str, Any]:
    """Processor, accelerator if it is used, and how busy the machine was when it was asked."""
    import torch

    from llmrec.training.precision import cpu_has_bf16

    model = None
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        model = names[0] if names else None
    facts = {
        "architecture": platform.machine(),
        "processor": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "processor_has_bf16": cpu_has_bf16(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "device": device,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return facts


def has_bf16(device: str) -> bool:
    """Whether the device computes in bf16 itself."""
    import torch

    from llmrec.training.precision import cpu_has_bf16

    return torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else cpu_has_bf16()


def reset_peak_memory(device: str) -> None:
    """Begin a new peak, where the system allows it."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        # Linux: 5 sets the high-water mark of the resident set back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass


def peak_memory_gib(device: str) -> float:
    """Peak of the memory held: allocated on the GPU, else the resident set of this process."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    if STATUS.exists():
        # Not ru_maxrss: a new process inherits that from the one that started it.
        found = re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found.group(1)) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
