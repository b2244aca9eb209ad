"""The machine that a result was computed on, as a reader would want it named."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from .._extension import build_info


def machine() -> dict[str, str]:
    """Processor, instruction set, threads, platform and compiler, in words."""
    info = build_info()
    return {
        "processor": _processor(),
        "instruction set": info["instruction_sets"]["active"],
        "threads": str(torch.get_num_threads()),
        "platform": info["platform"],
        "compiler": info["compiler"],
    }


def _processor() -> str:
    """The processor's name as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else (platform.processor() or platform.machine())
