"""What is kept of a flow: times, losses and weights, the latter without the entries that never move.

Decomposable weights of width D move in about D of their D² entries; the others are stored once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...spectral._inputs import Floats


@dataclass(frozen=True, eq=False)
class FlowRecords:
    """T records of weights θ (n,).

    t (T,), loss (T,); start (n,): θ at t = 0; moving (m,): the entries that differ from it in some record, whose values
    are rows (T, m).
    """

    t: list[float]
    loss: list[float]
    start: Floats
    moving: NDArray[np.intp]
    rows: list[Floats]

    @classmethod
    def beginning(cls, theta: Floats, loss: float) -> FlowRecords:
        """One record, at t = 0."""
        return cls([0.0], [loss], theta, np.empty(0, np.intp), [np.empty(0)])

    def with_record(self, t: float, theta: Floats, loss: float) -> FlowRecords:
        """These records and one more; these stay as they are, so that an interrupt finds them whole."""
        moved = theta != self.start
        moved[self.moving] = True
        moving, rows = np.flatnonzero(moved), self.rows
        if len(moving) > len(self.moving):
            rows = [self.theta(record)[moving] for record in range(len(rows))]
        return FlowRecords([*self.t, t], [*self.loss, loss], self.start, moving, [*rows, theta[moving]])

    def theta(self, record: int) -> Floats:
        """The weights (n,) of one record, a copy."""
        theta = self.start.copy()
        theta[self.moving] = self.rows[record]
        return theta
