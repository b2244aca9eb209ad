"""A sweep from start to figures: its runs on all cores, the table as they end, and resuming."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ..train.config import ConfigError, RunConfig
from .dimensions import varied_keys
from .folder import SweepFolder, run_path
from .pool import Work, execute
from .results import LoadedSweep, load_sweep, read_row, write_summary, write_table

_TABLE_EVERY = 1.0  # seconds at least between two versions of table.csv


class SweepObserver(Protocol):
    """What hears how a sweep goes."""

    def begin(self, unfinished: list[int]) -> None:
        """The runs with these numbers are to be done now."""

    def step(self, number: int, step: int) -> None:
        """A run has reached a step; the first that is told is the one at which it starts or goes on."""

    def end(self, number: int, failure: str | None) -> None:
        """A run has ended, finished or with a reason why not."""


def run_sweep(
    configs: Iterable[RunConfig], path: str | Path, *, jobs: int | None = None, observer: SweepObserver | None = None
) -> LoadedSweep:
    """Do all runs, each of its own shape, in a new folder, on `jobs` cores (None: all), and return the results.

    A run that fails is a row of the table that says so, `LoadedSweep.failures`, and stops no other. A run's folder has
    the files of a plain run of its configuration, to the bit, but no figures.

    Raises ConfigError for a list that is empty, longer than MOST_RUNS or holds a run twice, or jobs < 1; FolderError
    where the folder cannot be used; StorageError where a file of the sweep cannot be written; KeyboardInterrupt on
    Ctrl-C, after a checkpoint of each run. After the last two the folder can be resumed.
    """
    cores = _cores(jobs)
    with SweepFolder.create(Path(path), list(configs)) as folder:
        return _complete(folder, cores, observer)


def resume_sweep(path: str | Path, *, jobs: int | None = None, observer: SweepObserver | None = None) -> LoadedSweep:
    """Go on with the sweep in a folder: finished runs are kept, all others, failed ones too, go on from
    their last checkpoint.

    Raises what `run_sweep` raises.
    """
    cores = _cores(jobs)
    with SweepFolder.open(Path(path)) as folder:
        return _complete(folder, cores, observer)


def _cores(jobs: int | None) -> int:
    if jobs is None:
        return len(os.sched_getaffinity(0))
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"jobs must be a positive integer, got {jobs!r}")
    return jobs


def _complete(folder: SweepFolder, cores: int, observer: SweepObserver | None) -> LoadedSweep:
    """Do what is to do, then write results and figures; after Ctrl-C the results so far."""
    from .figures import save_sweep_figures  # drawing libraries take a second to import

    progress = _Progress(folder, observer)
    unfinished = folder.unfinished()
    if observer is not None:
        observer.begin(unfinished)
    work = [Work(number, folder.configs[number], run_path(folder.path, number)) for number in unfinished]
    try:
        execute(work, cores, progress)
    finally:
        sweep = progress.results()
        write_summary(sweep)
    save_sweep_figures(sweep)
    return sweep


class _Progress:
    """Keeps the table up to date, and passes on what it hears."""

    def __init__(self, folder: SweepFolder, observer: SweepObserver | None) -> None:
        self._folder = folder
        self._observer = observer
        self._written = -_TABLE_EVERY
        self._warned: set[str] = set()
        self._varied = varied_keys(folder.configs)
        self._rows = load_sweep(folder.path).rows

    def step(self, number: int, step: int) -> None:
        if self._observer is not None:
            self._observer.step(number, step)

    def end(self, number: int, failure: str | None) -> None:
        self._read(number, failure)
        if time.monotonic() - self._written >= _TABLE_EVERY:
            write_table(self._folder.path, self._rows)
            self._written = time.monotonic()
        if self._observer is not None:
            self._observer.end(number, failure)

    def warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def results(self) -> LoadedSweep:
        """What is known now; runs may have ended while the others were being stopped."""
        for row in self._rows:
            if row["status"] != "finished":
                self._read(row["run"], row["failure"])
        write_table(self._folder.path, self._rows)
        return LoadedSweep(self._folder.path, self._folder.configs, self._rows)

    def _read(self, number: int, failure: str | None) -> None:
        config = self._folder.configs[number]
        self._rows[number] = read_row(self._folder.path, number, config, self._varied, failure)
