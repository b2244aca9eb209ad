"""The two bounds of any kernel on this machine, measured: arithmetic in registers, and reading memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from .timing import DeviceClock, HostClock


class Roofs(NamedTuple):
    """Operations per second of multiply-adds in one dtype's arithmetic, and bytes per second of reading memory."""

    peak: float
    bandwidth: float


def device_roofs(dtype: torch.dtype, device: torch.device, size: int = 8192, repeats: int = 5) -> Roofs:
    """A GPU's: square matrix products by PyTorch's library, and a sum over 1 GiB; the best of `repeats` by events.

    Products are IEEE, without TF32, and float32's for 16-bit types, in which the kernels compute them. Those of float64
    run on matrix units where there are any for it, beyond what other float64 code can reach.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    left, right = (torch.randn(size, size, dtype=exact, device=device) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        peak = 2 * size**3 / _fastest(lambda: left @ right, device, repeats)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    data = torch.ones(size * size * 4, device=device)
    return Roofs(peak, data.numel() * 4 / _fastest(data.sum, device, repeats))


def _fastest(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of some calls after one that is not counted."""
    clock = DeviceClock(device) if device.type == "cuda" else HostClock()
    call()
    moments = []
    for _ in range(repeats):
        start = clock.now()
        call()
        moments.append((start, start, clock.now()))
    return min(made.end - made.start for made in clock.seconds(moments))


def fma_peak(dtype: torch.dtype, rounds: int = 2_000_000, repeats: int = 9) -> float:
    """Operations per second of multiply-adds that stay in registers, on all threads: the best of `repeats`.

    16-bit types are computed with in float32, and so have its peak.
    """
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        operations = torch.ops.mhicl.fma_burst(rounds, dtype == torch.float64)
        best = max(best, operations / (time.perf_counter() - start))
    return best


def read_bandwidth(elements: int = 64 * 2**20, repeats: int = 9) -> float:
    """Bytes per second at which all threads read memory, measured by a sum: the best of `repeats`."""
    data = torch.ones(elements)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        data.sum()
        best = max(best, data.numel() * 4 / (time.perf_counter() - start))
    return best
