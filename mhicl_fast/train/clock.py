"""The seconds that a run has taken over all its sessions, and the machine of the last one: its timing.json."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch

from ..processes import ALONE, Processes
from .folder import read_json, write_json
from .machine import machine


class Clock:
    """Seconds spent on a run over all its sessions, and the last one's machine; kept apart from the files that are the
    same for every machine."""

    def __init__(self, file: Path, device: torch.device, processes: Processes = ALONE) -> None:
        self._file = file
        before = read_json(file, ("wall_s",)) or {"wall_s": 0.0}
        self._before = float(before["wall_s"])
        self._start = time.perf_counter()
        self._machine = machine(device, processes)
        _warn_of_another_device(before.get("machine"), self._machine["trained on"])

    def seconds(self) -> float:
        """Since the run's start, without the time between sessions."""
        return self._before + time.perf_counter() - self._start

    def store(self, *, complete: bool = False) -> None:
        """Write the time up to now; `complete`: the run is finished, results and figures included."""
        write_json(self._file, {"wall_s": self.seconds(), "complete": complete, "machine": self._machine})


def _warn_of_another_device(machine_before: Any, now: str) -> None:
    """Where a run goes on on another kind of device than its last session's, whose facts may be missing.

    Facts that name no device are from when there was only the CPU.
    """
    before = machine_before.get("trained on", "cpu") if isinstance(machine_before, dict) else None
    if isinstance(before, str) and before != now and "cpu" in (before, now):
        warnings.warn(
            f"the run was on {before} and goes on on {now}: the results may differ in rounding from those of an "
            "unbroken run",
            RuntimeWarning,
            stacklevel=5,
        )
