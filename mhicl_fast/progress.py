"""The progress bars of runs: on a terminal the steps, their speed, the loss and more; nothing elsewhere."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from .sparse.config import SparseConfig
from .spectral.phases import EMERGENCE_END, WARMUP_END
from .train.config import RunConfig
from .train.recorder import Progress, Record
from .train.records import SpectralState

Drawn = TypeVar("Drawn", bound="StepsBar[Any]")


class StepsBar(ABC, Generic[Record]):
    """An observer of a run that draws a bar on standard error if that is a terminal. Use as a context manager."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar: tqdm | None = None

    @abstractmethod
    def describe(self, progress: Progress[Record]) -> str:
        """What the bar says beside the steps and their speed."""

    def __call__(self, progress: Progress[Record]) -> None:
        if self._bar is None:
            # disable=None: off unless the stream is a terminal
            self._bar = tqdm(total=self._steps, initial=progress.step, unit=" steps", disable=None, dynamic_ncols=True)
        else:
            self._bar.update(progress.step - self._bar.n)
        if not self._bar.disable:
            self._bar.set_postfix_str(self.describe(progress), refresh=False)

    def __enter__(self: Drawn) -> Drawn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class ProgressBar(StepsBar[SpectralState]):
    """Of a run of the first study: loss, flow time and phase."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config.steps)
        task = config.task()
        excess = math.e * task.support_sizes * task.noise_factor / task.context_length
        self._expected = (1 / (1 + excess)).numpy()  # shares in the state with one head per task
        self._phase = "warm-up"

    def describe(self, progress: Progress[SpectralState]) -> str:
        if progress.record is not None:
            self._phase = self._name_phase(progress.record)
        return f"loss {progress.loss:.4g}, flow time {progress.flow_time:.4g}, {self._phase}"

    def _name_phase(self, state: SpectralState) -> str:
        """By the shares learnt so far, relative to those expected at the end; the summary has the measured phases."""
        relative = state.shares / self._expected
        if np.max(relative) < WARMUP_END:
            return "warm-up"
        return "emergence" if np.min(relative) < EMERGENCE_END else "convergence"


class SparseBar(StepsBar[list[float]]):
    """Of a run of sparse linear regression: the loss, and the risk as it was last measured."""

    def __init__(self, config: SparseConfig) -> None:
        super().__init__(config.steps)
        self._risk = ""

    def describe(self, progress: Progress[list[float]]) -> str:
        if progress.record is not None:
            self._risk = f", risk {sum(progress.record) / len(progress.record):.4g}"
        return f"loss {progress.loss:.4g}{self._risk}"
