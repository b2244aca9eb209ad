"""Semi-singular values of attention weights in a shared basis that is not known beforehand.

Weights are decomposable when one rotation Q of the covariates and one rotation V of the outputs, shared by all heads,
make KQ_h's covariate block Q diag(ω^h) Qᵀ and OV_h's label block V diag(μ^h) Vᵀ, every other block zero. Rotations that
respect the task leave the law of the prompts as it is: Q may mix covariates that the same tasks read, V may mix tasks
of equal support and signal. Under them the label block of OV, which maps labels to outputs, turns on both sides.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag

from .._inputs import Floats, as_float64
from ..atoms import atoms
from .diagonal import check_weights, relative_norm, split_diagonals
from .shared_basis import Groups, SharedBasis, shared_basis

TOLERANCE = 1e-8


class Bases(NamedTuple):
    """The shared bases: covariates (d, d) and outputs (I, I), orthogonal, columns are basis vectors.

    covariate_groups, output_groups: all columns; those that the weights cannot tell apart, as their values agree within
    the error, stand in one group, and any rotation among them fits as well.
    covariate_errors (d,), output_errors (I,): the angle in radians between each column and the one that weights without
    noise would have (for a group: between the spans), expected from the noise that is left off the diagonal.
    """

    covariates: Floats
    outputs: Floats
    covariate_groups: Groups
    output_groups: Groups
    covariate_errors: Floats
    output_errors: Floats

    @classmethod
    def of(cls, covariates: SharedBasis, outputs: SharedBasis) -> Bases:
        """The bases of both sides."""
        return cls(
            covariates.columns, outputs.columns, covariates.groups, outputs.groups, covariates.errors, outputs.errors
        )

    @property
    def identifiable(self) -> bool:
        """Whether the weights determine every column of both bases, up to its sign."""
        return all(len(group) == 1 for group in self.covariate_groups + self.output_groups)


class Decomposition(NamedTuple):
    """omega (H, d), mu (H, I) in the shared `bases`, and the relative distance `residual` of the weights from them."""

    omega: Floats
    mu: Floats
    bases: Bases
    residual: float


def decompose(
    kq: Any,
    ov: Any,
    dim_x: SupportsIndex,
    *,
    support: Any = None,
    signal: Any = None,
    tolerance: float = TOLERANCE,
) -> Decomposition:
    """The decomposable weights nearest to kq (H, D, D), ov (H, I, D), by joint diagonalisation; tensors or arrays.

    `support` (I, d), the covariates that each task reads (None: all), and `signal`, one λ or (I,) (None: equal), bound
    what may be rotated. Columns of the bases are ordered and signed to be nearest to the coordinate axes, and columns
    that cannot be told apart are turned to them, so diagonal weights give the identity. Values that agree within
    `tolerance` of the largest cannot be told apart, nor can those whose difference is within the noise, measured by
    what no basis makes diagonal.

    The residual is that of `diagonal`, in the bases: the larger of ‖KQ − its decomposable part‖ / ‖KQ‖ and the same for
    OV, Frobenius, over all heads. KQ's last I columns meet the zeros of the query token and are left out; its label
    rows count, and so do OV's covariate columns. The bases make both distances the least ones, but for what turning
    groups may add: a tenth, in squares.

    Raises ValueError for wrong shapes, values that are not finite, a mask that is not 0 and 1, a negative tolerance;
    TypeError for what are not real numbers.
    """
    d = check_dim_x(dim_x)
    precision = {"tolerance": check_tolerance(tolerance), "rounding": rounding(kq, ov)}
    kq, ov = as_float64("kq", kq), as_float64("ov", ov)
    if ov.ndim != 3 or 0 in ov.shape:
        raise ValueError(f"ov must be (heads, tasks, {d} covariates + tasks), got shape {list(ov.shape)}")
    n_tasks = ov.shape[1]
    check_weights(kq, ov, d, n_tasks)
    covariate_classes, output_classes = exchangeable(d, n_tasks, support, signal)
    bases = Bases.of(
        shared_basis(kq[:, :d, :d], covariate_classes, **precision),
        shared_basis(ov[:, :, d:], output_classes, **precision),
    )
    values = split_diagonals(*_in_bases(kq, ov, bases), d)
    return Decomposition(values.omega, values.mu, bases, values.residual)


def recompose(decomposition: Decomposition) -> tuple[Floats, Floats]:
    """The decomposable weights that a decomposition stands for: kq (H, D, D) and ov (H, I, D)."""
    omega, mu, bases, _ = decomposition
    (heads, d), n_tasks = omega.shape, mu.shape[1]
    kq, ov = np.zeros((heads, d + n_tasks, d + n_tasks)), np.zeros((heads, n_tasks, d + n_tasks))
    kq[:, :d, :d] = (bases.covariates * omega[:, None, :]) @ bases.covariates.T
    ov[:, :, d:] = (bases.outputs * mu[:, None, :]) @ bases.outputs.T
    return kq, ov


def departures(kq: Any, ov: Any, decomposition: Decomposition) -> dict[str, float]:
    """How far weights are from decomposable, by cause: Frobenius norms over all heads, relative to ‖KQ‖ or ‖OV‖.

    kq_off_diagonal, kq_antisymmetric: of the covariate block of KQ, in the bases; kq_labels: logits that read labels.
    ov_off_diagonal, ov_antisymmetric: of the label block of OV; ov_covariates: outputs that read covariates.
    The squares of the three of KQ add up to its squared distance, and so do those of OV; the larger distance is the
    residual. ‖KQ‖ leaves out the last I columns. Raises what `decompose` raises.
    """
    d, n_tasks = decomposition.omega.shape[1], decomposition.mu.shape[1]
    kq, ov = _in_bases(*check_weights(kq, ov, d, n_tasks), decomposition.bases)
    kq = kq[:, :, :d]
    parts = {
        "kq_off_diagonal": (_symmetric_off_diagonal(kq[:, :d]), kq),
        "kq_antisymmetric": (_antisymmetric(kq[:, :d]), kq),
        "kq_labels": (kq[:, d:], kq),
        "ov_off_diagonal": (_symmetric_off_diagonal(ov[:, :, d:]), ov),
        "ov_antisymmetric": (_antisymmetric(ov[:, :, d:]), ov),
        "ov_covariates": (ov[:, :, :d], ov),
    }
    return {cause: relative_norm(part, whole) for cause, (part, whole) in parts.items()}


def exchangeable(dim_x: int, n_tasks: int, support: Any, signal: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Classes of covariates (d,) that the same tasks read and of tasks (I,) with equal support and signal."""
    if support is None:
        support = np.ones((n_tasks, dim_x))
    mask = np.asarray(support.cpu() if isinstance(support, torch.Tensor) else support)
    if mask.shape != (n_tasks, dim_x):
        raise ValueError(f"support must be ({n_tasks} tasks, {dim_x} covariates), got shape {list(mask.shape)}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("support must hold booleans or 0 and 1")
    variances = as_float64("signal", 1.0 if signal is None else signal)
    if variances.shape not in ((), (n_tasks,)) or not (variances > 0).all():
        raise ValueError(f"signal must be positive, one number or ({n_tasks},), got {variances.tolist()}")
    per_task = np.column_stack([mask, np.broadcast_to(variances, n_tasks)])
    output_classes = np.unique(per_task, axis=0, return_inverse=True)[1].reshape(-1)
    return atoms(mask).class_of, output_classes


def check_tolerance(tolerance: float) -> float:
    """The tolerance; ValueError unless it is in [0, 1)."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be at least 0 and below 1, got {tolerance}")
    return float(tolerance)


def check_dim_x(dim_x: SupportsIndex) -> int:
    """The number of covariates; TypeError unless an integer, ValueError unless positive."""
    d = operator.index(dim_x)
    if d < 1:
        raise ValueError(f"dim_x must be at least 1, got {d}")
    return d


def rounding(*weights: Any) -> float:
    """The relative rounding error of the least precise of tensors and arrays."""
    return max(_rounding(value) for value in weights)


def _rounding(value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return torch.finfo(value.dtype).eps
    dtype = getattr(value, "dtype", None)
    return float(np.finfo(dtype if isinstance(dtype, np.dtype) and dtype.kind == "f" else np.float64).eps)


def _in_bases(kq: Floats, ov: Floats, bases: Bases) -> tuple[Floats, Floats]:
    """The weights with tokens and outputs written in the bases."""
    tokens = block_diag(bases.covariates, bases.outputs)
    return tokens.T @ kq @ tokens, bases.outputs.T @ ov @ tokens


def _symmetric_off_diagonal(blocks: Floats) -> Floats:
    return (blocks + blocks.swapaxes(1, 2)) / 2 * (1 - np.eye(blocks.shape[-1]))


def _antisymmetric(blocks: Floats) -> Floats:
    return (blocks - blocks.swapaxes(1, 2)) / 2
