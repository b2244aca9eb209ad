"""A sweep from start to figures: its runs on all cores, the table as they end, and resuming."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from ..processes import ALONE, Processes
from ..train.config import RunConfig
from .claims import Plan, claims, cores_for, places, to_do
from .dimensions import varied_keys
from .events import Followers
from .folder import SweepFolder, holds
from .pool import Work, execute, interrupted_by_sigterm, longest_first
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
    configs: Iterable[RunConfig],
    path: str | Path,
    *,
    jobs: int | None = None,
    observer: SweepObserver | None = None,
    processes: Processes = ALONE,
) -> LoadedSweep:
    """Do all runs, each of its own shape, in a new folder, on `jobs` cores (None: all), and return the results.

    A run that fails is a row of the table that says so, `LoadedSweep.failures`, and stops no other. A run's folder has
    the files of a plain run of its configuration, to the bit, but no figures.

    With several `processes` this is for the one that leads, while the others `follow_sweep`; each uses `jobs` cores
    (None: its part of its machine's), and all need the same file system. Where torchrun has started them again, the
    sweep goes on.

    Raises ConfigError for a list that is empty, longer than MOST_RUNS or holds a run twice, or jobs < 1; FolderError
    where the folder cannot be used; StorageError where a file of the sweep cannot be written; DistributedError where a
    process cannot work or has not been heard of for `processes.timeout` seconds; KeyboardInterrupt on Ctrl-C and
    SIGTERM, after a checkpoint of each run. After the last three the folder can be resumed.
    """
    cores = cores_for(jobs, processes)
    path, configs = Path(path), list(configs)
    again = processes.restarts > 0 and holds(path, configs)
    with SweepFolder.open(path) if again else SweepFolder.create(path, configs) as folder:
        return _complete(folder, cores, observer, processes)


def resume_sweep(
    path: str | Path,
    *,
    jobs: int | None = None,
    observer: SweepObserver | None = None,
    processes: Processes = ALONE,
) -> LoadedSweep:
    """Go on with the sweep in a folder, with any number of processes: finished runs are kept, all others, failed ones
    too, go on from their last checkpoint.

    Raises what `run_sweep` raises.
    """
    cores = cores_for(jobs, processes)
    with SweepFolder.open(Path(path)) as folder:
        return _complete(folder, cores, observer, processes)


def _complete(folder: SweepFolder, cores: int, observer: SweepObserver | None, processes: Processes) -> LoadedSweep:
    """Do what is to do, then write results and figures; after Ctrl-C the results so far."""
    from .figures import save_sweep_figures  # drawing libraries take a second to import

    progress = _Progress(folder, observer)
    unfinished = folder.unfinished()
    if observer is not None:
        observer.begin(unfinished)
    work = longest_first(to_do(folder.configs, folder.path, unfinished, processes))
    try:
        with interrupted_by_sigterm():
            if processes.size == 1:
                execute(work, cores, progress)
            else:
                _lead(folder.path, work, cores, progress, processes)
    finally:
        sweep = progress.results()
        write_summary(sweep)
    save_sweep_figures(sweep)
    return sweep


def _lead(path: Path, work: Sequence[Work], cores: int, progress: _Progress, processes: Processes) -> None:
    """Do runs until none is left, as the followers do."""
    plan = Plan.of(path, work)
    store = plan.store(processes)
    followers = Followers(processes, store, path, progress)
    processes.tell(plan.word())
    execute(claims(work, store), cores, progress, places(len(work), cores, processes), followers.attend)
    followers.wait()


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
