"""Semi-singular values of weights that are decomposable in the coordinate axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._inputs import Floats, as_float64

if TYPE_CHECKING:
    from ...tasks import MultiTaskRegression


class SemiSingularValues(NamedTuple):
    """mu (H, I), omega (H, d), and how far the weights are from diagonal (0: exactly diagonal, 1: nothing is)."""

    mu: Floats
    omega: Floats
    residual: float


def diagonal(kq: Any, ov: Any, task: MultiTaskRegression) -> SemiSingularValues:
    """Diagonals of KQ's covariate block and OV's label block, kq (H, D, D), ov (H, I, D), tensors or arrays.

    The residual is the larger of the two relative Frobenius distances, ‖KQ − diag‖ / ‖KQ‖ and ‖OV − diag‖ / ‖OV‖, over
    all heads together; KQ's last I columns meet the zeros of the query token and are left out. All-zero weights are
    diagonal: their distance is 0.
    """
    kq, ov = check_weights(kq, ov, task.dim_x, task.n_tasks)
    return split_diagonals(kq, ov, task.dim_x)


def check_weights(kq: Any, ov: Any, dim_x: int, n_tasks: int) -> tuple[Floats, Floats]:
    """kq (H, D, D) and ov (H, I, D) as float64 arrays; ValueError for other shapes and for values not finite."""
    kq, ov = as_float64("kq", kq), as_float64("ov", ov)
    dim = dim_x + n_tasks
    if kq.ndim != 3 or kq.shape[1:] != (dim, dim):
        raise ValueError(f"kq must be (heads, {dim}, {dim}), got shape {list(kq.shape)}")
    if ov.shape != (kq.shape[0], n_tasks, dim):
        raise ValueError(f"ov must be ({kq.shape[0]} heads, {n_tasks}, {dim}), got shape {list(ov.shape)}")
    return kq, ov


def split_diagonals(kq: Floats, ov: Floats, dim_x: int) -> SemiSingularValues:
    """The diagonals of the two blocks and the relative norm of all the rest, of weights that passed `check_weights`."""
    omega, omega_residual = _split(kq[:, :, :dim_x], start=0)
    mu, mu_residual = _split(ov.swapaxes(1, 2), start=dim_x)
    return SemiSingularValues(mu, omega, max(omega_residual, mu_residual))


def relative_norm(part: Floats, whole: Floats) -> float:
    """‖part‖ / ‖whole‖, and 0 where all is zero."""
    largest = np.abs(whole).max(initial=0.0)  # so that squares neither overflow nor vanish
    return float(np.linalg.norm(part / largest) / np.linalg.norm(whole / largest)) if largest else 0.0


def _split(weights: Floats, start: int) -> tuple[Floats, float]:
    """(H, rows, n) -> the diagonal of the n rows from `start` on, (H, n), and the relative norm of all the rest."""
    columns = np.arange(weights.shape[2])
    values = weights[:, start + columns, columns]
    rest = weights.copy()
    rest[:, start + columns, columns] = 0
    return values, relative_norm(rest, weights)
