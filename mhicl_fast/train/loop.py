"""A run from start to figures, by one process or by several, and resuming."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from ..processes import ALONE, Processes
from .briefing import brief, hear_briefing
from .checkpoints import Checkpoint
from .clock import Clock
from .config import RunConfig
from .folder import RunFolder, holds, is_complete, write_json
from .interruptions import Interruptions, interruptions
from .loaded import LoadedRun, load_run
from .objective import has_prompts
from .odes import compare_with_odes
from .parameters import Parameters
from .recorder import Follower, Observer, Progress, State, last_checkpoint
from .records import SpectralState
from .run_recorder import RunRecorder
from .stepping import make_stepper
from .steps import take_steps
from .summary import summarise

__all__ = ["Observer", "Progress", "follow", "resume", "run"]


def run(
    config: RunConfig,
    path: str | Path,
    observer: Observer | None = None,
    *,
    figures: bool = True,
    processes: Processes = ALONE,
) -> LoadedRun:
    """Run `config` in a new folder and return the finished run; `figures`: whether to draw them.

    With several `processes` this is for the one that leads, while all others `follow`; the result is that of one
    process up to rounding, with reduction=tree to the bit. Where torchrun has started them again, the folder may hold
    this very run, which then goes on.

    Raises FolderError where the folder cannot be used, StorageError where a file cannot be written, TrainingError where
    the loss diverges, KeyboardInterrupt on Ctrl-C and SIGTERM, DistributedError where a process is lost; after each but
    the first the folder can be resumed. ConfigError, without a folder, where the configuration asks for a GPU that
    cannot be had.
    """
    device = config.resolved_device(processes)
    if processes.restarts > 0 and holds(Path(path), config):
        return resume(path, observer, figures=figures, device=config.device, processes=processes)
    with RunFolder.create(Path(path), config) as folder:
        return _complete(folder, config, device, observer, figures, processes)


def resume(
    path: str | Path,
    observer: Observer | None = None,
    *,
    figures: bool = True,
    device: str | None = None,
    processes: Processes = ALONE,
) -> LoadedRun:
    """Go on with the run in a folder from its last checkpoint; its files end as those of an unbroken run.

    `device`: where to, as the configuration's, which it replaces for this time. On another kind of device than before,
    of which a warning tells, and on another number of `processes` unless reduction=tree, the files are those of an
    unbroken run up to rounding. A finished run is returned as it is. Raises what `run` raises, and CheckpointError
    where no checkpoint is usable.
    """
    with RunFolder.open(Path(path), RunConfig) as folder:
        if is_complete(folder.path):
            processes.dismiss("the run is finished")
            return load_run(folder.path)
        config = folder.config if device is None else replace(folder.config, device=device)
        return _complete(folder, config, config.resolved_device(processes), observer, figures, processes)


def follow(processes: Processes, observer: Observer | None = None) -> None:
    """Train along with the process that calls `run` or `resume`, which has the folder; returns after the last step.

    At once where the leader has nothing to share. Raises what ends the run in all processes: TrainingError,
    KeyboardInterrupt where any of them was interrupted, DistributedError.
    """
    with interruptions() as interrupted:
        start = hear_briefing(processes)
        if start is None:
            return
        config, checkpoint = start
        with interrupted.held():
            state = _restored(config, checkpoint, config.resolved_device(processes))
            _train(config, state, Follower(processes, observer), interrupted, processes)


def _complete(
    folder: RunFolder[RunConfig],
    config: RunConfig,
    device: torch.device,
    observer: Observer | None,
    figures: bool,
    processes: Processes,
) -> LoadedRun:
    """Train to the end, then write results and figures, alone. `config` may name another device than the folder's."""
    if processes.size > 1 and not has_prompts(config.estimator):
        warnings.warn(
            f"estimator={config.estimator} has no prompts to share: one of the {processes.size} processes trains alone",
            RuntimeWarning,
            stacklevel=3,
        )
        processes.dismiss("there are no prompts to share")
        processes = ALONE
    with interruptions() as interrupted:
        clock = Clock(folder.path / "timing.json", device, processes)
        start = last_checkpoint(folder)
        state = _restored(config, start, device)
        with RunRecorder(folder, start, state, clock, processes, observer) as recorder, interrupted.held():
            brief(processes, config, device, start)
            _train(config, state, recorder, interrupted, processes)
        _finish(folder, clock, figures)
    return load_run(folder.path)


def _restored(config: RunConfig, stored: Checkpoint | None, device: torch.device) -> State[Parameters]:
    """The state of a checkpoint, or that of the start."""
    return State.restore(config.start_parameters(), config.make_optimizer(), stored, device)


def _train(
    config: RunConfig,
    state: State[Parameters],
    recorder: Follower[Parameters, SpectralState],
    interrupted: Interruptions,
    processes: Processes,
) -> None:
    """All steps that are left."""
    stepper = make_stepper(config.objective(), state.parameters, state.optimizer, processes, config.reduction)
    take_steps(config, stepper, state, recorder, interrupted, processes)


def _finish(folder: RunFolder[RunConfig], clock: Clock, figures: bool) -> None:
    """Everything that follows from metrics and weights; done again if a run is killed within."""
    trained = load_run(folder.path)
    odes = compare_with_odes(folder.config, trained.metrics, folder.path / "trajectories.npz")
    summary = summarise(folder.config, trained.metrics, trained.parameters, odes)
    wall = clock.seconds()
    summary |= {"wall_s": wall, "steps_per_second": folder.config.steps / wall}
    write_json(folder.path / "summary.json", summary)
    if figures:
        from ..plots import save_figures  # drawing libraries take a second to import

        save_figures(load_run(folder.path))
    clock.store(complete=True)
