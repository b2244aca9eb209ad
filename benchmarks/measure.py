"""Timing: medians with their spread, taken in turns, so that a slow moment hits every competitor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds: median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)


def time_in_turns(functions: Mapping[str, Callable[[], object]], rounds: int, block: int = 5) -> dict[str, Timing]:
    """Times blocks of consecutive calls, as in a training loop, of one function after another, `rounds` times over.

    The first call of each block is not counted: it pays for what the competitor before it did to caches and allocator.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(3):
        for function in functions.values():
            function()
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            for _ in range(block):
                start = time.perf_counter()
                function()
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(values) for name, values in seconds.items()}


def fma_peak(dtype: torch.dtype, rounds: int = 2_000_000, repeats: int = 9) -> float:
    """Operations per second of multiply-adds that stay in registers, on all threads: the best of `repeats`."""
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
