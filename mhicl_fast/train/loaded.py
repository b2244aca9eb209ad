"""A run folder back in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .config import RunConfig
from .folder import read_json
from .odes import StoredTrajectory, read_trajectories
from .parameters import Parameters
from .recorder import read_run
from .records import stack_columns
from .summary import SUMMARY_KEYS


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run as its folder has it; the run may still be going on.

    metrics: arrays over the T rows recorded so far: step, flow_time, step_size, prompts_seen, loss, gradient_norm,
    residual (T,), effective_examples (T, H), share (T, I), mu and omega (T, H, I). parameters: the weights of the last
    checkpoint. summary: the content of summary.json, None until the run is finished. trajectories: the ODEs from the
    same start by order ("leading", "first"), as far as they apply; empty until the run is finished.

    The combined weights are `kq, ov = run.parameters.to_combined()`, the prompts' distribution is `run.config.task()`.
    """

    path: Path
    config: RunConfig
    metrics: Mapping[str, np.ndarray]
    parameters: Parameters
    summary: Mapping[str, Any] | None
    trajectories: Mapping[str, StoredTrajectory]

    def __repr__(self) -> str:
        state = "finished" if self.summary is not None else f"at step {self.metrics['step'][-1]}"
        return f"LoadedRun({str(self.path)!r}, {self.config.preset}, seed {self.config.seed}, {state})"


def load_run(path: str | Path) -> LoadedRun:
    """Read a run folder, finished or not.

    Raises FolderError where there is no run, no step was recorded yet, or a file is damaged, CheckpointError where no
    checkpoint is usable.
    """
    path = Path(path)
    config, flat, stored = read_run(path, RunConfig)
    return LoadedRun(
        path,
        config,
        stack_columns(flat, config.n_heads, config.n_tasks),
        config.start_parameters().with_tensors(stored.parameters),
        read_json(path / "summary.json", SUMMARY_KEYS),
        read_trajectories(path / "trajectories.npz"),
    )
