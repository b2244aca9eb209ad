"""How many compilers may run at once without exhausting the memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

GIB = 2**30
HOST_COMPILER_BYTES = 2 * GIB  # what one compiler may take on a source that includes PyTorch's headers
CUDA_COMPILER_BYTES = 4 * GIB


def job_count(cpus: int, free_bytes: int, with_cuda: bool) -> int:
    """One job a core, as far as the free memory holds them; at least one."""
    each = CUDA_COMPILER_BYTES if with_cuda else HOST_COMPILER_BYTES
    return max(1, min(cpus, free_bytes // each))


def usable_cpus() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes of memory that can be had without swapping, within the container's limit where there is one."""
    limits = [_meminfo_available(), _cgroup_limit()]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=HOST_COMPILER_BYTES)  # where nothing tells, one job


def _meminfo_available() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    told = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return int(told[1]) * 1024 if told else None


def _cgroup_limit() -> int | None:
    limit = Path("/sys/fs/cgroup/memory.max")
    if not limit.exists():
        return None
    text = limit.read_text().strip()
    return int(text) if text.isdigit() else None
