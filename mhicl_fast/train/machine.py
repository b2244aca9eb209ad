"""The machine that a result was computed on, as a reader would want it named."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from .._extension import native
from ..devices import describe_device
from ..processes import ALONE, Processes


def machine(device: torch.device | None = None, processes: Processes = ALONE) -> dict[str, str]:
    """Processor, instruction set, threads, platform, compiler, in words; where there are any to name, the device, and
    the processes that share the work."""
    facts = {
        "processor": _processor(),
        "instruction set": native.active_isa(),
        "threads": str(torch.get_num_threads()),
        "platform": platform.platform(),
        "compiler": native.build_facts()["compiler"],
    }
    if processes.size > 1:
        facts["processes"] = f"{processes.size}, {processes.local_size} on this machine; threads are those of each"
    return facts if device is None else {"trained on": describe_device(device), **facts}


def _processor() -> str:
    """The processor's name as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else (platform.processor() or platform.machine())
