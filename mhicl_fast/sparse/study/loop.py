"""The study from start to verdicts: runs and measurements on all cores, and resuming."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ...sweep.claims import cores_for
from ...sweep.pool import Pool, Work, interrupted_by_sigterm
from ...train.checkpoints import CheckpointError
from ...train.folder import FolderError, read_json, write_json
from .claims import write_summary
from .config import Study
from .folder import StudyFolder
from .results import LoadedStudy, load_study
from .stages import STAGES, Stage


class StudyObserver(Protocol):
    """What hears how a study goes."""

    def begin(self, stage: str, steps: Mapping[str, int], unfinished: Sequence[str]) -> None:
        """A stage begins; its works have so many steps, and those that are unfinished are to be done now."""

    def step(self, name: str, step: int) -> None:
        """One of these has reached a step; the first that is told is the one at which it starts or goes on."""

    def end(self, name: str, failure: str | None) -> None:
        """It has ended, finished or with a reason why not."""


def run_study(
    study: Study, path: str | Path, *, jobs: int | None = None, observer: StudyObserver | None = None
) -> LoadedStudy:
    """Train all models of a study in a new folder, measure them and judge the claims; returns the results.

    `jobs`: how many runs and measurements at a time, each on one thread (None: one for each core; on a GPU one). The
    files, but for those of times, are the same with any number. What fails is in `LoadedStudy.failures`, and all that
    does not need it is done.

    Raises ConfigError for jobs < 1 and for a GPU that cannot be had; FolderError where the folder cannot be used;
    StorageError where a file of the study cannot be written; KeyboardInterrupt on Ctrl-C and SIGTERM, after a
    checkpoint of each run. After the last two the folder can be resumed.
    """
    cores_for(jobs)
    with StudyFolder.create(Path(path), study) as folder:
        return _complete(folder, jobs, observer)


def resume_study(path: str | Path, *, jobs: int | None = None, observer: StudyObserver | None = None) -> LoadedStudy:
    """Go on with the study in a folder: what is finished is kept, all else goes on or is tried again.

    Raises what `run_study` raises.
    """
    cores_for(jobs)
    with StudyFolder.open(Path(path)) as folder:
        return _complete(folder, jobs, observer)


def _complete(folder: StudyFolder, jobs: int | None, observer: StudyObserver | None) -> LoadedStudy:
    """Do one stage after the other, then judge."""
    on_gpu = folder.study.run.resolved_device().type == "cuda"
    places = 1 if on_gpu and jobs is None else cores_for(jobs)
    failures: dict[str, str] = {}
    with interrupted_by_sigterm(), Pool(places, places, threads=1) as pool:
        for stage in STAGES:
            started = time.monotonic()
            try:
                _do(stage, folder, pool, failures, observer)
            finally:
                _add_seconds(folder.path, stage.name, time.monotonic() - started)
    write_summary(load_study(folder.path), failures)
    return load_study(folder.path)


def _do(
    stage: Stage, folder: StudyFolder, pool: Pool, failures: dict[str, str], observer: StudyObserver | None
) -> None:
    """Do what is to be done of a stage; what fails is added to the failures."""
    works = stage.works(folder.study, folder.path)
    open_works = {name: work for name, work in works.items() if not work.done()}
    progress = _Progress(list(open_works), failures, observer)
    if observer is not None:
        observer.begin(stage.name, {name: work.steps for name, work in works.items()}, list(open_works))
    ready = []
    for number, work in enumerate(open_works.values()):
        try:
            ready.append(Work(number, work.prepare(), work.path))
        except (FolderError, CheckpointError) as error:
            progress.end(number, str(error))
    pool.work(ready, progress)


class _Progress:
    """Keeps what fails, and passes on what it hears."""

    def __init__(self, names: Sequence[str], failures: dict[str, str], observer: StudyObserver | None) -> None:
        self._names, self._failures, self._observer = names, failures, observer
        self._warned: set[str] = set()

    def step(self, number: int, step: int) -> None:
        if self._observer is not None:
            self._observer.step(self._names[number], step)

    def end(self, number: int, failure: str | None) -> None:
        if failure is not None:
            self._failures[self._names[number]] = failure
        if self._observer is not None:
            self._observer.end(self._names[number], failure)

    def warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _add_seconds(path: Path, stage: str, seconds: float) -> None:
    """Count the time that a stage took; that of a study that was resumed is the sum."""
    times = read_json(path / "timing.json") or {}
    write_json(path / "timing.json", {**times, stage: times.get(stage, 0.0) + seconds})
