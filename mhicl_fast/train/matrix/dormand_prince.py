"""Steps of the explicit Runge–Kutta method of order 5 of Dormand and Prince (1980, J. Comput. Appl. Math. 6)."""

from __future__ import annotations

import numpy as np

from ...spectral._inputs import Floats
from .chebyshev import Field

ORDER = 5
EVALUATIONS = 6
STABLE_UP_TO = 3.2  # eigenvalues of the Jacobian, times the step, in [−STABLE_UP_TO, 0]

_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dormand_prince_step(field: Field, y: Floats, velocity: Floats, step: float) -> tuple[Floats, Floats, Floats]:
    """(y, y', error) after a step; entries of y' that are not finite where a stage leaves the field's domain."""
    slopes = np.empty((len(_ERROR), y.size))
    slopes[0] = velocity
    for number, weights in enumerate(_STAGES, start=1):
        now = y + step * (np.array(weights) @ slopes[:number])
        slopes[number] = field(now)
        if not np.isfinite(slopes[number]).all():
            return now, slopes[number], slopes[number]
    return now, slopes[-1], step * (np.array(_ERROR) @ slopes)
