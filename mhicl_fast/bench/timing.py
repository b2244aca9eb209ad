"""Timing: medians with their spread, taken in turns, so that a slow moment hits every competitor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

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


class HostClock:
    """The processor's time."""

    def now(self) -> Any:
        """A moment."""
        return time.perf_counter()

    def seconds(self, moments: list[tuple[Any, Any, Any]]) -> list[Call]:
        """The moments in seconds, once they have come."""
        return [Call(*three) for three in moments]

    def prepare(self) -> None:
        """What is done before each call, outside its time."""


class DeviceClock(HostClock):
    """A GPU's time, by events on its current stream, so that calls follow each other as they do in a training loop.

    cold: whether each call finds a level-2 cache that holds nothing of its data. That is seen to by writing twice as
    much as the cache holds, which also gives the host time to enqueue the call: its own overhead does not show then.
    """

    def __init__(self, device: torch.device, *, cold: bool = False) -> None:
        self._device = device
        self._buffer: torch.Tensor | None = None
        if cold:
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self._buffer = torch.empty(max(size, 1 << 26), dtype=torch.int8, device=device)

    def now(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, moments: list[tuple[Any, Any, Any]]) -> list[Call]:
        torch.cuda.synchronize(self._device)
        return [Call(0.0, *(1e-3 * start.elapsed_time(later) for later in rest)) for start, *rest in moments]

    def prepare(self) -> None:
        if self._buffer is not None:
            self._buffer.zero_()


HOST = HostClock()


def time_in_turns(functions: Mapping[K, Callable[[], object]], rounds: int, block: int = 5) -> dict[K, Timing]:
    """Times blocks of consecutive calls, as in a training loop, of one function after another, `rounds` times over.

    The first call of each block is not counted: it pays for what the competitor before it did to caches and allocator.
    """
    calls = calls_in_turns({key: _returning_nothing(f) for key, f in functions.items()}, rounds=rounds, block=block)
    return {key: Timing.of([call.end - call.start for call in made]) for key, made in calls.items()}


def calls_in_turns(
    functions: Mapping[K, Callable[[], Any]],
    *,
    rounds: int | None = None,
    seconds: float = 1.0,
    block: int | None = None,
    clock: HostClock = HOST,
) -> dict[K, list[Call]]:
    """The counted calls of functions that return the moment, by the clock, at which their second part began.

    Without `rounds`, three rounds and as many more as fit into `seconds` times the number of functions; without
    `block`, each function's block holds as many calls as take 0.05 s, at least 2 and at most 50.
    """
    taken = {key: _warm_up(function, clock) for key, function in functions.items()}
    blocks = {key: block or _calls_per_block(last) for key, last in taken.items()}
    calls: dict[K, list[Call]] = {key: [] for key in functions}
    end = time.perf_counter() + seconds * len(functions)
    done = 0
    while done < rounds if rounds is not None else done < _FEWEST_ROUNDS or time.perf_counter() < end:
        for key, function in functions.items():
            function()
            moments = []
            for _ in range(blocks[key]):
                clock.prepare()
                start = clock.now()
                middle = function()
                moments.append((start, middle, clock.now()))
            calls[key] += clock.seconds(moments)
        done += 1
    return calls


def _warm_up(function: Callable[[], object], clock: HostClock) -> float:
    """Calls it a few times; the seconds of the last one."""
    for _ in range(_WARM_UP - 1):
        function()
    start = clock.now()
    function()
    end = clock.now()
    call = clock.seconds([(start, end, end)])[0]
    return call.end - call.start


def _calls_per_block(seconds: float) -> int:
    return max(_SHORTEST_BLOCK, min(_LONGEST_BLOCK, int(_BLOCK_SECONDS / max(seconds, 1e-9))))


def _returning_nothing(function: Callable[[], object]) -> Callable[[], float]:
    """What a call makes is freed within its time, as in a training loop."""

    def call() -> float:
        function()
        return 0.0

    return call
