"""Two or more heads that meet away from ω = 0: better than the limit ω → 0 where no projection suits all tasks.

In the coordinates of `capture` let ω^h = m + ε a^h, the differences of the a^h spanning the orthonormal columns of Q
(M, H − 1). As ε → 0 the heads' functions span k = exp⟨m, ·⟩ and its derivatives ⟨q_j, ·⟩ k, or k and the functions
(⟨q_j, ·⟩ − ⟨q_j, m⟩) k. These are orthogonal, their squared norms are e^v with v = |m|², and their gradients at 0 are m
and q_j − ⟨q_j, m⟩ m. So the best readout captures

    Γ = e^−v (m mᵀ + N Nᵀ),   N = Q − m mᵀQ.

At m = 0 this is the projection Q Qᵀ. For two heads and m ⊥ Q its trace is e^−v (1 + v) = 1 − O(v²): part of the
projection moves to another direction at no cost of first order in v. Such a loss is approached as the heads
meet, with |μ| → ∞. That no other heads do better is not proven; minimisation over heads that are apart finds none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from .._inputs import Floats

if TYPE_CHECKING:
    from .capture import CaptureProblem

_STARTS = 8
_SIZE = 0.3  # of m at the starts
_OPTIONS = {"maxiter": 200, "ftol": 1e-13, "gtol": 1e-10}


def least_of_meeting_heads(problem: CaptureProblem, limit: Floats) -> Floats:
    """The tasks' losses (I,) at the best m and Q found from the limit's Q (M, H − 1) and from random ones (seeded)."""
    n_atoms, rank = limit.shape
    rng = np.random.default_rng(0)

    def value_and_gradient(flat: Floats) -> tuple[float, Floats]:
        task_loss, gradient = _losses(problem, flat.reshape(rank + 1, n_atoms))
        return float(task_loss.sum()), gradient.reshape(-1)

    least, _ = _losses_of_factor(problem, limit)
    for start in range(_STARTS):  # the first two with the limit's Q
        m = _SIZE / np.sqrt(n_atoms) * rng.normal(size=n_atoms)
        directions = limit if start < 2 else rng.normal(size=limit.shape)
        point = np.concatenate([m, directions.T.reshape(-1)])
        found = minimize(value_and_gradient, point, jac=True, method="L-BFGS-B", options=_OPTIONS)
        if found.fun < least.sum():
            least = _losses(problem, found.x.reshape(rank + 1, n_atoms))[0]
    return least


def _losses(problem: CaptureProblem, point: Floats) -> tuple[Floats, Floats]:
    """The tasks' losses (I,) and the gradient of their sum; the rows of the point (H, M) are m and what spans Q."""
    m = point[0]
    q, t = np.linalg.qr(point[1:].T)
    along = m @ q
    n = q - np.outer(m, along)
    decay = np.exp(-m @ m)
    factor = np.sqrt(decay) * np.column_stack([m, n])  # Γ = factor factorᵀ
    task_loss, root = _losses_of_factor(problem, factor)

    def slope(columns: Floats) -> Floats:
        return root.T @ (root @ columns)

    by_n = -2 * decay * slope(n)
    by_m = -2 * decay * slope(m) - by_n @ along - q @ (by_n.T @ m) + 2 * np.square(root @ factor).sum() * m
    by_q = by_n - np.outer(m, m @ by_n)
    # Only the span of Q = (rows)ᵀ T⁻¹ matters: what moves it is the part of by_q outside of it.
    by_rows = np.linalg.solve(t, (by_q - q @ (q.T @ by_q)).T)
    return task_loss, np.concatenate([by_m[None], by_rows])


def _losses_of_factor(problem: CaptureProblem, factor: Floats) -> tuple[Floats, Floats]:
    """`CaptureProblem.losses` at Γ = F Fᵀ, the slope as Rᵀ R with R (I, M); solves as small as F (M, H) is narrow.

    (Id + F_i F_iᵀ / ρ_i)⁻¹ 1_i = 1_i − F_i (ρ_i Id + F_iᵀF_i)⁻¹ F_iᵀ 1_i, F_i being the rows of F that task i reads.
    """
    read = (problem.indicators > 0)[..., None] * factor  # (I, M, H)
    transposed = np.swapaxes(read, 1, 2)
    inner = transposed @ read + problem.rho[:, None, None] * np.eye(factor.shape[1])
    solved = problem.indicators - (read @ np.linalg.solve(inner, transposed @ problem.indicators[..., None]))[..., 0]
    task_loss = problem.signal * np.sum(problem.indicators * solved, 1)
    return task_loss, np.sqrt(problem.signal / problem.rho)[:, None] * solved
