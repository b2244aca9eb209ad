"""An adaptive explicit integrator for large gradient flows, which are mildly stiff near their limit.

Two methods share the work, chosen at each step by the evaluations that they need per unit of time. Dormand and Prince's
order 5 is accurate where the flow turns, as in emergence, but its steps are bound by the fastest decay, 3.2 / radius.
Chebyshev stages of order 2 carry over long steps near the limit, at a cost that grows with the square root of their
length. How long a step of the latter could be is known from any step's ends, so nothing is spent on trying.

The Jacobian of a gradient flow is symmetric, so that one number, its spectral radius, tells which steps are stable. It
comes from a power iteration with differences of the velocity, repeated as the flow moves.

All that a step depends on is in a `SolverState`: a flow that is stored and restored goes on bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...spectral._inputs import Floats
from . import chebyshev, dormand_prince
from .chebyshev import Field, chebyshev_error, chebyshev_step, stages_for, stiffness_of
from .dormand_prince import dormand_prince_step

_ROUNDING = float(np.finfo(np.float64).eps)
_RADIUS_AGE = 25  # accepted steps after which the spectral radius is estimated anew
_RADIUS_MARGIN = 1.2
_POWER_ITERATIONS = 50


class StepError(RuntimeError):
    """No step, however short, leads on from here."""


@dataclass(frozen=True, eq=False)
class SolverState:
    """A point of the trajectory and everything that the next steps depend on.

    t, y (n,), velocity y' (n,). explicit_step, chebyshev_step: the lengths that either method's accuracy allows.
    radius: an upper estimate of the Jacobian's spectral radius, made radius_age steps ago, and eigenvector (n,), of
    length 1. steps, rejected, evaluations: counts so far.
    """

    t: float
    y: Floats
    velocity: Floats
    explicit_step: float
    chebyshev_step: float
    radius: float
    radius_age: int
    eigenvector: Floats
    steps: int
    rejected: int
    evaluations: int


@dataclass(frozen=True)
class _Plan:
    """The next step: its length, its number of evaluations, and the method."""

    step: float
    evaluations: int
    by_chebyshev: bool


class FlowSolver:
    """The integrator of y' = field(y), y (n,); `field` gives entries that are not finite where it does not exist.

    groups (G,): the first index of each group of consecutive entries. The error of a group is its Euclidean norm in
    units of atol + rtol ‖y‖ of the group, and a step is accepted where no group's exceeds 1: steps do not depend on the
    basis in which a group is written.
    """

    def __init__(self, field: Field, groups: NDArray[np.intp], rtol: float, atol: float) -> None:
        self._field, self._groups, self._rtol, self._atol = field, groups, rtol, atol
        # Rounding errors grow with the square of the stages of a step: they must stay well below rtol.
        self._most_stages = max(2, int(np.sqrt(rtol / (10 * _ROUNDING))))

    def start(self, y: Floats) -> SolverState:
        """The state at t = 0; StepError where the velocity is not finite there."""
        velocity = self._field(y)
        if not np.isfinite(velocity).all():
            raise StepError("the velocity is not finite at the start")
        speed = self._norms(velocity)
        reach = (self._atol + self._norms(y))[speed > 0] / speed[speed > 0]
        step = 0.01 * float(np.min(reach, initial=np.inf))
        state = SolverState(0.0, y, velocity, step, step, 0.0, 0, np.zeros_like(y), 0, 0, 1)
        return self._with_radius(state)

    def next_step(self, state: SolverState) -> float:
        """The length of the step that `advance` tries first."""
        return self._plan(state, np.inf).step

    def advance(self, state: SolverState, limit: float = np.inf) -> SolverState:
        """One accepted step, not beyond t = limit; StepError where even the shortest is refused."""
        while True:
            plan = self._plan(state, limit)
            step = plan.step
            if not step > 4 * _ROUNDING * state.t:
                raise StepError(f"the step length has come down to {step:.3g}")
            if plan.by_chebyshev:
                y, velocity = chebyshev_step(self._field, state.y, state.velocity, step, plan.evaluations)
                error = chebyshev_error(state.y, state.velocity, y, velocity, step)
            else:
                y, velocity, error = dormand_prince_step(self._field, state.y, state.velocity, step)
            size = self._relative(error, state.y, y) if np.isfinite(velocity).all() else np.inf
            state = replace(state, evaluations=state.evaluations + plan.evaluations)
            if size <= 1:
                t = limit if step == limit - state.t else state.t + step
                return self._accepted(state, plan.by_chebyshev, step, t, y, velocity, size)
            state = self._rejected(state, plan.by_chebyshev, step, size)

    def _plan(self, state: SolverState, limit: float) -> _Plan:
        """The method that advances further per evaluation."""
        radius, left = max(state.radius, 1e-200), limit - state.t  # the radius is 0 where nothing moves
        explicit = min(state.explicit_step, dormand_prince.STABLE_UP_TO / radius, left)
        stabilised = min(state.chebyshev_step, stiffness_of(self._most_stages) / radius, left)
        stages = stages_for(stabilised * radius)
        if stages * explicit < dormand_prince.EVALUATIONS * stabilised:
            return _Plan(stabilised, stages, True)
        return _Plan(explicit, dormand_prince.EVALUATIONS, False)

    def _accepted(
        self, state: SolverState, by_chebyshev: bool, step: float, t: float, y: Floats, velocity: Floats, size: float
    ) -> SolverState:
        if by_chebyshev:
            # What order 5 could do is not known: let it have its chance again by and by.
            explicit, second_order = 2 * state.explicit_step, size
        else:
            explicit = step * _change(size, dormand_prince.ORDER)
            error = chebyshev_error(state.y, state.velocity, y, velocity, step)
            second_order = self._relative(error, state.y, y)
        state = replace(
            state,
            t=t,
            y=y,
            velocity=velocity,
            explicit_step=explicit,
            chebyshev_step=step * _change(second_order, chebyshev.ORDER + 1),
            radius_age=state.radius_age + 1,
            steps=state.steps + 1,
        )
        return self._with_radius(state) if state.radius_age >= _RADIUS_AGE else state

    def _rejected(self, state: SolverState, by_chebyshev: bool, step: float, size: float) -> SolverState:
        order = chebyshev.ORDER + 1 if by_chebyshev else dormand_prince.ORDER
        shorter = step * (_change(size, order) if np.isfinite(size) else 0.25)
        state = replace(state, rejected=state.rejected + 1)
        if by_chebyshev:
            state = replace(state, chebyshev_step=shorter)
        else:
            state = replace(state, explicit_step=shorter)
        return self._with_radius(state) if state.radius_age > 0 else state  # it may have been a radius of the past

    def _relative(self, error: Floats, y: Floats, y_after: Floats) -> float:
        allowed = self._atol + self._rtol * np.maximum(self._norms(y), self._norms(y_after))
        return float(np.max(self._norms(error) / allowed))

    def _norms(self, y: Floats) -> Floats:
        return np.sqrt(np.add.reduceat(np.square(y), self._groups))

    def _with_radius(self, state: SolverState) -> SolverState:
        """The state with a fresh spectral radius, by power iteration from the last eigenvector."""
        signs = np.random.default_rng(state.steps).choice([-1.0, 1.0], state.y.size)
        vector = state.eigenvector + _unit(signs * state.velocity) / 4  # so that new directions can come in
        size = np.sqrt(_ROUNDING) * (np.linalg.norm(state.y) or 1.0)
        radius, evaluations = 0.0, 0
        for _ in range(_POWER_ITERATIONS):
            vector = _unit(vector)
            moved = self._field(state.y + size * vector)
            evaluations += 1
            if not np.isfinite(moved).all():  # at the edge of the domain: closer
                size /= 4
                continue
            vector = (moved - state.velocity) / size
            previous, radius = radius, float(np.linalg.norm(vector))
            if abs(radius - previous) <= 0.01 * radius:
                break
        return replace(
            state,
            radius=_RADIUS_MARGIN * radius,
            radius_age=0,
            eigenvector=_unit(vector),
            evaluations=state.evaluations + evaluations,
        )


def _change(size: float, order: int) -> float:
    """The factor on the step that would bring an error of this size, of that order, to 0.9^order."""
    return float(min(10.0, max(0.1, 0.9 * max(size, 1e-30) ** (-1 / order))))


def _unit(vector: Floats) -> Floats:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector
