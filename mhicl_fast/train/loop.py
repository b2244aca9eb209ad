"""A run from start to figures: the training loop, its checkpoints, what happens on Ctrl-C, and resuming."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .checkpoints import Checkpoint, CheckpointError, CheckpointStore
from .config import RunConfig
from .folder import RunFolder, is_complete, read_json, write_json
from .loaded import LoadedRun, load_run
from .machine import machine
from .metrics import MetricsLog, mismatch
from .objective import has_prompts
from .odes import compare_with_odes
from .optimisers import Optimizer
from .parameters import Parameters
from .records import EffectiveExamples, SpectralState, columns, row
from .stepping import Span, TrainingError, make_stepper
from .summary import summarise

SPAN_SECONDS = 0.2  # of steps at a time, so that Ctrl-C and the progress bar stay lively


@dataclass(frozen=True, eq=False)
class Progress:
    """What an observer hears after every few steps.

    The run has reached `step` at `flow_time`, and `loss` is that of its last step. `record` is the row of metrics that
    was added since it was last heard, if there was one.
    """

    step: int
    flow_time: float
    loss: float
    record: SpectralState | None


Observer = Callable[[Progress], None]


def run(config: RunConfig, path: str | Path, observer: Observer | None = None, *, figures: bool = True) -> LoadedRun:
    """Run `config` in a new folder and return the finished run; `figures`: whether to draw them.

    Raises FolderError where the folder cannot be used, StorageError where a file cannot be written, TrainingError where
    the loss diverges, KeyboardInterrupt on Ctrl-C; after each but the first the folder can be resumed. ConfigError,
    without a folder, where the configuration asks for a GPU that cannot be had.
    """
    device = config.resolved_device()
    with RunFolder.create(Path(path), config) as folder:
        return _complete(folder, device, observer, figures)


def resume(
    path: str | Path, observer: Observer | None = None, *, figures: bool = True, device: str | None = None
) -> LoadedRun:
    """Go on with the run in a folder from its last checkpoint; its files end as those of an unbroken run.

    `device`: where to, as the configuration's, which it replaces for this time. On another kind of device than before,
    of which a warning tells, the files are those of an unbroken run up to rounding. A finished run is returned as it
    is. Raises what `run` raises, and CheckpointError where no checkpoint is usable.
    """
    with RunFolder.open(Path(path)) as folder:
        if is_complete(folder.path):
            return load_run(folder.path)
        config = folder.config if device is None else replace(folder.config, device=device)
        return _complete(folder, config.resolved_device(), observer, figures)


def _complete(folder: RunFolder, device: torch.device, observer: Observer | None, figures: bool) -> LoadedRun:
    """Train to the end, then write results and figures."""
    clock = _Clock(folder.path / "timing.json", device)
    _train(folder, device, clock, observer)
    _finish(folder, clock, figures)
    return load_run(folder.path)


def _finish(folder: RunFolder, clock: _Clock, figures: bool) -> None:
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


class _Clock:
    """Seconds spent on a run over all its sessions, and the last one's machine; kept apart from the files that are the
    same for every machine."""

    def __init__(self, file: Path, device: torch.device) -> None:
        self._file = file
        before = read_json(file, ("wall_s",)) or {"wall_s": 0.0}
        self._before = float(before["wall_s"])
        self._start = time.perf_counter()
        self._machine = machine(device)
        _warn_of_another_device(before.get("machine"), self._machine["trained on"])

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    def store(self, *, complete: bool = False) -> None:
        write_json(self._file, {"wall_s": self.seconds(), "complete": complete, "machine": self._machine})


def _warn_of_another_device(machine_before: Any, now: str) -> None:
    """Where a run goes on on another kind of device than its last session's, whose facts may be missing.

    Facts that name no device are from when there was only the CPU.
    """
    before = machine_before.get("trained on", "cpu") if isinstance(machine_before, dict) else None
    if isinstance(before, str) and before != now and "cpu" in (before, now):
        warnings.warn(
            f"the run was on {before} and goes on on {now}: the results may differ in rounding from those of an "
            "unbroken run",
            RuntimeWarning,
            stacklevel=5,
        )


@dataclass(eq=False)
class _State:
    """What training changes. `step_size` is the flow time of the last step."""

    step: int
    flow_time: float
    step_size: float
    parameters: Parameters
    optimizer: Optimizer


def _train(folder: RunFolder, device: torch.device, clock: _Clock, observer: Observer | None) -> None:
    config, metrics_file = folder.config, folder.path / "metrics.csv"
    store = CheckpointStore(folder.path / "checkpoints", config.checkpoint_every, config.steps)
    stored = store.load_latest(lambda found: mismatch(metrics_file, found.metrics_bytes, found.metrics_digest))
    if stored is None and metrics_file.exists():
        raise CheckpointError(f"no checkpoint is left in {store.path}, though {metrics_file} has records of steps")
    state = _restore(config, stored, device)
    if stored is None:
        store.save(_checkpoint(state, 0, ""))
    elif stored.step == max(store.steps()):
        store.prune(stored.step)  # a process that was killed while it stored this one could not
    log = MetricsLog(metrics_file, columns(config.n_heads, config.n_tasks), stored.metrics_bytes if stored else 0)

    def save() -> None:
        log.sync()
        store.save(_checkpoint(state, log.length, log.digest))
        clock.store()

    try:
        with _interruptions() as interrupted:
            _loop(config, state, log, save, interrupted, observer)
    finally:
        log.close()


def _loop(
    config: RunConfig,
    state: _State,
    log: MetricsLog,
    save: Callable[[], None],
    interrupted: threading.Event,
    observer: Observer | None,
) -> None:
    """Spans of steps, records and checkpoints until the last step, or until `interrupted` is set."""
    task, stepper = config.task(), make_stepper(config.objective(), state.parameters, state.optimizer)
    count_examples = EffectiveExamples(task, config.evaluation_seed, config.torch_dtype())
    while True:
        record = None
        if state.step % config.record_every == 0 or state.step == config.steps:  # described before the weights move
            kq, ov = (matrix.detach().cpu() for matrix in state.parameters.to_combined())
            record, examples = SpectralState.of(task, kq, ov), count_examples(kq)
        span = stepper.advance(state.step, _steps_ahead(config, state.step), state.flow_time, SPAN_SECONDS)
        if record is not None and (span.finite or span.steps > 0):
            log.append(row(_scalars(config, state, span), record, examples))
        _check_finite(state.step, span)
        if state.step == config.steps:
            _tell(observer, state, span, record)
            log.sync()
            return
        state.step, state.flow_time, state.step_size = state.step + span.steps, span.flow_time, span.step_size
        _tell(observer, state, span, record)
        if state.step % config.checkpoint_every == 0 or state.step == config.steps or interrupted.is_set():
            save()
        if interrupted.is_set():
            raise KeyboardInterrupt


def _steps_ahead(config: RunConfig, step: int) -> int:
    """Steps until the next row of metrics, the next checkpoint or the end, whichever comes first."""
    return min(*(every - step % every for every in (config.record_every, config.checkpoint_every)), config.steps - step)


def _scalars(config: RunConfig, state: _State, span: Span) -> dict[str, float | int]:
    """What a row of metrics says of the run and of the loss at the weights from which a span starts."""
    return {
        "step": state.step,
        "flow_time": state.flow_time,
        "step_size": state.step_size,
        "prompts_seen": _prompts_seen(config, state.step),
        "loss": span.first_loss,
        "gradient_norm": span.first_gradient_norm,
    }


def _check_finite(step: int, span: Span) -> None:
    """TrainingError where a span that started at `step` stopped at something that is not a number."""
    if not span.finite:
        raise TrainingError(
            f"the loss or its gradient stopped being finite at step {step + span.steps} (loss {span.last_loss}): use a "
            "smaller learning_rate"
        )


def _tell(observer: Observer | None, state: _State, span: Span, record: SpectralState | None) -> None:
    if observer is not None:
        observer(Progress(state.step, state.flow_time, span.last_loss, record))


def _prompts_seen(config: RunConfig, step: int) -> int:
    """Prompts that the weights at `step` were trained on."""
    return step * config.n_prompts if has_prompts(config.estimator) else 0


def _restore(config: RunConfig, stored: Checkpoint | None, device: torch.device) -> _State:
    parameters, optimizer = config.start_parameters(), config.make_optimizer()
    if stored is None:
        return _State(0, 0.0, 0.0, parameters.to(device), optimizer)
    optimizer.load_state(stored.optimizer, device)
    parameters = parameters.with_tensors(stored.parameters).to(device)
    return _State(stored.step, stored.flow_time, stored.step_size, parameters, optimizer)


def _checkpoint(state: _State, metrics_bytes: int, metrics_digest: str) -> Checkpoint:
    return Checkpoint(
        state.step,
        state.flow_time,
        state.step_size,
        metrics_bytes,
        metrics_digest,
        state.parameters.tensors(),
        state.optimizer.state(),
    )


@contextmanager
def _interruptions() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is never cut in two; a second Ctrl-C interrupts at once.

    Outside the main thread, where signals cannot be handled, the event stays unset.
    """
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> Any:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
