"""The progress bar of a run: loss, flow time, phase and speed on a terminal, nothing elsewhere."""

from __future__ import annotations

import math
from types import TracebackType

import numpy as np
from tqdm import tqdm

from .spectral.phases import EMERGENCE_END, WARMUP_END
from .train.config import RunConfig
from .train.loop import Progress
from .train.records import SpectralState


class ProgressBar:
    """An observer of a run that draws a bar on standard error if that is a terminal. Use as a context manager."""

    def __init__(self, config: RunConfig) -> None:
        self._steps = config.steps
        task = config.task()
        excess = math.e * task.support_sizes * task.noise_factor / task.context_length
        self._expected = (1 / (1 + excess)).numpy()  # shares in the state with one head per task
        self._bar: tqdm | None = None
        self._phase = "warm-up"

    def __call__(self, progress: Progress) -> None:
        if self._bar is None:
            # disable=None: off unless the stream is a terminal
            self._bar = tqdm(total=self._steps, initial=progress.step, unit=" steps", disable=None, dynamic_ncols=True)
        else:
            self._bar.update(progress.step - self._bar.n)
        if not self._bar.disable:
            if progress.record is not None:
                self._phase = self._name_phase(progress.record)
            self._bar.set_postfix_str(
                f"loss {progress.loss:.4g}, flow time {progress.flow_time:.4g}, {self._phase}", refresh=False
            )

    def _name_phase(self, state: SpectralState) -> str:
        """By the shares learnt so far, relative to those expected at the end; the summary has the measured phases."""
        relative = state.shares / self._expected
        if np.max(relative) < WARMUP_END:
            return "warm-up"
        return "emergence" if np.min(relative) < EMERGENCE_END else "convergence"

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
