"""What is kept of a run while it trains: rows of metrics, checkpoints, times, and the news for an observer.

Only the process that leads keeps anything; those that follow train along with a `Follower` in the `Recorder`'s place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from ..processes import Processes, in_short
from .checkpoints import Checkpoint, CheckpointError, CheckpointStore
from .clock import Clock
from .config import RunConfig
from .folder import RunFolder
from .metrics import MetricsLog, mismatch
from .objective import has_prompts
from .optimisers import Optimizer
from .parameters import Parameters
from .records import EffectiveExamples, SpectralState, columns, row
from .stepping import Span


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


@dataclass(eq=False)
class State:
    """What training changes. `step_size` is the flow time of the last step."""

    step: int
    flow_time: float
    step_size: float
    parameters: Parameters
    optimizer: Optimizer

    @classmethod
    def restore(cls, config: RunConfig, stored: Checkpoint | None, device: torch.device) -> State:
        """That of a checkpoint, or the start's without one."""
        parameters, optimizer = config.start_parameters(), config.make_optimizer()
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


class Follower:
    """Keeps nothing, as the leader does: what stands in for a `Recorder` elsewhere."""

    def __init__(self, processes: Processes, observer: Observer | None = None) -> None:
        self._processes = processes
        self._observer = observer

    def describe(self, state: State) -> None:
        """Look at the state before the weights move."""

    def add(self, state: State, span: Span) -> None:
        """Add what the span from this state says of the loss there."""

    def tell(self, state: State, span: Span) -> None:
        """Give the observer the state that the span has led to."""
        self._news(state, span, None)

    def save(self, state: State) -> None:
        """Store the state, so that the run can go on from it."""

    def why_lost(self, step: int, reason: str) -> str:
        """What to say where messages no longer get through."""
        return (
            f"{self._processes.name} lost the others at step {step}: {in_short(reason)}. Unless torchrun starts them "
            "again, go on from the last checkpoint, where the run's folder is, with: mhicl resume"
        )

    def _news(self, state: State, span: Span, record: SpectralState | None) -> None:
        if self._observer is not None:
            self._observer(Progress(state.step, state.flow_time, span.last_loss, record))


class Recorder(Follower):
    """Keeps the files of a run in its folder. Use as a context manager.

    `state` is what training starts from: the checkpoint `start`, or step 0 without one.
    """

    def __init__(
        self,
        folder: RunFolder,
        start: Checkpoint | None,
        state: State,
        clock: Clock,
        processes: Processes,
        observer: Observer | None,
    ) -> None:
        super().__init__(processes, observer)
        config = folder.config
        self._folder = folder
        self._config = config
        self._clock = clock
        self._store = _store(folder)
        self._task = config.task()
        self._count_examples = EffectiveExamples(self._task, config.evaluation_seed, config.torch_dtype())
        self._described: tuple[SpectralState, np.ndarray] | None = None
        if start is None:
            self._store.save(state.checkpoint(0, ""))
        elif start.step == max(self._store.steps()):
            self._store.prune(start.step)  # a process that was killed while it stored this one could not
        length = 0 if start is None else start.metrics_bytes
        self._log = MetricsLog(_metrics_file(folder), columns(config.n_heads, config.n_tasks), length)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._log.sync()
        finally:
            self._log.close()

    def describe(self, state: State) -> None:
        self._described = None
        if state.step % self._config.record_every == 0 or state.step == self._config.steps:
            kq, ov = (matrix.detach().cpu() for matrix in state.parameters.to_combined())
            self._described = SpectralState.of(self._task, kq, ov), self._count_examples(kq)

    def add(self, state: State, span: Span) -> None:
        if self._described is not None and (span.steps > 0 or (span.finite and not span.lost)):
            self._log.append(row(self._scalars(state, span), *self._described))

    def tell(self, state: State, span: Span) -> None:
        self._news(state, span, None if self._described is None else self._described[0])

    def save(self, state: State) -> None:
        self._log.sync()
        self._store.save(state.checkpoint(self._log.length, self._log.digest))
        self._clock.store()

    def why_lost(self, step: int, reason: str) -> str:
        return (
            f"lost another process at step {step}: {in_short(reason)} (--timeout {self._processes.timeout:g}). A "
            f"checkpoint of step {step} is stored; unless torchrun starts the run again, go on, alone or with any "
            f"number of processes, with: mhicl resume {self._folder.path}"
        )

    def _scalars(self, state: State, span: Span) -> dict[str, float | int]:
        """What a row says of the run and of the loss at the weights from which a span starts."""
        prompts = self._config.n_prompts if has_prompts(self._config.estimator) else 0
        return {
            "step": state.step,
            "flow_time": state.flow_time,
            "step_size": state.step_size,
            "prompts_seen": state.step * prompts,  # that the weights at this step were trained on
            "loss": span.first_loss,
            "gradient_norm": span.first_gradient_norm,
        }


def last_checkpoint(folder: RunFolder) -> Checkpoint | None:
    """The one that a run goes on from, None at its start; CheckpointError where none is usable."""
    store, metrics_file = _store(folder), _metrics_file(folder)
    found = store.load_latest(lambda one: mismatch(metrics_file, one.metrics_bytes, one.metrics_digest))
    if found is None and metrics_file.exists():
        raise CheckpointError(f"no checkpoint is left in {store.path}, though {metrics_file} has records of steps")
    return found


def _store(folder: RunFolder) -> CheckpointStore:
    return CheckpointStore(folder.path / "checkpoints", folder.config.checkpoint_every, folder.config.steps)


def _metrics_file(folder: RunFolder) -> Path:
    return folder.path / "metrics.csv"
