"""Semi-singular values of factored weights in shared bases, and the matrices that their gradient flow conserves.

Projections W_Q, W_K, W_V (H, E, D) and W_O (H, I, E) act as KQ_h = scale · W_K,hᵀ W_Q,h and OV_h = W_O,h W_V,h. They
are decomposable when, with rotations P of the covariates and V of the outputs shared by all heads and orthonormal
columns A_h, B_h (E, ·) of each head's own,

    W_Q = A_h diag(κ_Q) Pᵀ,   W_K = A_h diag(κ_K) Pᵀ   (covariate columns),
    W_V = B_h diag(v_V) Vᵀ    (label columns),          W_O = V diag(v_O) B_hᵀ,

so that ω = scale κ_Q κ_K and μ = v_O v_V. P diagonalises W_QᵀW_Q, W_KᵀW_K and W_KᵀW_Q of all heads at once, V likewise.
Given P, with x_j, y_j the columns of W_Q P, W_K P, least squares asks for the orthonormal a_j with the largest
Σ_j (a_j·x_j)² + (a_j·y_j)², the values being κ_Q = a·x, κ_K = a·y. The sum is convex in A, so replacing A by the polar
factor of its gradient, the columns x_j κ_Qj + y_j κ_Kj, raises it until A is stationary.

W_Q's label columns meet the zeros of the query token and are left out. W_K's label columns and W_V's covariate columns
act only through KQ's label rows W_Kᵀ W_Q and OV's covariate columns W_O W_V, and are judged by these.
"""

from __future__ import annotations

from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from .._inputs import Floats, as_float64, check_positive
from ..flow import Factors
from .decompose import TOLERANCE, Bases, check_dim_x, check_tolerance, exchangeable, rounding
from .diagonal import relative_norm
from .joint_diagonalisation import NotConvergedError
from .shared_basis import shared_basis

_ITERATIONS = 100_000
_AT_REST = 1e-15  # relative gain of one iteration


class FactoredDecomposition(NamedTuple):
    """factors: v_o, v_v (H, I), kappa_q, kappa_k (H, d); omega (H, d), mu (H, I) their products; the shared bases.

    query_key (H, E, d), value_output (H, E, I): the heads' own bases A_h, B_h, orthonormal columns, but zero for values
    beyond the E that a head can have. Signs: κ_Q ≥ 0 and v_V ≥ 0, so ω has the sign of κ_K and μ that of v_O.
    residual: the largest of six relative Frobenius norms over all heads: of what is not decomposable in W_Q and W_K
    (covariate columns), W_V (label columns) and W_O, of KQ's label rows and of OV's covariate columns.
    """

    factors: Factors
    omega: Floats
    mu: Floats
    bases: Bases
    query_key: Floats
    value_output: Floats
    residual: float


class Conserved(NamedTuple):
    """query_key (H, E, E) = W_Q W_Qᵀ − W_K W_Kᵀ and value_output (H, E, E) = W_V W_Vᵀ − W_Oᵀ W_O."""

    query_key: Floats
    value_output: Floats


def decompose_factored(
    w_q: Any,
    w_k: Any,
    w_v: Any,
    w_o: Any,
    dim_x: SupportsIndex,
    *,
    scale: float = 1.0,
    support: Any = None,
    signal: Any = None,
    tolerance: float = TOLERANCE,
) -> FactoredDecomposition:
    """Decomposable projections near to w_q, w_k, w_v (H, E, D), w_o (H, I, E), tensors or arrays; any width E.

    `support`, `signal` and `tolerance` as for `decompose`; `scale` multiplies W_Kᵀ W_Q. A head of width E has at most E
    values κ and E values v that are not zero; of more, those with the longest columns are kept. Raises ValueError for
    wrong shapes, values that are not finite, bad options; TypeError for what are not real numbers.
    """
    d = check_dim_x(dim_x)
    scale = check_positive("scale", scale)
    precision = {"tolerance": check_tolerance(tolerance), "rounding": rounding(w_q, w_k, w_v, w_o)}
    w_q, w_k, w_v, w_o = check_projections(w_q, w_k, w_v, w_o)
    n_tasks = w_o.shape[1]
    if w_q.shape[2] != d + n_tasks:
        raise ValueError(f"w_q must be (heads, width, {d} covariates + {n_tasks} tasks), got shape {list(w_q.shape)}")
    query, key, value, output = w_q[:, :, :d], w_k[:, :, :d], w_v[:, :, d:], w_o.swapaxes(1, 2)
    covariate_classes, output_classes = exchangeable(d, n_tasks, support, signal)
    bases = Bases.of(
        shared_basis(_products(query, key), covariate_classes, **precision),
        shared_basis(_products(value, output), output_classes, **precision),
    )
    query_key, kappa_q, kappa_k = _own_bases(query @ bases.covariates, key @ bases.covariates)
    value_output, v_v, v_o = _own_bases(value @ bases.outputs, output @ bases.outputs)
    reads, writes = w_k.swapaxes(1, 2) @ query, w_o @ w_v  # KQ / scale (H, D, d), OV (H, I, D)
    residual = max(
        _distance(query @ bases.covariates, query_key, kappa_q),
        _distance(key @ bases.covariates, query_key, kappa_k),
        _distance(value @ bases.outputs, value_output, v_v),
        _distance(output @ bases.outputs, value_output, v_o),
        relative_norm(reads[:, d:], reads),
        relative_norm(writes[:, :, :d], writes),
    )
    return FactoredDecomposition(
        Factors(v_o, v_v, kappa_q, kappa_k),
        scale * kappa_q * kappa_k,
        v_o * v_v,
        bases,
        query_key,
        value_output,
        residual,
    )


