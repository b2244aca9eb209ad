"""Which head will take each task, and when, read off a small start.

While Σ_h μ_i^h ω_i^h ≪ 1 the tasks do not see each other. For the balanced flow, with u = μ_i, v = d_i ω_i / scale and
k = d_i φ_i / (L scale),

    u_h' = 4 λ_i scale u_h (v_h − k Σ_g u_g),    v_h' = 4 λ_i scale u_h v_h

Where k Σ_g u_g ≪ v_h, u − v is conserved and head h diverges at T_h = ln(u₀/v₀) / (4 λ_i scale (u₀ − v₀)): the
smallest T wins. Elsewhere the two equations are integrated until the task is half learnt. A head whose u and v differ
in sign decays.

Combined flow, u = μ_i, v = √d_i ω_i: u' = 2 λ_i √d_i v and v' = 2 λ_i √d_i u are linear, so heads keep their shares of
Σ_h (u+v)², and half is learnt at T = ln(2 √d_i / Σ_h (u₀+v₀)²) / (4 λ_i √d_i). No head wins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from ._inputs import Floats, check_choice, check_heads, check_mu, check_positive, require_identity_covariance
from .atoms import Partition, resolve_omega, supports_overlap

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression

Formula = Literal["auto", "short", "integrated"]

NEGLIGIBLE_NOISE = 0.01  # k Σ|u| relative to |v| below which the short formula is used
TIE = 1e-9  # relative difference below which two heads are one as good as the other


class Allocation(NamedTuple):
    """head (I,): the predicted winner of each task, −1 where none; time (I,): when, in flow time, inf where never."""

    head: NDArray[np.intp]
    time: Floats


def predict_allocation(
    task: MultiTaskRegression,
    mu0: Any,
    omega0: Any,
    *,
    parameters: str = "factored",
    scale: float = 1.0,
    formula: str = "auto",
) -> Allocation:
    """Predicted winner and emergence time of each task from a small decomposable start.

    mu0 (H, I); omega0 (H, I) or (H, d), which enters through its mean over each support. `parameters`: "factored" for
    the balanced flow, with the logits' `scale`, or "combined", where no head wins and all heads are −1 with the time at
    which half is learnt. `formula` applies to the balanced flow: "short", the closed form; "integrated", the early
    equations until half is learnt; "auto", the short one where label noise and finite-context noise are negligible
    (below 1 % of the drive, for every head that can win). Heads that tie for a task leave it with no winner, −1.

    Tasks are taken one by one. A head that has learnt one task first is a little slower on the next (its attention is
    spent), which can turn a race between heads that start within some percent of each other.

    Raises ValueError for overlapping supports and covariances other than the identity, where tasks drive each other
    from the start, and for values of ω of both signs inside one support of a balanced start.
    """
    check_choice("parameters", parameters, ("factored", "combined"))
    check_choice("formula", formula, get_args(Formula))
    require_identity_covariance(task, "the predicted allocation")
    if supports_overlap(task):
        raise ValueError(
            "the predicted allocation needs disjoint supports: tasks that share covariates drive each other"
        )
    scale = check_positive("scale", scale)
    mu = check_mu(task, mu0, "mu0")
    omega, partition = resolve_omega(task, omega0, "omega0")
    if mu.ndim != 2 or omega.ndim != 2:
        raise ValueError(f"mu0 and omega0 must have two dimensions, got {list(mu.shape)} and {list(omega.shape)}")
    check_heads(mu, omega)
    if parameters == "factored":
        _require_one_sign(omega, partition)
    mean_omega = omega @ (partition.reads * partition.count).T / _sizes(task)  # (H, I)
    if parameters == "combined":
        return _combined(task, mu, mean_omega)
    outcomes = [_balanced(task, i, mu[:, i], mean_omega[:, i], scale, formula) for i in range(task.n_tasks)]
    return Allocation(np.array([head for head, _ in outcomes]), np.array([time for _, time in outcomes]))


def _sizes(task: MultiTaskRegression) -> Floats:
    return np.asarray(task.support).sum(1).astype(np.float64)


def _require_one_sign(omega: Floats, partition: Partition) -> None:
    for i, reads in enumerate(partition.reads):
        values = omega[:, reads]
        mixed = np.flatnonzero((values > 0).any(1) & (values < 0).any(1))
        if mixed.size:
            raise ValueError(f"omega0 of head {mixed[0]} has both signs inside the support of task {i}")


def _combined(task: MultiTaskRegression, mu: Floats, omega: Floats) -> Allocation:
    root, signal = np.sqrt(_sizes(task)), np.asarray(task.signal)
    growing = np.square(mu + root * omega).sum(0)
    with np.errstate(divide="ignore"):
        time = np.log(2 * root / growing) / (4 * signal * root)
    return Allocation(np.full(task.n_tasks, -1), np.maximum(time, 0.0))


def _balanced(
    task: MultiTaskRegression, i: int, mu: Floats, omega: Floats, scale: float, formula: str
) -> tuple[int, float]:
    """Winner and time of task i, from (H,) values."""
    size, signal = _sizes(task)[i], float(task.signal[i])
    u, v = mu, size * omega / scale
    rate = 4 * signal * scale
    noise = size * float(task.noise_factor[i]) / (task.context_length * scale)  # k
    can_win = u * v > 0
    if not can_win.any():
        return -1, np.inf
    if formula == "auto":
        negligible = noise * np.abs(u).sum() <= NEGLIGIBLE_NOISE * np.abs(v[can_win]).min()
        formula = "short" if negligible else "integrated"
    if formula == "short":
        return _divergence(u, v, rate, can_win)
    return _half_learnt(u, v, rate, noise, half=0.5 * size / scale)


def _divergence(u: Floats, v: Floats, rate: float, can_win: NDArray[np.bool_]) -> tuple[int, float]:
    times = np.full(u.shape, np.inf)
    u, v = np.abs(u[can_win]), np.abs(v[can_win])
    x = u / v - 1  # ln(u/v) / (u − v) = (ln(1 + x) / x) / v, whose limit at u = v is 1/v
    times[can_win] = np.where(x == 0, 1.0, np.log1p(x) / np.where(x == 0, 1.0, x)) / (rate * v)
    return _unique_best(-times), float(times.min())


def _half_learnt(u0: Floats, v0: Floats, rate: float, noise: float, half: float) -> tuple[int, float]:
    """Integrates ln|u|, ln|v| until Σ u v = half; zeros keep sign 0 and never move."""
    signs = np.sign(np.stack([u0, v0]))
    start = np.log(np.abs(np.where(signs == 0, 1.0, np.stack([u0, v0]))))

    def values(y: Floats) -> Floats:
        return signs * np.exp(y.reshape(2, -1))

    def velocity(_: float, y: Floats) -> Floats:
        u, v = values(y)
        return rate * (signs * np.stack([v - noise * u.sum(), u])).reshape(-1)

    def missing(_: float, y: Floats) -> float:
        return float(np.prod(values(y), 0).sum() - half)

    if missing(0.0, start.reshape(-1)) >= 0:
        return _unique_best(u0 * v0), 0.0
    missing.terminal = True  # type: ignore[attr-defined]
    # Only a head with u v > 0 can grow, and v alone sets its pace once noise has thinned out the others.
    horizon = 1e6 / (rate * np.abs(v0[u0 * v0 > 0]).max())
    solution = solve_ivp(
        velocity, (0.0, horizon), start.reshape(-1), method="LSODA", events=missing, rtol=1e-9, atol=1e-9
    )
    if not solution.t_events[0].size:
        return -1, np.inf
    return _unique_best(np.prod(values(solution.y_events[0][0]), 0)), float(solution.t_events[0][0])


def _unique_best(score: Floats) -> int:
    """Index of the largest entry, −1 where another equals it."""
    best = int(score.argmax())
    ties = np.count_nonzero(score >= score[best] - TIE * abs(score[best]))
    return best if ties == 1 else -1
