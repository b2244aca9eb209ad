"""The rotation that makes several matrices as diagonal as one rotation can: joint diagonalisation by least squares.

Minimise Σ_k ‖M_k − Q diag(δ_k) Qᵀ‖²_F over rotations Q and values δ_k. The best values are δ_k = diag(Qᵀ M_k Q), and
antisymmetric parts add a constant, so what is left is to minimise the off-diagonal squares of the symmetric
S_k = Qᵀ (M_k + M_kᵀ) Q / 2, or, as the norm of S_k does not change, to maximise its diagonal squares.

Jacobi's method. Turning two columns p, q by θ keeps S_pp + S_qq and turns all points (u_k, v_k) = (S_pp − S_qq, 2 S_pq)
by −2θ. The squares of the diagonal change with Σ_k u_k² alone, which is largest when the first axis is the principal
axis of the points: 4θ = atan2(2 Σ u v, Σ u² − v²). Sweeps go through all pairs, in rounds of disjoint pairs that are
turned at once. Where the matrices nearly have a common eigenbasis a handful of sweeps reach machine precision.

Newton's method. Where they have none, sweeps creep. With f = ½ Σ_k ‖off(S_k)‖² along Q exp(X), X antisymmetric,
    dS_k = S_k X + (S_k X)ᵀ,   df = −Σ_k δ_k · diag(dS_k)
    gradient    g = G − Gᵀ,    G_pq = Σ_k δ_p S_pq
    Hessian     H(X) = dG − dGᵀ − ½ (g X − X g)      (the last term makes symmetric what dg along a group is not)
and conjugate gradients inside a trust radius find the step. They leave saddle points, which show as directions of
negative curvature.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from .._inputs import Floats

RANDOM_STARTS = 3
_SWEEPS = 12
_NEWTON_STEPS = 1000
_ROUNDING = 4 * float(np.finfo(np.float64).eps)


class NotConvergedError(ArithmeticError):
    """The joint diagonalisation did not come to rest."""


def joint_diagonaliser(matrices: Floats) -> Floats:
    """The orthogonal Q (n, n) for which the Qᵀ M_k Q of finite matrices (K, n, n) have the least off-diagonal squares.

    The columns come in no particular order and sign, and where the matrices leave directions equal any basis of them
    may come out. Exact, up to rounding, for matrices that have a common basis of eigenvectors. For others it is a local
    minimum to machine precision, the best one near the coordinate axes and the eigenvectors of RANDOM_STARTS random
    combinations of the matrices (the same ones in every call). Raises NotConvergedError where Newton's method fails.
    """
    symmetric = (matrices + matrices.swapaxes(1, 2)) / 2
    size = float(np.linalg.norm(symmetric))
    if size == 0:
        return np.eye(matrices.shape[1])
    symmetric = symmetric / size
    starts = sorted(_starts(symmetric), key=lambda start: off_diagonal_squares(symmetric, start))
    best, least, at_rest = starts[0], np.inf, False
    for start in starts:
        rotation, rests = _jacobi(symmetric, start)
        squares = off_diagonal_squares(symmetric, rotation)
        if squares < least:
            best, least, at_rest = rotation, squares, rests
        if least < (_ROUNDING * len(rotation)) ** 2:
            break
    return best if at_rest else _newton(symmetric, best)


def off_diagonal_squares(matrices: Floats, columns: Floats) -> float:
    """Σ_k of the squared off-diagonal entries of Qᵀ M_k Q, for all columns of a rotation or for some, (n, m)."""
    rotated = columns.T @ matrices @ columns
    return float(np.square(rotated * (1 - np.eye(columns.shape[1]))).sum())


def _starts(symmetric: Floats) -> Iterator[Floats]:
    count, n = symmetric.shape[:2]
    yield np.eye(n)
    weights = np.random.default_rng(0).normal(size=(RANDOM_STARTS if count > 1 else 1, count))
    for combination in np.tensordot(weights, symmetric, 1):
        yield np.linalg.eigh(combination)[1]


def _orthogonal(rotation: Floats) -> Floats:
    """The nearest orthogonal matrix, to second order in a small deviation: products drift by rounding."""
    return rotation @ (1.5 * np.eye(len(rotation)) - 0.5 * rotation.T @ rotation)


def _jacobi(symmetric: Floats, rotation: Floats) -> tuple[Floats, bool]:
    """The rotation after sweeps over all pairs, and whether nothing moves any more; the stack has norm 1."""
    rounds = list(_rounds(len(rotation)))
    for _ in range(_SWEEPS):
        rotation = _orthogonal(rotation)
        # From the matrices themselves, so that rounding does not add up over sweeps; K last is K numbers in a row.
        turned = np.ascontiguousarray(np.moveaxis(rotation.T @ symmetric @ rotation, 0, -1))  # (n, n, K)
        if max((_turn(turned, rotation, *pairs) for pairs in rounds), default=0.0) <= _ROUNDING:
            return rotation, True
    return rotation, False


def _turn(turned: Floats, rotation: Floats, p: NDArray[np.intp], q: NDArray[np.intp]) -> float:
    """Turn the disjoint pairs (p, q) of columns, in place; the largest change of an entry, relative to the norm."""
    u = turned[p, p] - turned[q, q]  # (pairs, K)
    v = 2 * turned[p, q]
    angle = np.arctan2(2 * (u * v).sum(1), (u * u - v * v).sum(1)) / 4
    moved = np.abs(angle) * np.sqrt((u * u + v * v).sum(1))
    angle[moved <= _ROUNDING] = 0  # differences that are rounding say nothing about the direction
    cos, sin = np.cos(angle), np.sin(angle)
    for columns in (rotation, turned.swapaxes(0, 1), turned):
        _mix(columns, p, q, cos, sin)
    return float(moved.max())


def _mix(columns: Floats, p: NDArray[np.intp], q: NDArray[np.intp], cos: Floats, sin: Floats) -> None:
    """Columns p, q (second axis) become cos p + sin q and cos q − sin p."""
    trailing = (-1,) + (1,) * (columns.ndim - 2)
    cos, sin = cos.reshape(trailing), sin.reshape(trailing)
    first, second = columns[:, p], columns[:, q]
    columns[:, p] = cos * first + sin * second
    columns[:, q] = cos * second - sin * first


def _rounds(n: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """All pairs below n, as a round-robin tournament: rounds of disjoint pairs, one player resting where n is odd."""
    players = np.arange(n + n % 2)
    half = len(players) // 2
    for _ in range(n + n % 2 - 1 if n > 1 else 0):
        p, q = players[:half], players[half:][::-1]
        plays = (p < n) & (q < n)
        yield p[plays], q[plays]
        players = np.concatenate([players[:1], np.roll(players[1:], 1)])


def _newton(symmetric: Floats, rotation: Floats) -> Floats:
    """A local minimum below the rotation, by trust-region Newton steps; the stack has norm 1."""
    n = len(rotation)
    value = off_diagonal_squares(symmetric, rotation) / 2
    radius = np.sqrt(value)
    for _ in range(_NEWTON_STEPS):
        rotation = _orthogonal(rotation)
        turned = rotation.T @ symmetric @ rotation
        gradient = _gradient(turned)
        if np.linalg.norm(gradient) <= _ROUNDING * n:
            return rotation
        # Steps are measured by the change of entries that a turn of one pair makes; equal pairs must not turn wildly.
        differences = _diagonals(turned)[:, :, None] - _diagonals(turned)[:, None, :]
        unit = np.sqrt(np.square(differences).sum(0) + 4 * np.square(turned).sum(0) + 1e-6 * value)
        step, predicted = _trust_region_step(turned, gradient, unit, radius, value)
        candidate = rotation @ expm(step / unit)
        lower = off_diagonal_squares(symmetric, candidate) / 2
        # A gain that rounding of the entries would hide is believed, but no reason for larger steps.
        agreement = (value - lower) / predicted if predicted > _ROUNDING * n * np.sqrt(value) else 0.5
        if agreement < 0.25:
            radius = float(np.linalg.norm(step)) / 4
        elif agreement > 0.75:
            radius = max(radius, 2 * float(np.linalg.norm(step)))
        if agreement > 0.1:
            rotation, value = candidate, lower
    raise NotConvergedError(
        f"the joint diagonalisation of {len(symmetric)} matrices of size {n} did not converge in {_NEWTON_STEPS} steps "
        f"of Newton's method: the gradient is {np.linalg.norm(gradient):.3g} of the squared norm"
    )


def _diagonals(matrices: Floats) -> Floats:
    return np.diagonal(matrices, axis1=1, axis2=2)


def _gradient(turned: Floats) -> Floats:
    """g (n, n) as the module defines it, antisymmetric to the bit."""
    by_row = np.einsum("kp,kpq->pq", _diagonals(turned), turned)
    return by_row - by_row.T


def _hessian(turned: Floats, gradient: Floats, x: Floats) -> Floats:
    """H(X) (n, n) as the module defines it, antisymmetric to the bit, or steps would leave the rotations."""
    product = turned @ x
    change = product + product.swapaxes(1, 2)
    by_row = np.einsum("kp,kpq->pq", _diagonals(turned), change) + np.einsum("kp,kpq->pq", _diagonals(change), turned)
    by_row -= gradient @ x / 2
    return by_row - by_row.T


def _trust_region_step(
    turned: Floats, gradient: Floats, unit: Floats, radius: float, value: float
) -> tuple[Floats, float]:
    """Antisymmetric Y = unit ∘ X, ‖Y‖ ≤ radius, by truncated conjugate gradients, and the decrease that it predicts."""
    slope = gradient / unit
    step, bent_step = np.zeros_like(slope), np.zeros_like(slope)
    rest, direction = -slope, -slope
    size = float(np.linalg.norm(slope))
    enough = size * min(0.1, size / np.sqrt(value))
    for _ in range(5 * len(slope)):
        bent = _hessian(turned, gradient, direction / unit) / unit
        curvature, squares = float((direction * bent).sum()), float(np.square(rest).sum())
        along, length = float((step * direction).sum()), float(np.square(direction).sum())
        room = radius**2 - float(np.square(step).sum())
        to_boundary = (-along + np.sqrt(along**2 + length * max(room, 0.0))) / length
        amount = squares / curvature if curvature > 0 else np.inf
        outside = amount >= to_boundary
        amount = min(amount, to_boundary)
        step, bent_step = step + amount * direction, bent_step + amount * bent
        rest = rest - amount * bent
        if outside or np.linalg.norm(rest) <= enough:
            break
        direction = rest + float(np.square(rest).sum()) / squares * direction
    return step, -float((slope * step).sum() + (step * bent_step).sum() / 2)