def conserved(w_q: Any, w_k: Any, w_v: Any, w_o: Any) -> Conserved:
    """The matrices that stay as they are along the gradient flow of any loss in KQ and OV, per head.

    With G = ∂Loss/∂KQ and N = ∂Loss/∂OV, the flow of KQ = scale · W_KᵀW_Q, OV = W_O W_V is
        W_Q' = −scale W_K G,   W_K' = −scale W_Q Gᵀ,   W_V' = −W_Oᵀ N,   W_O' = −N W_Vᵀ,
    hence (W_Q W_Qᵀ)' = −scale (W_K G W_Qᵀ + W_Q Gᵀ W_Kᵀ) = (W_K W_Kᵀ)', and (W_V W_Vᵀ)' = −(W_Oᵀ N W_Vᵀ + W_V Nᵀ W_O) =
    (W_Oᵀ W_O)'. For decomposable weights whose other columns are zero they are A_h diag(κ_Q² − κ_K²) A_hᵀ and
    B_h diag(v_V² − v_O²) B_hᵀ; balanced weights have zeros. Explicit steps keep them to second order in the step size.
    w_q, w_k, w_v (H, E, D), w_o (H, I, E); raises ValueError for other shapes.
    """
    w_q, w_k, w_v, w_o = check_projections(w_q, w_k, w_v, w_o)
    return Conserved(
        w_q @ w_q.swapaxes(1, 2) - w_k @ w_k.swapaxes(1, 2), w_v @ w_v.swapaxes(1, 2) - w_o.swapaxes(1, 2) @ w_o
    )


def check_projections(w_q: Any, w_k: Any, w_v: Any, w_o: Any) -> tuple[Floats, Floats, Floats, Floats]:
    """The four as float64 arrays; ValueError for shapes that do not fit together and for values not finite."""
    w_q, w_k, w_v, w_o = (
        as_float64(name, value) for name, value in (("w_q", w_q), ("w_k", w_k), ("w_v", w_v), ("w_o", w_o))
    )
    if w_q.ndim != 3 or 0 in w_q.shape:
        raise ValueError(f"w_q must be (heads, width, dim), got shape {list(w_q.shape)}")
    for name, array in (("w_k", w_k), ("w_v", w_v)):
        if array.shape != w_q.shape:
            raise ValueError(f"{name} must have w_q's shape {list(w_q.shape)}, got {list(array.shape)}")
    heads, width = w_q.shape[:2]
    if w_o.ndim != 3 or (w_o.shape[0], w_o.shape[2]) != (heads, width) or not w_o.shape[1]:
        raise ValueError(f"w_o must be ({heads}, outputs, {width}), got shape {list(w_o.shape)}")
    return w_q, w_k, w_v, w_o


def _products(first: Floats, second: Floats) -> Floats:
    """XᵀX, YᵀY and the symmetric part of YᵀX for X, Y (H, E, n): (3H, n, n)."""
    across = second.swapaxes(1, 2) @ first
    return np.concatenate(
        [first.swapaxes(1, 2) @ first, second.swapaxes(1, 2) @ second, (across + across.swapaxes(1, 2)) / 2]
    )


def _own_bases(first: Floats, second: Floats) -> tuple[Floats, Floats, Floats]:
    """Each head's basis A (H, E, n) for the columns of X, Y (H, E, n), and its values a_j·x_j ≥ 0, a_j·y_j, (H, n)."""
    bases = np.stack([_own_basis(x, y) for x, y in zip(first, second, strict=True)])
    values, others = (bases * first).sum(1), (bases * second).sum(1)
    signs = np.where((values < 0) | ((values == 0) & (others < 0)), -1.0, 1.0)
    return bases * signs[:, None], values * signs, others * signs


def _own_basis(x: Floats, y: Floats) -> Floats:
    """Orthonormal A (E, n) with the largest Σ_j (a_j·x_j)² + (a_j·y_j)²; columns beyond the E longest are zero."""
    pairs = np.stack([x, y], -1).swapaxes(0, 1)  # (n, E, 2): for each column its two vectors
    kept = np.sort(np.argsort(-np.square(pairs).sum((1, 2)), kind="stable")[: len(x)])
    pairs = pairs[kept]
    left, lengths, _ = np.linalg.svd(pairs, full_matrices=False)
    basis = np.zeros_like(x)
    basis[:, kept] = _stationary_basis(pairs, _polar((left[:, :, 0] * lengths[:, :1]).T))
    return basis


def _stationary_basis(pairs: Floats, basis: Floats) -> Floats:
    """Polar iterations from `basis` (E, m) on the vectors `pairs` (m, E, 2) until their sum of squares is at rest."""
    explained = -np.inf
    for _ in range(_ITERATIONS):
        values = np.einsum("ej,jek->jk", basis, pairs)
        before, explained = explained, float(np.square(values).sum())
        if explained <= before + _AT_REST * explained:
            return basis
        basis = _polar(np.einsum("jek,jk->ej", pairs, values))
    raise NotConvergedError(f"a head's own basis did not come to rest in {_ITERATIONS} iterations")


def _polar(matrix: Floats) -> Floats:
    """The matrix with orthonormal columns (E, n), E ≥ n, nearest in direction: U Vᵀ of its singular vectors."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def _distance(columns: Floats, basis: Floats, values: Floats) -> float:
    """Relative distance of X (H, E, n) from A diag(values)."""
    return relative_norm(columns - basis * values[:, None], columns)
