"""What processors can do: a table of GPUs, and a short measurement of this machine."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

MEASURED_SIZE = 1024


class Device(NamedTuple):
    """A processor.

    Attributes:
        name: what to call it.
        bf16, fp32: largest rate of dense matrix products, in floating-point operations a second.
        memory: bytes.
        bandwidth: of that memory, in bytes a second.
    """

    name: str
    bf16: float
    fp32: float
    memory: float
    bandwidth: float


def _gpu(name: str, bf16: float, fp32: float, gigabytes: float, gigabytes_a_second: float) -> Device:
    return Device(name, bf16 * 1e12, fp32 * 1e12, gigabytes * 1e9, gigabytes_a_second * 1e9)


# Dense TFLOP/s in bf16 with float32 sums (not the twice as large figures with sparsity), TFLOP/s in float32 without
# TF32, gigabytes and gigabytes a second, from NVIDIA's data sheets of each product: HGX B200, H200, H100 (SXM and
# PCIe), A100 (80 GB SXM, 40 GB SXM), L40S, L4, A10, and the white papers on the Ada and Ampere (GA102) architectures.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("B200", 2250, 75, 180, 7700),
        _gpu("H200", 989, 67, 141, 4800),
        _gpu("H100", 989, 67, 80, 3350),
        _gpu("H100-PCIe", 756, 51, 80, 2000),
        _gpu("A100-80G", 312, 19.5, 80, 2039),
        _gpu("A100-40G", 312, 19.5, 40, 1555),
        _gpu("L40S", 362, 91.6, 48, 864),
        _gpu("L4", 121, 30.3, 24, 300),
        _gpu("A10", 125, 31.2, 24, 600),
        _gpu("RTX-4090", 165, 82.6, 24, 1008),
        _gpu("RTX-3090", 71, 35.6, 24, 936),
    )
}


def find_gpu(name: str) -> Device | None:
    """The GPU of a name, in any spelling of capitals, spaces and dashes; None for `none`.

    Raises:
        ValueError: an unknown one, with the known ones.
    """

    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter.isalnum())

    if plain(name) == "none":
        return None
    known = {plain(gpu): gpu for gpu in GPUS}
    if plain(name) not in known:
        raise ValueError(f"--gpu {name}: unknown; known are {', '.join(GPUS)}, and none for this machine's processor")
    return GPUS[known[plain(name)]]


def measure_rate(dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Floating-point operations a second of square matrix products on this machine's processor: the best of several.

    Args:
        dtype: of the matrices.
        seconds: how long to try.
    """
    left, right = (torch.randn(MEASURED_SIZE, MEASURED_SIZE).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * MEASURED_SIZE**3 / best
