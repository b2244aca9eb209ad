"""Peak memory of a call, as the kernel of the operating system counts it, in a process made for that.

PyTorch's profiler sees its own allocator alone, and not what C++ kernels and math libraries allocate beside it, so the
measure is resident memory (Linux): its high-water mark during a call, over what is resident before. That needs an
allocator that gives freed memory back at once: glibc by default keeps what was freed, and a call that uses it again
would seem to need none. So a fresh process runs with environment variables that make glibc map every block of
64 KiB and more by itself. What a library keeps between calls counts as resident, not as the call's. The system counts
pages approximately, to some 128 KiB per processor used.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from .problem import DTYPES, Problem
from .shapes import OPERATORS, Shape

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
_REPEATS = 3


def resident() -> int:
    """Bytes of this process that are in memory now (Linux)."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most bytes of this process that were in memory since `reset_peak` (Linux)."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Let `peak_resident` start from what is resident now (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024


def peak_beyond_resident(call: Callable[[], object]) -> int:
    """Bytes that a call needs at its peak beyond what is resident, its result included: the median of three calls
    after one that is not counted. To be run in a process whose environment holds `ALLOCATOR`."""
    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = []
    for _ in range(_REPEATS):
        reset_peak()
        before = peak_resident()
        call()
        found.append(peak_resident() - before)
    return round(statistics.median(found))


def peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    """Bytes of a GPU that a call takes from PyTorch's allocator beyond what is taken, its result included."""
    call()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def in_fresh_process(code: str, text: str = "") -> str:
    """What Python code that imports from this very package prints, given `text` as its input, under `ALLOCATOR`.

    RuntimeError with the last line of its complaint where it fails.
    """
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | ALLOCATOR | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], input=text, env=environment, capture_output=True, text=True)
    if done.returncode:
        complaint = done.stderr.strip().splitlines()
        why = complaint[-1] if complaint else "it said nothing"
        raise RuntimeError(f"the process that measures memory ended with status {done.returncode}: {why}")
    return done.stdout


def peak_memory(shape: Shape, dtype: str, wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Peak bytes of each competitor by pass, those passes ("forward", "both") that are wanted of it.

    RuntimeError where the process fails.
    """
    order = {
        "operator": shape.operator,
        "shape": str(shape),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "wanted": wanted,
    }
    code = "from mhicl_fast.bench.memory import answer; answer()"
    found: dict[str, dict[str, int]] = json.loads(in_fresh_process(code, json.dumps(order)).splitlines()[-1])
    return found


def answer() -> None:
    """In the fresh process: read the order of `peak_memory`, print the peaks as the last line."""
    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    # The fewer processors, the less is lost in the system's counters.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order["threads"]])
    problem = Problem.make(OPERATORS[order["operator"]].parse(order["shape"]), DTYPES[order["dtype"]])
    models = problem.models(order["wanted"])
    peaks: dict[str, dict[str, int]] = {}
    for name, parts in order["wanted"].items():
        calls = {"forward": problem.forward, "both": problem.step}
        peaks[name] = {part: peak_beyond_resident(lambda: calls[part](models[name])) for part in parts}  # noqa: B023
    print(json.dumps(peaks))
