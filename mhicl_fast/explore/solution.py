"""What a scenario leads to: the solved flow, its phases and winners, and what theory and early equations predict."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import spectral
from ..spectral import (
    Allocation,
    Escape,
    HeadRoles,
    Phases,
    Plateau,
    PredictedState,
    ShortContextWarning,
    Theory,
    Trajectory,
)
from ..spectral.phases import LEARNT_SHARE
from .scenario import Scenario

RTOL = 1e-6  # three times as fast as the solver's default; times come out to 2e-4, less than a pixel
# The flow is solved for this many times the emergence time: balanced flows end in the state that they emerge into, the
# others stay near it for a while and leave. It is solved once more, for longer, where it has not come to rest.
_HORIZON = {"balanced": 30.0, "combined": 1000.0, "unbalanced": 1000.0}
_LONGER = 30.0
_STILL = 0.01  # relative change of the loss over the last two thirds of the time that counts as rest
_ARRIVED = 0.01  # of the loss: how near its end is called arrived
_LOG_TIME = 12.0  # time is drawn logarithmically where the flow arrives this many times later than it emerges
# Around the way from warm-up's end to arrival a picture of linear time shows this many times that way before and after
# it, one of logarithmic time this factor.
_BEFORE, _BEYOND, _FACTOR = 1.5, 0.6, 3.0
_FROM_ZERO = 0.3  # a linear picture that would begin before this fraction of warm-up begins at 0
_APART = 0.01  # relative spread of heads that started equal


class ScenarioError(ValueError):
    """A setting that has no solution; the message says why."""


class Winners(NamedTuple):
    """The head of each task, (I,), −1 where none, when the task's share reaches ½; and that time, inf where never, with
    the head at the end."""

    head: NDArray[np.intp]
    time: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Solution:
    """A solved scenario.

    trajectory reaches further than the picture, from t_first to t_last, whose time is logarithmic where log_time.
    reference is theory's state with one head for each task, shared where there are too few, at the trajectory's order
    where it is known; plateau and escape are relative to it. roles: of the heads at the end. parted: when heads that
    start equal differ by 1 %, by rounding alone; None where they start different or stay equal.
    settled: whether the loss came to rest with all tasks learnt. notes: what the solver had to say.
    """

    scenario: Scenario
    trajectory: Trajectory
    t_first: float
    t_last: float
    log_time: bool
    phases: Phases
    theory: Theory
    reference: PredictedState
    plateau: Plateau | None
    escape: Escape | None
    predicted: Allocation
    observed: Winners
    roles: HeadRoles
    settled: bool
    parted: float | None
    notes: tuple[str, ...]

    def times(self, count: int) -> NDArray[np.float64]:
        """Times from the start to the picture's end, `count` of them inside it and even in its scale."""
        if self.log_time:
            return np.geomspace(self.t_first, self.t_last, count).clip(self.t_first, self.t_last)
        before = np.linspace(0.0, self.t_first, count // 8 if self.t_first > 0 else 0, endpoint=False)
        return np.concatenate([before, np.linspace(self.t_first, self.t_last, count)])


def solve_scenario(scenario: Scenario) -> Solution:
    """Solve the flow to its limit, or as long as it takes to see that it has none; ScenarioError where it cannot be."""
    try:
        return _solve(scenario)
    except (ValueError, RuntimeError) as error:
        raise ScenarioError(str(error)) from error


def _solve(scenario: Scenario) -> Solution:
    parameters = "combined" if scenario.flow == "combined" else "factored"
    predicted = spectral.predict_allocation(scenario.task(), *scenario.start_values(), parameters=parameters)
    trajectory, settled, notes = _solve_to_the_end(scenario, predicted)
    phases = trajectory.phases()
    t_first, t_last, log_time = _picture(trajectory, phases)
    theory = cached_theory(scenario)
    reference = _reference(scenario, theory)
    plateau, escape = spectral.plateau_and_escape(trajectory.t, trajectory.loss, reference.loss)
    return Solution(
        scenario=scenario,
        trajectory=trajectory,
        t_first=t_first,
        t_last=t_last,
        log_time=log_time,
        phases=phases,
        theory=theory,
        reference=reference,
        plateau=plateau,
        escape=escape,
        predicted=predicted,
        observed=_winners(trajectory),
        roles=spectral.head_roles(trajectory.task, trajectory.mu[-1], trajectory.omega[-1]),
        settled=settled,
        parted=_parted(scenario, trajectory),
        notes=notes,
    )


def _solve_to_the_end(scenario: Scenario, predicted: Allocation) -> tuple[Trajectory, bool, tuple[str, ...]]:
    reached = predicted.time[np.isfinite(predicted.time)]
    unit = 1.0 + float(reached.max(initial=0.0))  # emergence, and the time that a large start takes to settle (λ = 1)
    t_end = _HORIZON[scenario.flow] * unit
    notes = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trajectory = solve_to(scenario, _rounded(t_end))
        if not _is_settled(trajectory):
            try:
                trajectory = solve_to(scenario, _rounded(_LONGER * t_end))
            except RuntimeError as error:  # what there is can be shown
                notes.append(str(error))
    notes += {str(warning.message) for warning in caught if issubclass(warning.category, ShortContextWarning)}
    return trajectory, _is_settled(trajectory), tuple(notes)


def solve_to(scenario: Scenario, t_end: float) -> Trajectory:
    """The scenario's flow up to `t_end`, as `spectral.solve` gives it."""
    return spectral.solve(
        scenario.task(),
        *scenario.start_arguments(),
        parameters=scenario.parameters,
        order=scenario.order,
        t_end=t_end,
        rtol=RTOL,
    )


@lru_cache(maxsize=64)
def _theory(n_tasks: int, n_heads: int, context_length: int, noise_std: float, n_covariates: int) -> Theory:
    return spectral.theory(Scenario(n_tasks, n_heads, context_length, noise_std, n_covariates).task(), n_heads)


def cached_theory(scenario: Scenario) -> Theory:
    """Theory for the scenario's task and heads; kept, as start, flow and order leave it as it is."""
    return _theory(
        scenario.n_tasks, scenario.n_heads, scenario.context_length, scenario.noise_std, scenario.n_covariates
    )


def _rounded(time: float) -> float:
    """Two digits, so that the call that reproduces a picture reads well."""
    return float(f"{time:.1e}")


def _is_settled(trajectory: Trajectory) -> bool:
    late = trajectory.loss[np.searchsorted(trajectory.t, trajectory.t[-1] / 3) :]
    learnt = trajectory.shares()[-1] >= LEARNT_SHARE
    return bool(np.ptp(late) <= _STILL * np.abs(late).max() and learnt.all())


def _picture(trajectory: Trajectory, phases: Phases) -> tuple[float, float, bool]:
    """First and last time, and whether time is logarithmic."""
    t, loss = trajectory.t, trajectory.loss
    away = np.flatnonzero(np.abs(loss - loss[-1]) > _ARRIVED * np.abs(loss[-1]))
    arrived = float(t[min(away[-1] + 1, len(t) - 1)]) if away.size else float(t[-1])
    if np.isfinite(phases.emergence_end):
        arrived = max(arrived, phases.emergence_end)
    begins = min(phases.warmup_end if phases.warmup_end > 0 else float(t[1]), arrived)  # nan > 0 is False
    if arrived > _LOG_TIME * _half_way(t, loss):
        return begins / _FACTOR, min(float(t[-1]), _FACTOR * arrived), True
    way = (arrived - begins) or arrived
    first = begins - _BEFORE * way
    return first if first > _FROM_ZERO * begins else 0.0, min(float(t[-1]), arrived + _BEYOND * way), False


def _half_way(t: NDArray[np.float64], loss: NDArray[np.float64]) -> float:
    """When the loss has first come half of its way."""
    return float(t[max(1, int(np.argmax(loss <= (loss[0] + loss.min()) / 2)))])


def _reference(scenario: Scenario, theory: Theory) -> PredictedState:
    names = ["one_head_per_task", "best_shared_heads", "single_head"]
    if scenario.order == "first":
        names = ["one_head_per_task_first_order", "single_head_first_order", *names]
    if scenario.n_heads > 1:
        names = [name for name in names if not name.startswith("single")]
    return next(state for state in (getattr(theory, name) for name in names) if state is not None)


def _winners(trajectory: Trajectory) -> Winners:
    task = trajectory.task
    time = spectral.half_learnt(trajectory.t, trajectory.shares())
    head = spectral.observed_allocation(task, trajectory.mu[-1], trajectory.omega[-1])
    for i in np.flatnonzero(np.isfinite(time)):
        mu, omega, *_ = trajectory(time[i])
        head[i] = spectral.observed_allocation(task, mu, omega)[i]
    return Winners(head, time)


def _parted(scenario: Scenario, trajectory: Trajectory) -> float | None:
    """When heads that start equal, and in exact arithmetic stay so, are seen to differ."""
    if scenario.start != "equal" or scenario.flow == "unbalanced" or scenario.n_heads == 1:
        return None
    spread = np.ptp(trajectory.mu, axis=1).max(1) / np.abs(trajectory.mu).max((1, 2))
    apart = np.flatnonzero(spread > _APART)
    return float(trajectory.t[apart[0]]) if apart.size else None
