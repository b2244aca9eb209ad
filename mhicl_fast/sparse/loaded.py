"""A run folder of the study back in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..train.folder import read_json
from ..train.recorder import read_run
from .config import SparseConfig
from .model import Transformer
from .records import stack_columns
from .summary import SUMMARY_KEYS


@dataclass(frozen=True, eq=False)
class SparseRun:
    """A run as its folder has it; the run may still be going on.

    metrics: arrays over the T rows recorded so far: step, learning_rate, prompts_seen, context_length, loss,
    gradient_norm (T,), risk (T, noise variances). model: with the weights of the last checkpoint, on the CPU. summary:
    the content of summary.json, None until the run is finished.

    The prompts' distribution is `run.config.task()`; `run.config.evaluation_seed` gives prompts that no step trains on.
    """

    path: Path
    config: SparseConfig
    metrics: Mapping[str, np.ndarray]
    model: Transformer
    summary: Mapping[str, Any] | None

    def __repr__(self) -> str:
        state = "finished" if self.summary is not None else f"at step {self.metrics['step'][-1]}"
        return f"SparseRun({str(self.path)!r}, {self.config.preset}, seed {self.config.seed}, {state})"


def load_run(path: str | Path) -> SparseRun:
    """Read a run folder, finished or not.

    Raises FolderError where there is no run of this study, no step was recorded yet, or a file is damaged,
    CheckpointError where no checkpoint is usable.
    """
    path = Path(path)
    config, flat, stored = read_run(path, SparseConfig)
    return SparseRun(
        path,
        config,
        stack_columns(flat, config),
        config.model().with_tensors(stored.parameters),
        read_json(path / "summary.json", SUMMARY_KEYS),
    )
