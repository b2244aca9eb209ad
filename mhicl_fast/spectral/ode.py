"""Integration of the spectral ODEs, with dense output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from scipy.integrate import solve_ivp

from ._inputs import Floats, as_float64, check_choice, check_positive
from .atoms import Partition
from .flow import Factors, Flow
from .flow_start import starting_flow
from .phases import Phases, phases, refine_crossings, shares

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression

Method = Literal["Radau", "BDF"]


class State(NamedTuple):
    """The flow at given times: mu (..., H, I), omega (..., H, I or d), loss (...), factors or None."""

    mu: Floats
    omega: Floats
    loss: Floats
    factors: Factors | None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A solution of the spectral ODE at the solver's own steps, and, called, at any time in between.

    t (T,) flow time; mu (T, H, I); omega (T, H, I or d), as the start had it; loss (T,); factors: the four factors,
    each (T, H, ...), of an unbalanced flow, else None.
    """

    t: Floats
    mu: Floats
    omega: Floats
    loss: Floats
    factors: Factors | None
    task: MultiTaskRegression
    _at: Callable[[Floats], State] = field(repr=False)

    def __call__(self, t: Any) -> State:
        """State at flow time t (a number or an array) in [0, t_end]; ValueError outside."""
        times = as_float64("t", t)
        if times.size and (times.min() < self.t[0] or times.max() > self.t[-1]):
            raise ValueError(f"t must lie in [{self.t[0]:g}, {self.t[-1]:g}], got [{times.min():g}, {times.max():g}]")
        return self._at(times)

    def shares(self) -> Floats:
        """Σ_h μ_i^h ω_i^h at the steps, (T, I)."""
        return shares(self.task, self.mu, self.omega)

    def phases(self) -> Phases:
        """Phases with crossing times located on the dense output rather than between the solver's steps."""
        coarse = phases(self.t, self.shares())
        return refine_crossings(coarse, self.t, lambda t: shares(self.task, *self(t)[:2]))


def solve(
    task: MultiTaskRegression,
    mu0: Any,
    omega0: Any,
    *,
    parameters: str = "factored",
    scale: float = 1.0,
    order: str = "leading",
    t_end: float,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    method: str = "BDF",
) -> Trajectory:
    """Gradient flow of decomposable weights from t = 0 to `t_end` (flow time: the sum of Euler step sizes).

    mu0 (H, I); omega0 (H, I) with disjoint supports (unread covariates then have ω = 0), or (H, d), where values
    may differ inside a support. `parameters`: "factored" is the balanced flow, integrated in logarithms, signs fixed;
    "combined" follows μ and ω as parameters; with "unbalanced" mu0 is the pair (v_O, v_V), omega0 the pair
    (kappa_Q, kappa_K), μ = v_O v_V and ω = scale κ_Q κ_K. `scale` is the logits' scale of factored parameters.
    `atol` is absolute in the integrated variables, for the balanced flow an error relative to each value.

    Raises ValueError for inputs of wrong shape, for covariates whose covariance is not the identity, and where the
    first-order loss does not exist at the start; RuntimeError, naming the time, where the integration cannot go on,
    as when a first-order flow runs into the edge of its domain.
    """
    check_choice("method", method, get_args(Method))
    t_end = check_positive("t_end", t_end)
    flow, partition = starting_flow(
        task,
        mu0,
        omega0,
        parameters=parameters,
        scale=scale,
        order=order,
        merge=True,
        names=("mu0", "omega0"),
    )
    solution = _integrate(flow, t_end, rtol, atol, method)
    state = _read(flow, partition, np.moveaxis(solution.y, 0, -1))
    return Trajectory(solution.t, *state, task, lambda t: _read(flow, partition, _dense(solution.sol, t)))


def _integrate(flow: Flow, t_end: float, rtol: float, atol: float, method: str) -> Any:
    """Both methods shrink a step whose trial states leave the loss's domain (the velocity is NaN there)."""
    fastest = np.abs(flow.velocity(flow.start[None])).max()
    solution = solve_ivp(
        lambda _, state: flow.velocity(state[None])[0],
        (0.0, t_end),
        flow.start,
        method=method,
        dense_output=True,
        jac=lambda _, state: flow.jacobian(state),
        rtol=rtol,
        atol=atol,
        first_step=min(t_end, 1e-3 / fastest) if fastest > 0 else t_end,  # the automatic choice may try NaN states
    )
    if not solution.success:
        largest = np.abs(flow.values(solution.y[:, -1])[1]).max()
        raise RuntimeError(
            f"the flow could not be followed past t = {solution.t[-1]:.6g}: {solution.message} "
            f"The largest |ω| there is {largest:.6g}; at first order it must stay below 0.707107."
        )
    return solution


def _dense(interpolant: Any, times: Floats) -> Floats:
    """States at times of any shape, (...) -> (..., size)."""
    if not times.size:
        return np.empty((*times.shape, interpolant(0.0).size))
    states = interpolant(times.reshape(-1))  # (size, times)
    return states.T.reshape(*times.shape, len(states))


def _read(flow: Flow, partition: Partition, states: Floats) -> State:
    mu, omega = flow.values(states)
    factors = flow.factors(states)
    if factors is not None:
        kappas = (partition.expand(factors.kappa_q), partition.expand(factors.kappa_k))
        factors = Factors(factors.v_o, factors.v_v, *kappas)
    return State(mu, partition.expand(omega), flow.problem.value(mu, omega), factors)
