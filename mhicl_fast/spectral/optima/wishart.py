"""Means over the eigenvalues of a real Wishart matrix, exact up to quadrature.

The eigenvalues x_1, …, x_n of XᵀX, X an (N, n) matrix of independent standard normals, N ≥ n, have the density
∝ Π_{j<k} |x_j − x_k| Π_k w(x_k) with w(x) = x^{(N−n−1)/2} e^{−x/2}. For polynomials p_j of degree j < n, de Bruijn's
integral of this is ∝ Pf A, where

    A_jk = ∬ sgn(y − x) p_j(x) w(x) p_k(y) w(y) dx dy,   for odd n bordered by ∫ p_j(x) w(x) dx.

With w (1 + t f) in place of w the integral becomes the mean of Π_k (1 + t f(x_k)), so E Σ_k f(x_k) is the derivative
of log Pf A at t = 0, ½ tr A⁻¹ A'. Laguerre polynomials of weight x^{N−n} e^{−x} keep A well conditioned (a condition
number of 10³ at n = N = 200), and in s = √x the integrands are smooth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial import legendre

from .._inputs import Floats

LARGEST = 256  # the order n up to which a mean takes a fraction of a second
_NODES = 16  # Gauss–Legendre nodes in a panel
_TAIL = 10.0  # how far beyond √N ± √n the density still matters, in standard deviations of √x


def mean_over_eigenvalues(f: Callable[[Floats], Floats], n: int, freedom: int, finest: float) -> float:
    """E Σ_k f(x_k) over the n eigenvalues of a real Wishart matrix with `freedom` ≥ n degrees of freedom.

    f must be bounded and smooth in √x on the scale `finest` near 0, and smooth on the scale of √n elsewhere.
    """
    centre = np.sqrt(freedom - n)  # where s^α e^{−s²/2} is largest: offsets from it keep their digits if N is huge
    edges = _panel_edges(n, freedom, finest) - centre
    half = np.diff(edges) / 2
    nodes, weights = legendre.leggauss(_NODES)
    offset = (edges[:-1, None] + half[:, None] * (nodes + 1)).reshape(-1)
    psi = _weighted_polynomials(n, freedom - n, offset).reshape(n, len(half), _NODES)  # p_j w dx/ds
    tilted = psi * f(np.square(centre + offset)).reshape(psi.shape[1:])
    signed, whole = _signed_integral(psi, half, nodes, weights)
    tilted_signed, tilted_whole = _signed_integral(tilted, half, nodes, weights)
    measured = (psi * (half[:, None] * weights)).reshape(n, -1)
    a, moved = signed @ measured.T, tilted_signed @ measured.T
    # A' has the derivative through the first factor and, by antisymmetry, minus its transpose through the second.
    # a − a.T is 2 A, which takes care of the ½.
    return float(np.trace(np.linalg.solve(_bordered(a - a.T, 2 * whole), _bordered(moved - moved.T, tilted_whole))))


def _bordered(a: Floats, border: Floats) -> Floats:
    """The matrix itself for even order, else with one more row and column."""
    if len(a) % 2 == 0:
        return a
    return np.block([[a, border[:, None]], [-border[None], np.zeros((1, 1))]])


def _panel_edges(n: int, freedom: int, finest: float) -> Floats:
    """Edges in s = √x of panels short enough for products of two polynomials, and for f near 0."""
    low, high = max(0.0, np.sqrt(freedom) - np.sqrt(n) - _TAIL), np.sqrt(freedom) + np.sqrt(n) + _TAIL
    frequency = np.sqrt(4 * n + 2)  # the largest of the weighted polynomials in s, ψ'' + (2 (n + N) − s² − …/s²) ψ = 0
    uniform = np.linspace(low, high, 8 + int(np.ceil((high - low) * frequency / 4)))
    doubling = low + finest * 2.0 ** np.arange(np.ceil(np.log2(max(2.0, (uniform[1] - low) / finest))))
    return np.union1d(uniform, doubling[doubling < uniform[1]])


def _weighted_polynomials(n: int, alpha: int, offset: Floats) -> Floats:
    """p_j(s²) s^α e^{−s²/2} at s = √α + offset, (n, nodes), the p_j orthogonal for x^α e^{−x}, of equal norms."""
    centre = np.sqrt(alpha)
    beyond = (2 * centre + offset) * offset  # x − α
    exponent = -beyond / 2 + (alpha * np.log1p(offset / centre) if alpha else 0.0)
    values = np.empty((n, len(offset)))
    values[0] = np.exp(exponent)
    before = np.zeros_like(offset)
    for j in range(n - 1):
        ahead = (2 * j + 1 - beyond) * values[j] - np.sqrt(j * (j + alpha)) * before
        before, values[j + 1] = values[j], ahead / np.sqrt((j + 1) * (j + 1 + alpha))
    return values


def _signed_integral(psi: Floats, half: Floats, nodes: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(∫ sgn(s − u) ψ_j(u) du at the nodes (n, nodes), ∫ ψ_j (n,)) from values at the nodes, (n, panels, nodes)."""
    integrals = legendre.legval(nodes, legendre.legint(np.eye(_NODES), lbnd=-1)).T  # of each P_k up to each node
    inside = psi @ (integrals @ np.linalg.inv(legendre.legvander(nodes, _NODES - 1))).T * half[:, None]
    panels = psi @ weights * half
    whole = panels.sum(1)
    before = np.cumsum(panels, 1) - panels
    return (2 * (before[..., None] + inside) - whole[:, None, None]).reshape(len(psi), -1), whole
