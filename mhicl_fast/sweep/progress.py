"""The progress bar of a pool's work: steps of all runs together, runs done, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from ..train.config import RunConfig

Bar = TypeVar("Bar", bound="WorkBar")


class WorkBar:
    """Hears how runs, or other work, go and draws one bar on standard error if that is a terminal. Use as a context
    manager. The bar counts the steps that were still to do.

    Args:
        steps: of each run.
        unit: what the steps are called.
        name: what the runs are called.
        title: what stands before the bar.
    """

    def __init__(self, steps: Sequence[int], unit: str = "steps", name: str = "runs", title: str | None = None) -> None:
        self._steps = list(steps)
        self._unit, self._name, self._title = unit, name, title
        self._at: dict[int, int] = {}
        self._done = self._failed = 0
        self._bar: tqdm | None = None

    def begin(self, unfinished: Sequence[int]) -> None:
        """These runs are to be done now; the others are finished."""
        self._done = len(self._steps) - len(unfinished)
        total = sum(self._steps[number] for number in unfinished)
        # disable=None: off unless the stream is a terminal
        self._bar = tqdm(
            total=total, desc=self._title, unit=f" {self._unit}", unit_scale=True, disable=None, dynamic_ncols=True
        )
        self._tell()

    def step(self, number: int, step: int) -> None:
        """A run has reached a step; what it did before the first one told is not counted."""
        if self._bar is None:
            return
        if number in self._at:
            self._bar.update(step - self._at[number])
        else:
            self._bar.total -= step
        self._at[number] = step

    def end(self, number: int, failure: str | None) -> None:
        """A run has ended; the steps that a failed one leaves are not counted."""
        if self._bar is None:
            return
        self._done += 1
        self._failed += failure is not None
        self._bar.total -= self._steps[number] - self._at.get(number, 0)
        self._tell()

    def _tell(self) -> None:
        if self._bar is not None:
            failed = f", {self._failed} failed" if self._failed else ""
            self._bar.set_postfix_str(f"{self._done}/{len(self._steps)} {self._name}{failed}")

    def __enter__(self: Bar) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class SweepBar(WorkBar):
    """The bar of a sweep's runs."""

    def __init__(self, configs: Sequence[RunConfig]) -> None:
        super().__init__([config.steps for config in configs])
