"""Noise-free gradient flow of full weights, with an adaptive solver, restartable.

The steps that the solver takes do not depend on where the flow ends: the last stretch, shorter than the next step, is
done aside, and a checkpoint holds the state before it. So a flow that was killed, or one that ended and is extended,
goes on as if it had never stopped, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...spectral._inputs import check_order, check_positive
from ...tasks import MultiTaskRegression
from ..parameters import Parameters
from .checkpoint import FlowFile, StoredFlow, flow_identity
from .records import FlowRecords
from .solver import FlowSolver, SolverState, StepError
from .trajectory import MatrixTrajectory
from .velocity import Objective, Velocity


class MatrixFlowError(RuntimeError):
    """A flow that cannot go on; `trajectory` is what there is of it."""

    def __init__(self, message: str, trajectory: MatrixTrajectory) -> None:
        super().__init__(message)
        self.trajectory = trajectory


@dataclass(frozen=True)
class FlowProgress:
    """What an observer hears after every step: flow time and the counts so far."""

    t: float
    t_end: float
    steps: int
    evaluations: int


def matrix_flow(
    objective: Objective,
    parameters: Parameters,
    *,
    t_end: float,
    order: str = "leading",
    rtol: float = 1e-7,
    atol: float = 1e-10,
    record_every: int = 1,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Callable[[FlowProgress], None] | None = None,
) -> MatrixTrajectory:
    """θ' = −∂Loss/∂θ for all weights of `Combined` or `Factored` parameters in float64, from t = 0 to `t_end`.

    objective: a MultiTaskRegression, for its closed-form loss (`spectral.asymptotic_loss`) at `order`, any supports and
    covariance, which needs logits that read no labels and outputs that read no covariates; or a function
    (kq (H, D, D), ov (H, I, D)) -> scalar tensor, differentiable and the same at every call, as a frozen set of prompts
    is: `lambda kq, ov: population_loss(task, kq, ov, seed=0, step=0)`; `order` is then unused. At leading order the
    closed form has det(G)^−½ where `spectral.solve` has exp tr(W_hᵀW_g), its limit for many covariates;
    `spectral.exponential_loss` is the closed form with the latter.

    rtol, atol: the error of one step in each head of each tensor, ‖error‖ ≤ atol + rtol ‖θ‖ in Euclidean norms, so
    that steps do not depend on the basis. Unstable directions that are excited by less than atol are followed in
    direction, but not in time.
    record_every: record every so many steps, besides start and end; a record holds all entries that move.
    checkpoint: a file that holds the flow, written atomically every `checkpoint_seconds` of wall time, on errors,
    on Ctrl-C and at the end. A later call with the same arguments goes on from there and ends bit-identical to an
    unbroken flow on the same machine; with a larger `t_end` it extends the flow.

    Raises ValueError and TypeError for unusable arguments and where the loss does not exist at the start,
    MatrixFlowError, a RuntimeError that names the time and holds the trajectory, where the flow runs into the edge of
    its domain; CheckpointError for a checkpoint of another flow, StorageError where it cannot be written.
    """
    t_end, rtol, atol = check_positive("t_end", t_end), check_positive("rtol", rtol), check_positive("atol", atol)
    if not 1e-12 <= rtol <= 0.1:
        raise ValueError(f"rtol must be between 1e-12 and 0.1, got {rtol}")
    if isinstance(record_every, bool) or not isinstance(record_every, int) or record_every < 1:
        raise ValueError(f"record_every must be a positive integer, got {record_every!r}")
    _check_parameters(parameters)
    if isinstance(objective, MultiTaskRegression):
        check_order(order, objective.context_length)
    velocity = Velocity(objective, parameters, order)
    start = velocity.flatten(parameters.tensors())
    loss = velocity.loss(start)
    if not np.isfinite(loss):
        raise ValueError(f"the loss at the start must be finite, got {loss}")
    solver = FlowSolver(velocity, velocity.groups, rtol, atol)
    file = None
    if checkpoint is not None:
        identity = flow_identity(objective, parameters, start, order, loss, rtol, atol, record_every)
        file = FlowFile(Path(checkpoint), identity, check_positive("checkpoint_seconds", checkpoint_seconds))
    stored = file.load() if file is not None else None
    if stored is None:
        stored = StoredFlow(solver.start(start), FlowRecords.beginning(start, loss))
    if stored.state.t > t_end:
        raise ValueError(f"{checkpoint} holds a flow that is at t = {stored.state.t:g} already, past t_end = {t_end:g}")
    flow = _Flow(velocity, solver, stored, record_every)
    task = objective if isinstance(objective, MultiTaskRegression) else None

    def trajectory(records: FlowRecords) -> MatrixTrajectory:
        return MatrixTrajectory.of(records, flow.reached.state.evaluations, velocity, task)

    try:
        return trajectory(flow.follow(t_end, file, progress or (lambda _: None)))
    except StepError as error:
        reached = flow.reached.state
        raise MatrixFlowError(
            f"the flow could not be followed past t = {reached.t:.6g}: {error}; the loss ceases to exist near there, "
            "or is not smooth",
            trajectory(flow.ending_at(reached)),
        ) from None
    finally:
        if file is not None:
            file.save(flow.reached)


def _check_parameters(parameters: Parameters) -> None:
    for name, tensor in parameters.tensors().items():
        if tensor.dtype != torch.float64 or tensor.device.type != "cpu":
            raise TypeError(f"a flow needs float64 parameters on the CPU, {name} is {tensor.dtype} on {tensor.device}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"parameters must be finite, {name} has NaN or infinite entries")


@dataclass(eq=False)
class _Flow:
    """The solver's loop. `reached` changes in one assignment, so that an interrupt finds state and records together."""

    velocity: Velocity
    solver: FlowSolver
    reached: StoredFlow
    record_every: int

    def follow(self, t_end: float, file: FlowFile | None, observe: Callable[[FlowProgress], None]) -> FlowRecords:
        """Go on to the last whole step before t_end, and return the records up to t_end."""
        while self.reached.state.t + self.solver.next_step(self.reached.state) < t_end:
            state, records = self.solver.advance(self.reached.state), self.reached.records
            if state.t > t_end:  # by the other method, after the planned step was refused
                break
            if state.steps % self.record_every == 0:
                records = records.with_record(state.t, state.y, self.velocity.loss(state.y))
            self.reached = StoredFlow(state, records)
            observe(FlowProgress(state.t, t_end, state.steps, state.evaluations))
            if file is not None and file.is_due():
                file.save(self.reached)
        state = self.reached.state
        while state.t < t_end:
            state = self.solver.advance(state, t_end)
        observe(FlowProgress(state.t, t_end, state.steps, state.evaluations))
        return self.ending_at(state)

    def ending_at(self, state: SolverState) -> FlowRecords:
        """The records, with one at `state` as their end."""
        records = self.reached.records
        if records.t[-1] == state.t:
            return records
        return records.with_record(state.t, state.y, self.velocity.loss(state.y))
