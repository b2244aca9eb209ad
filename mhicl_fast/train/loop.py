"""A run from start to figures: the training loop, its checkpoints, what happens on Ctrl-C, and resuming."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .checkpoints import Checkpoint, CheckpointError, CheckpointStore
from .config import RunConfig
from .folder import RunFolder, read_json, write_json
from .loaded import LoadedRun, load_run
from .machine import machine
from .metrics import MetricsLog, mismatch
from .objective import Objective
from .odes import compare_with_odes
from .optimisers import Optimizer
from .parameters import Parameters, pull_back
from .records import EffectiveExamples, SpectralState, columns, gradient_norm, row
from .summary import summarise


class TrainingError(RuntimeError):
    """Training cannot go on, as when the loss is no longer a number."""


@dataclass(frozen=True, eq=False)
class Progress:
    """What an observer hears after every step, and with `record` at every row of metrics."""

    step: int
    flow_time: float
    loss: float
    record: SpectralState | None


Observer = Callable[[Progress], None]


def run(config: RunConfig, path: str | Path, observer: Observer | None = None) -> LoadedRun:
    """Run `config` in a new folder and return the finished run.

    Raises FolderError where the folder cannot be used, StorageError where a file cannot be written, TrainingError where
    the loss diverges, KeyboardInterrupt on Ctrl-C; after each but the first the folder can be resumed.
    """
    with RunFolder.create(Path(path), config) as folder:
        return _complete(folder, observer)


def resume(path: str | Path, observer: Observer | None = None) -> LoadedRun:
    """Go on with the run in a folder from its last checkpoint; its files end as those of an unbroken run.

    A finished run is returned as it is. Raises what `run` raises, and CheckpointError where no checkpoint is usable.
    """
    with RunFolder.open(Path(path)) as folder:
        if (read_json(folder.path / "timing.json") or {}).get("complete"):
            return load_run(folder.path)
        return _complete(folder, observer)


def _complete(folder: RunFolder, observer: Observer | None) -> LoadedRun:
    """Train to the end, then write results and figures."""
    clock = _Clock(folder.path / "timing.json")
    _train(folder, clock, observer)
    _finish(folder, clock)
    return load_run(folder.path)


def _finish(folder: RunFolder, clock: _Clock) -> None:
    """Everything that follows from metrics and weights; done again if a run is killed within."""
    from ..plots import save_figures  # drawing libraries take a second to import

    trained = load_run(folder.path)
    odes = compare_with_odes(folder.config, trained.metrics, folder.path / "trajectories.npz")
    summary = summarise(folder.config, trained.metrics, trained.parameters, odes)
    wall = clock.seconds()
    summary |= {"wall_s": wall, "steps_per_second": folder.config.steps / wall}
    write_json(folder.path / "summary.json", summary)
    save_figures(load_run(folder.path))
    clock.store(complete=True)


class _Clock:
    """Seconds spent on a run over all its sessions, and the last one's machine; kept apart from the files that are the
    same for every machine."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._before = float((read_json(file, ("wall_s",)) or {"wall_s": 0.0})["wall_s"])
        self._start = time.perf_counter()
        self._machine = machine()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    def store(self, *, complete: bool = False) -> None:
        write_json(self._file, {"wall_s": self.seconds(), "complete": complete, "machine": self._machine})


@dataclass(eq=False)
class _State:
    """What training changes. `step_size` is the flow time of the last step."""

    step: int
    flow_time: float
    step_size: float
    parameters: Parameters
    optimizer: Optimizer


def _train(folder: RunFolder, clock: _Clock, observer: Observer | None) -> None:
    config, metrics_file = folder.config, folder.path / "metrics.csv"
    store = CheckpointStore(folder.path / "checkpoints", config.checkpoint_every, config.steps)
    stored = store.load_latest(lambda found: mismatch(metrics_file, found.metrics_bytes, found.metrics_digest))
    if stored is None and metrics_file.exists():
        raise CheckpointError(f"no checkpoint is left in {store.path}, though {metrics_file} has records of steps")
    state = _restore(config, stored)
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
    """Steps, records and checkpoints until the last step, or until `interrupted` is set."""
    task, objective = config.task(), config.objective()
    examples = EffectiveExamples(task, config.evaluation_seed, config.torch_dtype())
    while True:
        kq, ov = (matrix.detach() for matrix in state.parameters.to_combined())
        loss, gradients = _loss_and_gradients(objective, state, kq, ov)
        record = None
        if state.step % config.record_every == 0 or state.step == config.steps:
            record = SpectralState.of(task, kq, ov)
            scalars = {
                "step": state.step,
                "flow_time": state.flow_time,
                "step_size": state.step_size,
                "prompts_seen": _prompts_seen(config, state.step),
                "loss": loss,
                "gradient_norm": gradient_norm(gradients),
            }
            log.append(row(scalars, record, examples(kq)))
        if observer is not None:
            observer(Progress(state.step, state.flow_time, loss, record))
        if state.step == config.steps:
            log.sync()
            return
        state.step_size = state.optimizer.step(state.parameters.tensors(), gradients)
        state.flow_time += state.step_size
        state.step += 1
        if state.step % config.checkpoint_every == 0 or state.step == config.steps or interrupted.is_set():
            save()
        if interrupted.is_set():
            raise KeyboardInterrupt


def _loss_and_gradients(
    objective: Objective, state: _State, kq: torch.Tensor, ov: torch.Tensor
) -> tuple[float, Mapping[str, torch.Tensor]]:
    """The loss and its gradients in the trained tensors; TrainingError where they are not numbers."""
    try:
        loss, grad_kq, grad_ov = objective(kq, ov, state.step)
    except ValueError as error:  # the asymptotic loss has left the weights for which it exists
        raise TrainingError(f"step {state.step}: {error}; a smaller learning_rate may help") from error
    gradients = pull_back(state.parameters, grad_kq, grad_ov)
    if not (math.isfinite(loss) and all(bool(gradient.isfinite().all()) for gradient in gradients.values())):
        raise TrainingError(
            f"the loss or its gradient stopped being finite at step {state.step} (loss {loss}): use a "
            "smaller learning_rate"
        )
    return loss, gradients


def _prompts_seen(config: RunConfig, step: int) -> int:
    """Prompts that the weights at `step` were trained on."""
    return 0 if config.estimator == "asymptotic" else step * config.n_prompts


def _restore(config: RunConfig, stored: Checkpoint | None) -> _State:
    parameters, optimizer = config.start_parameters(), config.make_optimizer()
    if stored is None:
        return _State(0, 0.0, 0.0, parameters, optimizer)
    optimizer.load_state(stored.optimizer)
    return _State(
        stored.step, stored.flow_time, stored.step_size, parameters.with_tensors(stored.parameters), optimizer
    )


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
