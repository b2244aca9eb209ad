"""A run from start to figures: the training loop, by one process or by several, and resuming."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from ..processes import ALONE, DistributedError, Processes
from .briefing import brief, hear_briefing
from .clock import Clock
from .config import RunConfig
from .folder import RunFolder, holds, is_complete, write_json
from .interruptions import Interruptions, interruptions
from .loaded import LoadedRun, load_run
from .objective import has_prompts
from .odes import compare_with_odes
from .recorder import Follower, Observer, Progress, Recorder, State, last_checkpoint
from .stepping import Span, TrainingError, make_stepper
from .summary import summarise

__all__ = ["Observer", "Progress", "follow", "resume", "run"]

SPAN_SECONDS = 0.2  # of steps at a time, so that Ctrl-C and the progress bar stay lively


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
    with RunFolder.open(Path(path)) as folder:
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
            state = State.restore(config, checkpoint, config.resolved_device(processes))
            _loop(config, state, Follower(processes, observer), interrupted, processes)


def _complete(
    folder: RunFolder,
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
        state = State.restore(config, start, device)
        with Recorder(folder, start, state, clock, processes, observer) as recorder, interrupted.held():
            brief(processes, config, device, start)
            _loop(config, state, recorder, interrupted, processes)
        _finish(folder, clock, figures)
    return load_run(folder.path)


def _finish(folder: RunFolder, clock: Clock, figures: bool) -> None:
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


def _loop(
    config: RunConfig, state: State, recorder: Follower, interrupted: Interruptions, processes: Processes
) -> None:
    """Spans of steps, records and checkpoints until the last step, or until a process is interrupted or lost.

    All processes make the same steps, each in spans of its own.
    """
    stepper = make_stepper(config.objective(), state.parameters, state.optimizer, processes, config.reduction)
    while True:
        evaluates = state.step == config.steps  # the last weights' loss is all that is left
        recorder.describe(state)
        ahead, stop = _steps_ahead(config, state.step), interrupted.requested and processes.size > 1
        span = stepper.advance(state.step, ahead, state.flow_time, SPAN_SECONDS, stop)
        recorder.add(state, span)
        if not span.lost:
            _check_finite(state.step, span)
        state.count(span)
        recorder.tell(state, span)
        stopped = span.stopped if processes.size > 1 else interrupted.requested
        if span.lost or (not evaluates and (stopped or _is_due(config, state.step))):
            recorder.save(state)
        if span.lost:
            raise DistributedError(recorder.why_lost(state.step, span.lost))
        if evaluates:
            return
        if stopped:
            raise KeyboardInterrupt


def _is_due(config: RunConfig, step: int) -> bool:
    """Whether every unbroken run has a checkpoint of this step."""
    return step % config.checkpoint_every == 0 or step == config.steps


def _steps_ahead(config: RunConfig, step: int) -> int:
    """Steps until the next row of metrics, the next checkpoint or the end, whichever comes first."""
    return min(*(every - step % every for every in (config.record_every, config.checkpoint_every)), config.steps - step)


def _check_finite(step: int, span: Span) -> None:
    """TrainingError where a span that started at `step` stopped at something that is not a number."""
    if not span.finite:
        raise TrainingError(
            f"the loss or its gradient stopped being finite at step {step + span.steps} (loss {span.last_loss}): use a "
            "smaller learning_rate"
        )
