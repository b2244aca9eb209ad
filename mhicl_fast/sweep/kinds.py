"""What workers can do: each kind of work by the name of the study that its configuration belongs to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..train.checkpoints import CheckpointStore
from ..train.folder import FolderError, holds, lock_folder
from ..train.recorder import Observer
from ..train.settings import FIRST_STUDY, RunSettings

Tell = Callable[[int], None]  # that a step has been reached; the first one told is that at which the work goes on
# Does what a configuration, as JSON has it, asks for in a folder.
Kind = Callable[[Mapping[str, Any], Path, Tell], None]

_LAST_OWNER_S = 30.0  # in which a worker whose parent was killed has ended its run with a checkpoint


def do(study: str, config: Mapping[str, Any], path: Path, tell: Tell) -> None:
    """Do the work that a configuration of this study asks for, from where it was left."""
    _KINDS[study](config, path, tell)


def _run(values: Mapping[str, Any], path: Path, tell: Tell) -> None:
    from ..train.config import RunConfig
    from ..train.loop import resume, run

    config = RunConfig.from_dict(values)
    _go_on(
        config,
        path,
        tell,
        lambda observer: run(config, path, observer, figures=False),
        lambda observer: resume(path, observer, figures=False),
    )


def _train(values: Mapping[str, Any], path: Path, tell: Tell) -> None:
    from ..sparse.config import SparseConfig
    from ..sparse.training import resume, train

    config = SparseConfig.from_dict(values)
    _go_on(config, path, tell, lambda observer: train(config, path, observer), lambda observer: resume(path, observer))


def _measure(values: Mapping[str, Any], path: Path, tell: Tell) -> None:
    from ..sparse.study.measurement import Measurement

    tell(0)
    Measurement.from_dict(values).perform(path)
    tell(1)


def _go_on(
    config: RunSettings,
    path: Path,
    tell: Tell,
    start: Callable[[Observer], object],
    resume: Callable[[Observer], object],
) -> None:
    """Start a run, or go on with the one in the folder; FolderError where that is another."""
    if path.exists():
        os.close(lock_folder(path, _LAST_OWNER_S))
    checkpoints = CheckpointStore(path / "checkpoints", config.checkpoint_every, config.steps)
    tell(max(checkpoints.steps(), default=0))
    if not (path / "config.json").exists():
        start(lambda progress: tell(progress.step))
    elif holds(path, config):
        resume(lambda progress: tell(progress.step))
    else:
        raise FolderError(f"{path} holds another run than it should")


_KINDS: Mapping[str, Kind] = {FIRST_STUDY: _run, "sparse": _train, "sparse-measurement": _measure}
