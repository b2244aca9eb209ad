"""Linearised flow of the semi-singular values at a state: which directions leave it, and how fast.

Near a state y the flow moves a small displacement as δ' = F(y) + J δ. The flow is a gradient flow, so J is similar to a
symmetric matrix and its eigenvalues, the growth rates, are real. They are found block by block (entries that J does not
couple are in separate blocks), so that a mode has as few entries as it can.

At the state with one head per task, where head o(i) alone serves task i, the other heads have μ_i^h = ω_i^h = 0, and
attend by nothing that o(i) attends by: E_hg = 1 for g = o(i). At leading order, with b_i = 1 − μ_i ω_i the bias,

    ∂Loss/∂μ_i^h = g_i = (2/L) (λ_i d_i + σ²) μ_i > 0    for h ≠ o(i),      ∂Loss/∂ω_i^h = 0

* combined: μ_i^h drifts below 0 at the speed g_i. The state is not stationary.
* unbalanced: v_O' = −g_i v_V and v_V' = −g_i v_O. Along v_O = v_V displacements decay at the rate g_i; along
  v_O = −v_V, where μ_i^h < 0, they grow at g_i, and μ_i^h = v_O v_V at twice that: a saddle. κ_Q, κ_K of ω_i^h move at
  second order only: ∂Loss/∂ω_i^h per covariate is −2 λ_i b_i (1 − 1/e) μ_i^h, so that with μ_i^h < 0 they leave along
  κ_Q = −κ_K, ω_i^h < 0, at the growing rate 2 scale λ_i b_i (1 − 1/e) |μ_i^h|. Shifts of v_O² − v_V² and κ_Q² − κ_K²
  at the head that serves are conserved: rate 0.
* factored (balanced): a value that is 0 stays 0; near 0, |μ|' = ∓2|μ| ∂Loss/∂μ for values above and below. So μ_i^h
  leaves 0 at the rate 2 g_i downwards and returns at 2 g_i from above, and the state is the limit among values ≥ 0.
  Such transverse modes stand beside those of the values that are not 0: they do not depend on these, but drive them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._inputs import Floats, check_mu, check_positive
from .atoms import resolve_omega
from .flow import BalancedFlow, Flow
from .flow_start import starting_flow
from .modes import Modes, label, modes_of

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression

_MARGINAL = 1e-9  # relative to the largest rate
VALUE_NAMES = ("mu", "omega")
FACTOR_NAMES = ("v_o", "v_v", "kappa_q", "kappa_k")


@dataclass(frozen=True, eq=False)
class Stability:
    """The linearised flow at a state, as K modes in the order of their growth rates, fastest growing first.

    velocity: norm of the flow's velocity there, 0 where it is stationary. rates (K,): displacements along a mode move
    as b' = rate b + drift, with drift (K,) the velocity's part along the mode. directions: by name, "mu" (K, H, I) and
    "omega" (K, H, I or d), or for an unbalanced flow "v_o", "v_v", "kappa_q", "kappa_k"; each mode has norm 1 as a
    change of the full weights, where every ω is as many entries as it has covariates, and its drift is not negative.
    labels: what each mode is, in words.
    """

    velocity: float
    rates: Floats
    drift: Floats
    directions: dict[str, Floats]
    labels: tuple[str, ...]
    parameters: str
    _state: dict[str, Floats] = field(repr=False)

    @property
    def unstable(self) -> NDArray[np.intp]:
        """The modes whose displacements grow, fastest first."""
        return np.flatnonzero(self.rates > _threshold(self.rates))

    def escape_time(self, size: float, *, target: float = 1.0, mode: int = 0) -> float:
        """When a displacement of `size` along a mode, by default the fastest growing, has become `target`.

        (1/rate) ln((target + drift/rate) / (size + drift/rate)), or (target − size) / drift at rate 0; inf where it
        never does. Sizes are norms of weights; the linear law holds while they are small, so it is the dependence on
        `size` that is exact: a thousandth of the size leaves ln(1000)/rate later.
        """
        if not 0 <= size < target < np.inf:
            raise ValueError(f"need 0 <= size < target, got size {size} and target {target}")
        rate, drift = float(self.rates[mode]), float(self.drift[mode])
        if abs(rate) <= _threshold(self.rates):
            return (target - size) / drift if drift > 0 else np.inf
        with np.errstate(divide="ignore", invalid="ignore"):
            time = np.log((rate * target + drift) / np.float64(rate * size + drift)) / rate
        return float(time) if time >= 0 else np.inf

    def displaced(self, size: float, mode: int = 0) -> tuple[Any, Any]:
        """The state moved by `size` along a mode, as (mu0, omega0) in the form that `solve` takes.

        A transverse mode of the balanced flow soon drags other values along.
        """
        moved = {name: self._state[name] + size * change[mode] for name, change in self.directions.items()}
        if self.parameters == "unbalanced":
            return (moved["v_o"], moved["v_v"]), (moved["kappa_q"], moved["kappa_k"])
        return moved["mu"], moved["omega"]

    def __str__(self) -> str:
        head = f"velocity {self.velocity:.3g}, {len(self.unstable)} of {len(self.rates)} directions grow"
        return "\n".join([head, *(f"  {label}" for label in self.labels)])


def stability(
    task: MultiTaskRegression,
    mu: Any,
    omega: Any,
    *,
    parameters: str = "unbalanced",
    scale: float = 1.0,
    order: str = "leading",
) -> Stability:
    """Linearise a flow of the semi-singular values at a state; see `Stability`.

    mu (H, I); omega (H, I) with disjoint supports, all covariates of a task moving together, or (H, d), each by itself.
    `parameters`, `scale` and `order` as in `solve`. For "unbalanced", mu and omega may be the pairs (v_O, v_V) and
    (kappa_Q, kappa_K); single arrays stand for balanced factors, v_V and κ_K not negative. The state may be any: where
    it is not stationary, `velocity` and `drift` say how it moves.

    Raises ValueError for inputs of wrong shape, for covariates whose covariance is not the identity, and where the
    first-order loss does not exist.
    """
    if parameters == "unbalanced":
        mu, omega = _balanced(task, mu, omega, scale)
    flow, _ = starting_flow(
        task, mu, omega, parameters=parameters, scale=scale, order=order, merge=False, names=("mu", "omega")
    )
    per_covariate = flow.shapes[-1][-1] == task.dim_x
    modes = _balanced_modes(flow) if isinstance(flow, BalancedFlow) else _modes(flow)
    names = FACTOR_NAMES if parameters == "unbalanced" else VALUE_NAMES
    arrays = flow.unpack(flow.start) if parameters == "unbalanced" else flow.values(flow.start)
    state = dict(zip(names, arrays, strict=True))

    weight = _weight(flow)
    norms = np.linalg.norm(weight * modes.directions, axis=1)
    sign = np.where(modes.drift < 0, -1.0, 1.0)
    rates, drift, flat = modes.rates, np.abs(modes.drift) * norms, modes.directions * (sign / norms)[:, None]
    order_of = np.argsort(-rates, kind="stable")
    rates, drift, flat = rates[order_of], drift[order_of], flat[order_of]
    directions = dict(zip(names, flow.unpack(flat), strict=True))

    threshold = _threshold(rates)
    still = threshold * (1 + float(np.linalg.norm(flow.pack([array[None] for array in arrays]))))
    drift = np.where(drift > still, drift, 0.0)  # rounding errors of a stationary state are none
    sizes = dict(zip(names, flow.unpack(np.abs(weight * flat)), strict=True))
    columns = {name: "covariate" if name in names[len(names) // 2 :] and per_covariate else "task" for name in names}
    labels = tuple(
        label(
            rates[mode],
            drift[mode],
            threshold,
            state,
            {name: part[mode] for name, part in directions.items()},
            {name: part[mode] for name, part in sizes.items()},
            columns,
            signed=parameters == "factored",
        )
        for mode in range(len(rates))
    )
    velocity = float(np.linalg.norm(weight * modes.velocity))
    return Stability(velocity, rates, drift, directions, labels, parameters, state)


def _balanced(task: MultiTaskRegression, mu: Any, omega: Any, scale: float) -> tuple[Any, Any]:
    """Pairs of factors, balanced where a single array is given."""
    if np.ndim(mu[0]) < 2:
        values = check_mu(task, mu)
        mu = (np.sign(values) * np.sqrt(np.abs(values)), np.sqrt(np.abs(values)))
    if np.ndim(omega[0]) < 2:
        values = resolve_omega(task, omega)[0] / check_positive("scale", scale)
        omega = (np.sign(values) * np.sqrt(np.abs(values)), np.sqrt(np.abs(values)))
    return mu, omega


def _weight(flow: Flow) -> Floats:
    """√ of how many entries of the full weights an entry of the state is, (n,)."""
    count = np.sqrt(flow.problem.count)
    half = len(flow.shapes) // 2
    parts = [np.ones(shape) for shape in flow.shapes[:half]] + [np.broadcast_to(count, s) for s in flow.shapes[half:]]
    return np.concatenate([part.reshape(-1) for part in parts])


def _modes(flow: Flow) -> Modes:
    """Modes of a flow whose state is weights: their Euclidean metric makes the Jacobian symmetric."""
    return modes_of(flow.jacobian(flow.start), flow.velocity(flow.start[None])[0], _weight(flow))


def _balanced_modes(flow: BalancedFlow) -> Modes:
    """Modes in μ, ω of a flow that runs in their logarithms, and the transverse modes of values that are 0.

    In y = ln|x| the flow is y' = −a s ∂Loss/∂x, with s the sign of x and a = 2 for μ, 2 scale / n for ω, so that its
    Jacobian −a_j s_j Hess_jk s_k |x_k| is symmetric after scaling by √(|x| / a).
    """
    mu, omega = flow.values(flow.start)
    values = flow.pack([mu[None], omega[None]])[0]
    rate = flow.pack([np.full((1, *mu.shape), 2.0), np.broadcast_to(2 * flow.scale, (1, *omega.shape))])[0]
    alive = np.flatnonzero(values)
    x = np.abs(values[alive])
    scaling = np.sqrt(x / rate[alive]) * _weight(flow)[alive]
    inside = modes_of(
        flow.jacobian(flow.start)[np.ix_(alive, alive)], flow.velocity(flow.start[None])[0, alive], scaling
    )
    directions = np.zeros((len(alive), values.size))
    directions[:, alive] = inside.directions * values[alive]  # dx = x dy

    zero = np.flatnonzero(values == 0)
    upwards = (rate * flow.pack([part[None] for part in flow.descent(mu, omega)])[0])[zero]
    units = np.eye(values.size)[zero]
    velocity = values * flow.velocity(flow.start[None])[0]
    return Modes(
        np.concatenate([inside.rates, upwards, -upwards]),
        np.concatenate([directions, units, -units]),
        np.concatenate([inside.drift, np.zeros(2 * len(zero))]),
        velocity,
    )


def _threshold(rates: Floats) -> float:
    """Rates up to this are 0 but for rounding."""
    return _MARGINAL * float(np.abs(rates).max(initial=0))
