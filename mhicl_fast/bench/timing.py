"""Timing: medians with their spread, taken in turns, so that a slow moment hits every competitor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

K = TypeVar("K")

_WARM_UP, _FEWEST_ROUNDS = 3, 3
_BLOCK_SECONDS, _SHORTEST_BLOCK, _LONGEST_BLOCK = 0.05, 2, 50


class Timing(NamedTuple):
    """Seconds: median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Of at least two calls."""
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)


class Call(NamedTuple):
    """The moments of one call: its start, what it returned (the moment between its parts), its end."""

    start: float
    middle: float
    end: float


def time_in_turns(functions: Mapping[K, Callable[[], object]], rounds: int, block: int = 5) -> dict[K, Timing]:
    """Times blocks of consecutive calls, as in a training loop, of one function after another, `rounds` times over.

    The first call of each block is not counted: it pays for what the competitor before it did to caches and allocator.
    """
    calls = calls_in_turns({key: _returning_nothing(f) for key, f in functions.items()}, rounds=rounds, block=block)
    return {key: Timing.of([call.end - call.start for call in made]) for key, made in calls.items()}


def calls_in_turns(
    functions: Mapping[K, Callable[[], float]],
    *,
    rounds: int | None = None,
    seconds: float = 1.0,
    block: int | None = None,
) -> dict[K, list[Call]]:
    """The counted calls of functions that return the moment (`time.perf_counter`) at which their second part began.

    Without `rounds`, three rounds and as many more as fit into `seconds` times the number of functions; without
    `block`, each function's block holds as many calls as take 0.05 s, at least 2 and at most 50.
    """
    taken = {key: _warm_up(function) for key, function in functions.items()}
    blocks = {key: block or _calls_per_block(last) for key, last in taken.items()}
    calls: dict[K, list[Call]] = {key: [] for key in functions}
    end = time.perf_counter() + seconds * len(functions)
    done = 0
    while done < rounds if rounds is not None else done < _FEWEST_ROUNDS or time.perf_counter() < end:
        for key, function in functions.items():
            function()
            for _ in range(blocks[key]):
                start = time.perf_counter()
                middle = function()
                calls[key].append(Call(start, middle, time.perf_counter()))
        done += 1
    return calls


def _warm_up(function: Callable[[], object]) -> float:
    """Calls it a few times; the seconds of the last one."""
    for _ in range(_WARM_UP - 1):
        function()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _calls_per_block(seconds: float) -> int:
    return max(_SHORTEST_BLOCK, min(_LONGEST_BLOCK, int(_BLOCK_SECONDS / seconds)))


def _returning_nothing(function: Callable[[], object]) -> Callable[[], float]:
    """What a call makes is freed within its time, as in a training loop."""

    def call() -> float:
        function()
        return 0.0

    return call
