"""Runge–Kutta–Chebyshev steps: explicit, of order 2, stable over long stretches of the negative axis.

A step of s stages is stable for eigenvalues of the Jacobian in [−0.65 (s² − 1) / step, 0], so the work for a step grows
with the square root of its length where an ordinary explicit method's grows with the length. The stages are (Sommeijer,
Shampine and Verwer 1998, J. Comput. Appl. Math. 88)

    Y_0 = y,  Y_1 = Y_0 + m_1 F_0,  Y_j = (1 − μ_j − ν_j) Y_0 + μ_j Y_{j−1} + ν_j Y_{j−2} + m_j F_{j−1} + g_j F_0
    w_0 = 1 + ε/s²,  w_1 = T_s'(w_0) / T_s''(w_0),  b_j = T_j''(w_0) / T_j'(w_0)²,  b_0 = b_1 = b_2,  ε = 2/13
    m_1 = step b_1 w_1,  μ_j = 2 b_j w_0 / b_{j−1},  ν_j = −b_j / b_{j−2},  m_j = step 2 b_j w_1 / b_{j−1}
    g_j = −(1 − b_{j−1} T_{j−1}(w_0)) m_j

with Chebyshev polynomials T_j.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...spectral._inputs import Floats

Field = Callable[[Floats], Floats]

ORDER = 2
_DAMPING = 2 / 13


def stages_for(stiffness: float) -> int:
    """The fewest stages that are stable for eigenvalues of the Jacobian, times the step, in [−stiffness, 0]."""
    return max(2, 1 + int(np.sqrt(1.54 * stiffness + 1)))


def stiffness_of(stages: int) -> float:
    """How far along the negative axis that many stages are stable."""
    return float((stages - 1) ** 2 - 1) / 1.54


def chebyshev_step(field: Field, y: Floats, velocity: Floats, step: float, stages: int) -> tuple[Floats, Floats]:
    """(y, y') after a step; entries of y' that are not finite where a stage leaves the field's domain."""
    tableau = _tableau(stages)
    before, now = y, y + step * tableau.first * velocity
    for mu, nu, m, g in zip(tableau.mu, tableau.nu, tableau.m, tableau.g):
        there = field(now)
        if not np.isfinite(there).all():
            return now, there
        following = (1 - mu - nu) * y + mu * now + nu * before
        following += (step * m) * there + (step * g) * velocity
        before, now = now, following
    return now, field(now)


def chebyshev_error(y: Floats, velocity: Floats, y_after: Floats, velocity_after: Floats, step: float) -> Floats:
    """The error that a step of order 2 makes, from the third derivative that both ends of any accurate step tell."""
    return 0.8 * (y - y_after) + 0.4 * step * (velocity + velocity_after)


class _Tableau(NamedTuple):
    """The coefficients of s stages for a step of length 1: of the first stage, and of the s − 1 others."""

    first: float
    mu: list[float]
    nu: list[float]
    m: list[float]
    g: list[float]


@lru_cache(maxsize=256)
def _tableau(stages: int) -> _Tableau:
    w0 = 1 + _DAMPING / stages**2
    t, dt, ddt = [1.0, w0], [0.0, 1.0], [0.0, 0.0]  # T_j, T_j', T_j'' at w_0 by T_j = 2 w T_{j−1} − T_{j−2}
    for _ in range(2, stages + 1):
        ddt.append(2 * w0 * ddt[-1] + 4 * dt[-1] - ddt[-2])
        dt.append(2 * w0 * dt[-1] + 2 * t[-1] - dt[-2])
        t.append(2 * w0 * t[-1] - t[-2])
    w1 = dt[-1] / ddt[-1]
    b = [0.0, 0.0] + [ddt[j] / dt[j] ** 2 for j in range(2, stages + 1)]
    b[0] = b[1] = b[2]
    later = range(2, stages + 1)
    m = [2 * b[j] * w1 / b[j - 1] for j in later]
    return _Tableau(
        first=b[1] * w1,
        mu=[2 * b[j] * w0 / b[j - 1] for j in later],
        nu=[-b[j] / b[j - 2] for j in later],
        m=m,
        g=[-(1 - b[j - 1] * t[j - 1]) * m[j - 2] for j in later],
    )
