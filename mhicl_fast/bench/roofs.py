"""The two bounds of any kernel on this machine, measured: arithmetic in registers, and reading memory."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch


class Roofs(NamedTuple):
    """Operations per second of multiply-adds in one dtype's arithmetic, and bytes per second of reading memory."""

    peak: float
    bandwidth: float


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
