"""What is kept of a run while it trains: rows of metrics, checkpoints, times, and the news for an observer.

Only the process that leads keeps anything; those that follow train along with a `Follower` in the `Recorder`'s place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ..processes import Processes, in_short
from .checkpoints import Checkpoint, CheckpointError, CheckpointStore
from .clock import Clock
from .folder import Config, FolderError, RunFolder, read_config
from .metrics import MetricsLog, mismatch, read_metrics
from .optimisers import Optimizer
from .stepping import Span, Trained

Keeping = TypeVar("Keeping", bound="Recorder[Any, Any]")
Record = TypeVar("Record")
Weights = TypeVar("Weights", bound=Trained)


@dataclass(frozen=True, eq=False)
class Progress(Generic[Record]):
    """What an observer hears after every few steps.

    The run has reached `step` at `flow_time`, and `loss` is that of its last step. `record` is the row of metrics that
    was added since it was last heard, if there was one.
    """

    step: int
    flow_time: float
    loss: float
    record: Record | None


Observer = Callable[[Progress[Any]], None]


@dataclass(eq=False)
class State(Generic[Weights]):
    """What training changes. `step_size` is the flow time of the last step."""

    step: int
    flow_time: float
    step_size: float
    parameters: Weights
    optimizer: Optimizer

    @classmethod
    def restore(
        cls, parameters: Weights, optimizer: Optimizer, stored: Checkpoint | None, device: torch.device
    ) -> State[Weights]:
        """That of a checkpoint, or without one of the start, which the parameters and the update rule are."""
        if stored is None:
            return cls(0, 0.0, 0.0, parameters.to(device), optimizer)
        optimizer.load_state(stored.optimizer, device)
        parameters = parameters.with_tensors(stored.parameters).to(device)
        return cls(stored.step, stored.flow_time, stored.step_size, parameters, optimizer)

    def checkpoint(self, metrics_bytes: int, metrics_digest: str) -> Checkpoint:
        """The state with what is recorded up to it."""
        return Checkpoint(
            self.step,
            self.flow_time,
            self.step_size,
            metrics_bytes,
            metrics_digest,
            self.parameters.tensors(),
            self.optimizer.state(),
        )

    def count(self, span: Span) -> None:
        """Move on by the steps that a span has made."""
        if span.steps > 0:
            self.step, self.flow_time, self.step_size = self.step + span.steps, span.flow_time, span.step_size


class Follower(Generic[Weights, Record]):
    """Keeps nothing, as the leader does: what stands in for a `Recorder` elsewhere."""

    def __init__(self, processes: Processes, observer: Observer | None = None) -> None:
        self._processes = processes
        self._observer = observer

    def describe(self, state: State[Weights]) -> None:
        """Look at the state before the weights move."""

    def add(self, state: State[Weights], span: Span) -> None:
        """Add what the span from this state says of the loss there."""

    def tell(self, state: State[Weights], span: Span) -> None:
        """Give the observer the state that the span has led to."""
        self._news(state, span, None)

    def save(self, state: State[Weights]) -> None:
        """Store the state, so that the run can go on from it."""

    def why_lost(self, step: int, reason: str) -> str:
        """What to say where messages no longer get through."""
        return (
            f"{self._processes.name} lost the others at step {step}: {in_short(reason)}. Unless torchrun starts them "
            "again, go on from the last checkpoint, where the run's folder is, with: mhicl resume"
        )

    def _news(self, state: State[Weights], span: Span, record: Record | None) -> None:
        if self._observer is not None:
            self._observer(Progress(state.step, state.flow_time, span.last_loss, record))


class Recorder(Follower[Weights, Record], ABC):
    """Keeps the files of a run in its folder. Use as a context manager.

    `state` is what training starts from: the checkpoint `start`, or step 0 without one. What rows of metrics say is for
    each study to add.
    """

    def __init__(
        self,
        folder: RunFolder[Any],
        columns: Sequence[str],
        start: Checkpoint | None,
        state: State[Weights],
        clock: Clock,
        processes: Processes,
        observer: Observer | None,
    ) -> None:
        super().__init__(processes, observer)
        self._folder = folder
        self._config = folder.config
        self._clock = clock
        self._store = _store(folder)
        self._record: Record | None = None
        if start is None:
            self._store.save(state.checkpoint(0, ""))
        elif start.step == max(self._store.steps()):
            self._store.prune(start.step)  # a process that was killed while it stored this one could not
        length = 0 if start is None else start.metrics_bytes
        self._log = MetricsLog(_metrics_file(folder), columns, length)

    @abstractmethod
    def record(self, state: State[Weights]) -> Record:
        """What a row says of the weights."""

    @abstractmethod
    def row(self, state: State[Weights], span: Span, record: Record) -> Mapping[str, float | int]:
        """The row of these weights and of the loss there, from which the span starts."""

    def __enter__(self: Keeping) -> Keeping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._log.sync()
        finally:
            self._log.close()

    def describe(self, state: State[Weights]) -> None:
        due = state.step % self._config.record_every == 0 or state.step == self._config.steps
        self._record = self.record(state) if due else None

    def add(self, state: State[Weights], span: Span) -> None:
        if self._record is not None and (span.steps > 0 or (span.finite and not span.lost)):
            self._log.append(self.row(state, span, self._record))

    def tell(self, state: State[Weights], span: Span) -> None:
        self._news(state, span, self._record)

    def save(self, state: State[Weights]) -> None:
        self._log.sync()
        self._store.save(state.checkpoint(self._log.length, self._log.digest))
        self._clock.store()

    def why_lost(self, step: int, reason: str) -> str:
        return (
            f"lost another process at step {step}: {in_short(reason)} (--timeout {self._processes.timeout:g}). A "
            f"checkpoint of step {step} is stored; unless torchrun starts the run again, go on, alone or with any "
            f"number of processes, with: mhicl resume {self._folder.path}"
        )


def read_run(path: Path, kind: type[Config]) -> tuple[Config, dict[str, np.ndarray], Checkpoint]:
    """The configuration, the columns of metrics.csv and the last checkpoint of the run in a folder.

    FolderError where there is none of this kind, or no step was recorded yet, CheckpointError where no checkpoint is
    usable.
    """
    config, _ = read_config(path, kind)
    stored = CheckpointStore(path / "checkpoints", config.checkpoint_every, config.steps).load_latest(lambda _: None)
    metrics_file = path / "metrics.csv"
    flat = read_metrics(metrics_file) if metrics_file.exists() else {}
    if stored is None or not flat or not len(flat["step"]):
        raise FolderError(f"the run in {path} has no records yet")
    return config, flat, stored


def last_checkpoint(folder: RunFolder[Config]) -> Checkpoint | None:
    """The one that a run goes on from, None at its start; CheckpointError where none is usable."""
    store, metrics_file = _store(folder), _metrics_file(folder)
    found = store.load_latest(lambda one: mismatch(metrics_file, one.metrics_bytes, one.metrics_digest))
    if found is None and metrics_file.exists():
        raise CheckpointError(f"no checkpoint is left in {store.path}, though {metrics_file} has records of steps")
    return found


def _store(folder: RunFolder[Config]) -> CheckpointStore:
    return CheckpointStore(folder.path / "checkpoints", folder.config.checkpoint_every, folder.config.steps)


def _metrics_file(folder: RunFolder[Config]) -> Path:
    return folder.path / "metrics.csv"
