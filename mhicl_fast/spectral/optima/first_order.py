"""One head's best values at first order in 1/L, for the tasks that it serves.

The loss is a parabola in each μ_i for fixed ω, with −linear_i / (2 square_i) at its bottom; both coefficients are read
off the gradient in μ at 0 and 1. Leading-order optima lie on rays from ω = 0 that are searched for the first minimum
beyond 0, which a flow from a small start meets: near the edge of the domain the expansion in 1/L breaks down, and the
expression may fall without bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize

from .._inputs import Floats
from ..atoms import atoms
from ..loss import SpectralProblem
from .capture import best_attention

if TYPE_CHECKING:
    from ...tasks import MultiTaskRegression

_RAY = 1.5  # how far along the ray, relative to leading order's optimum, a minimum is looked for
_NEARBY = 0.3  # how far from the ray's minimum each ω may move, relative to the largest


class FirstOrderHead(NamedTuple):
    """omega (d,), mu (tasks served,), and their losses (tasks served,)."""

    omega: Floats
    mu: Floats
    task_loss: Floats


def first_order_head(task: MultiTaskRegression, group: Sequence[int]) -> FirstOrderHead | None:
    """The first-order minimum that continues leading order's best head for the tasks in `group`; None if there is none.

    Tasks that the head does not read do not matter: its ω is 0 on covariates outside the group's supports.
    """
    chosen = list(group)
    partition = atoms(np.asarray(task.support)[chosen])
    whole = SpectralProblem.of(task, atoms(task), "first")
    problem = replace(
        whole,
        reads=partition.reads.astype(np.float64),
        count=partition.count,
        signal=whole.signal[chosen],
        variance=whole.variance[chosen],
    )
    direction = partition.compress(best_attention(task, chosen)[0])
    scale = _first_minimum(problem, direction)
    if scale is None:
        return None
    omega = _refine(problem, scale * direction)
    if omega is None:
        return None
    mu, task_loss = _best_mu(problem, omega)
    return FirstOrderHead(partition.expand(omega), mu, task_loss)


def _best_mu(problem: SpectralProblem, omega: Floats) -> tuple[Floats, Floats]:
    """(μ, loss), each (..., tasks), at the parabolas' bottoms for omega (..., M); −inf where one opens downwards."""
    shape = (*omega.shape[:-1], 1, len(problem.signal))
    linear = problem.gradient(np.zeros(shape), omega[..., None, :])[0][..., 0, :]
    square = (problem.gradient(np.ones(shape), omega[..., None, :])[0][..., 0, :] - linear) / 2
    unread = problem.signal * (problem.reads @ problem.count)  # the loss at μ = 0
    bounded = square > 0
    safe = np.where(bounded, square, 1.0)
    return np.where(bounded, -linear / (2 * safe), np.nan), np.where(bounded, unread - linear**2 / (4 * safe), -np.inf)


def _first_minimum(problem: SpectralProblem, direction: Floats) -> float | None:
    """The scale of the first minimum of the loss along a ray, on a grid of 200."""
    edge = np.sqrt(0.5) / np.abs(direction).max()
    grid = np.linspace(0, min(_RAY, edge), 202)[1:-1]
    losses = _best_mu(problem, grid[:, None] * direction)[1].sum(-1)
    rises = np.flatnonzero(losses[1:] > losses[:-1])
    return float(grid[rises[0]]) if rises.size and np.isfinite(losses[rises[0]]) else None


def _refine(problem: SpectralProblem, start: Floats) -> Floats | None:
    """The minimum over all ω near a start, None where the nearby region holds none."""
    edge = np.sqrt(0.5) * (1 - 1e-9)
    reach = _NEARBY * np.abs(start).max()
    read = problem.reads.any(0)
    lowest = np.where(read, np.maximum(start - reach, -edge), 0.0)
    highest = np.where(read, np.minimum(start + reach, edge), 0.0)

    unit = 1 / np.sqrt(problem.count)  # in which the loss curves alike in all directions

    def loss(scaled: Floats) -> tuple[float, Floats]:
        mu, task_loss = _best_mu(problem, scaled * unit)
        if not np.isfinite(task_loss).all():
            return np.inf, np.zeros_like(scaled)
        return float(task_loss.sum()), problem.gradient(mu[None], (scaled * unit)[None])[1][0] * unit

    result = minimize(
        loss,
        start / unit,
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([lowest, highest], 1) / unit[:, None],
        options={"ftol": 1e-15, "gtol": 1e-11, "maxiter": 500},
    )
    omega = result.x * unit
    inside = ((omega > lowest) & (omega < highest)) | ~read
    return omega if np.isfinite(result.fun) and inside.all() else None
