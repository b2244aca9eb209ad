"""What a flow of full weights gives back: weights at the solver's steps, and at any time in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...spectral import diagonal
from ...spectral._inputs import Floats, as_float64
from ...tasks import MultiTaskRegression
from ..parameters import Parameters
from .records import FlowRecords
from .velocity import Velocity


class MatrixState(NamedTuple):
    """The flow at times (...): named tensors (..., their shapes) and the loss (...)."""

    weights: dict[str, Tensor]
    loss: Floats


class SpectralPath(NamedTuple):
    """Semi-singular values along a flow: t (T,), mu (T, H, I), omega (T, H, d), and `diagonal`'s residual (T,)."""

    t: Floats
    mu: Floats
    omega: Floats
    residual: Floats


@dataclass(frozen=True, eq=False)
class MatrixTrajectory:
    """A flow of full weights at its records, and, called, at any time in between.

    t (T,) flow time from 0 to the end; loss (T,); evaluations: of the velocity, in all.
    """

    t: Floats
    loss: Floats
    evaluations: int
    _records: FlowRecords = field(repr=False)
    _velocity: Velocity = field(repr=False)
    _task: MultiTaskRegression | None = field(repr=False)

    @classmethod
    def of(
        cls, records: FlowRecords, evaluations: int, velocity: Velocity, task: MultiTaskRegression | None
    ) -> MatrixTrajectory:
        """The trajectory that the records tell of; `task` where the objective was one."""
        return cls(np.array(records.t), np.array(records.loss), evaluations, records, velocity, task)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights at the records: named tensors (T, their shapes), made anew at each access."""
        return self._velocity.tensors(np.stack([self._records.theta(record) for record in range(len(self.t))]))

    def __call__(self, t: Any) -> MatrixState:
        """State at flow time t, a number or an array (...) in [0, t_end]; ValueError outside.

        Between records this is the cubic polynomial that has their weights and velocities, whose error grows as the
        fourth power of their distance. With every step recorded, and the usual tolerances, the loss is good to 1e-5 of
        its range; at the records it is as good as the solver's steps.
        """
        times = as_float64("t", t)
        if times.size and (times.min() < self.t[0] or times.max() > self.t[-1]):
            raise ValueError(f"t must lie in [{self.t[0]:g}, {self.t[-1]:g}], got [{times.min():g}, {times.max():g}]")
        thetas = np.empty((*times.shape, self._records.start.size))
        loss = np.empty(times.shape)
        ends: dict[int, tuple[Floats, Floats]] = {}
        for index, time in np.ndenumerate(times):
            thetas[index] = self._interpolate(float(time), ends)
            loss[index] = self._velocity.loss(thetas[index])
        return MatrixState(self._velocity.tensors(thetas), loss)

    def parameters(self, t: float | None = None) -> Parameters:
        """The parameters at flow time t, by default at the end."""
        time = self.t[-1] if t is None else float(t)
        return self._velocity.parameters(self._velocity.flatten(self(time).weights))

    def spectral(self, *, task: MultiTaskRegression | None = None, bases: Any = None) -> SpectralPath:
        """Semi-singular values at the records, as `spectral.diagonal` reads them.

        bases: a pair of orthogonal matrices (d, d) and (I, I) whose columns are the shared bases of covariates and
        outputs in which the weights are diagonal; by default the coordinate axes. task: that of the flow, needed where
        its objective was a function.
        """
        task = task or self._task
        if task is None:
            raise ValueError("a flow whose objective is a function needs the task to tell covariates from labels")
        turn = _turn(bases, task)
        values = []
        for record in range(len(self.t)):
            combined = self._velocity.parameters(self._records.theta(record)).to_combined()
            kq, ov = (tensor.numpy() for tensor in combined)
            if turn is not None:
                kq, ov = turn.T @ kq @ turn, turn[task.dim_x :, task.dim_x :].T @ ov @ turn
            values.append(diagonal(kq, ov, task))
        mu, omega, residual = (np.array(part) for part in zip(*values, strict=True))
        return SpectralPath(self.t, mu, omega, residual)

    def _interpolate(self, time: float, ends: dict[int, tuple[Floats, Floats]]) -> Floats:
        """The weights at a time; `ends` keeps weights and velocities of records for the next call."""
        after = int(np.searchsorted(self.t, time))
        if self.t[after] == time:
            return self._records.theta(after)
        for record in (after - 1, after):
            if record not in ends:
                theta = self._records.theta(record)
                ends[record] = theta, self._velocity(theta)
        (left, velocity_left), (right, velocity_right) = ends[after - 1], ends[after]
        length = self.t[after] - self.t[after - 1]
        s = (time - self.t[after - 1]) / length
        slopes = (1 - s) * velocity_left - s * velocity_right
        return left + s**2 * (3 - 2 * s) * (right - left) + length * s * (1 - s) * slopes


def _turn(bases: Any, task: MultiTaskRegression) -> Floats | None:
    """The orthogonal matrix (D, D) that holds both bases as its blocks."""
    if bases is None:
        return None
    d, dim = task.dim_x, task.dim
    turn = np.zeros((dim, dim))
    for name, basis, block in (("covariates", bases[0], slice(0, d)), ("outputs", bases[1], slice(d, dim))):
        basis = as_float64(f"the basis of {name}", basis)
        size = block.stop - block.start
        if basis.shape != (size, size) or not np.allclose(basis.T @ basis, np.eye(size), atol=1e-8):
            raise ValueError(f"the basis of {name} must be an orthogonal ({size}, {size}) matrix")
        turn[block, block] = basis
    return turn
