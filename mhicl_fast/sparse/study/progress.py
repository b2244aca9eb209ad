"""The progress bars of a study: one for each stage on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from ...sweep.progress import WorkBar


class StudyBar:
    """Hears how a study goes. Use as a context manager."""

    def __init__(self) -> None:
        self._bar: WorkBar | None = None
        self._numbers: dict[str, int] = {}

    def begin(self, stage: str, steps: Mapping[str, int], unfinished: Sequence[str]) -> None:
        """A stage begins; where nothing is to be done there is no bar for it."""
        self._close()
        if unfinished:
            self._numbers = {name: number for number, name in enumerate(steps)}
            trains = "training" in stage
            self._bar = WorkBar(
                list(steps.values()),
                "steps" if trains else "measurements",
                "runs" if trains else "measurements",
                stage,
            )
            self._bar.begin([self._numbers[name] for name in unfinished])

    def step(self, name: str, step: int) -> None:
        """A work of the stage has reached a step."""
        if self._bar is not None:
            self._bar.step(self._numbers[name], step)

    def end(self, name: str, failure: str | None) -> None:
        """A work of the stage has ended."""
        if self._bar is not None:
            self._bar.end(self._numbers[name], failure)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def __enter__(self) -> StudyBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
