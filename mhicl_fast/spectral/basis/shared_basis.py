"""The basis that several matrices share, how well they determine it, and a definite choice where they do not.

Only columns of one class may be turned into each other. To first order, noise E_k on the symmetric matrices turns
column p towards column q by Σ_k E_k,pq δ_k / Σ_k δ_k², where δ_k is the difference of their values in matrix k: by
about ε / gap, with ε the size of an off-diagonal entry of the noise and gap = √Σ_k δ_k². What the basis leaves off the
diagonal measures ε.

Noise alone makes gaps too. Where two columns have equal values, the points (S_pp − S_qq, 2 S_pq) of the K matrices are
normal with variance 4ε² per coordinate, so the sum of their squares, which bounds gap² in whatever basis
diagonalisation picks, is 4ε² χ² with 2K degrees of freedom (2K · F where few entries measure ε). A gap says nothing
where such a sum exceeds it with a chance of 10⁻³ over all n columns. Columns that such gaps link form a group; inside
it the basis nearest to the coordinate axes is as good as any.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2, f

from .._inputs import Floats
from .joint_diagonalisation import joint_diagonaliser, off_diagonal_squares

Groups = tuple[tuple[int, ...], ...]

_CHANCE = 1e-3
_CHEAP = 0.1  # of the matrices' norm: turning groups to the axes may leave this much more off the diagonal


class SharedBasis(NamedTuple):
    """columns (n, n), orthogonal: the basis vectors. groups: all columns, those that cannot be told apart together.

    errors (n,): the angle in radians between a column and the true one, or the span of its group, to be expected from
    the noise that the basis leaves.
    """

    columns: Floats
    groups: Groups
    errors: Floats


def shared_basis(
    matrices: Floats, classes: NDArray[np.intp], *, tolerance: float, rounding: float = float(np.finfo(float).eps)
) -> SharedBasis:
    """The basis in which matrices (K, n, n) are most nearly diagonal, rotating coordinates of equal class (n,) only.

    Values that agree within `tolerance` of the largest count as equal, on top of what the noise hides; `rounding` is
    the relative error that the entries have at least. Columns are ordered and signed to be nearest to the coordinate
    axes. Groups are turned to them as well, except where that would leave more than another tenth of the matrices'
    norm off the diagonal: matrices so far from a common basis keep the basis of least squares.
    """
    matrices = matrices / (np.abs(matrices).max() or 1.0)  # so that squares neither overflow nor vanish
    rotation = np.zeros((len(classes), len(classes)))
    for one in np.unique(classes):
        members = np.flatnonzero(classes == one)
        rotation[np.ix_(members, members)] = joint_diagonaliser(matrices[:, members][:, :, members])
    turned = rotation.T @ matrices @ rotation
    values = np.diagonal(turned, axis1=1, axis2=2)
    gaps = np.linalg.norm(values[:, :, None] - values[:, None, :], axis=0)
    largest = float(np.linalg.norm(values, axis=0).max())
    together = classes[:, None] == classes

    noise, evidence = _noise(turned, together, rounding)
    hidden = max(_hidden_gap(noise, evidence, values), _hidden_gap(rounding * largest, np.inf, values))
    labels: NDArray[np.intp]
    _, labels = connected_components(together & (gaps <= max(hidden, tolerance * largest)), directed=False)
    others = together & (labels[:, None] != labels)
    angles = np.divide(max(noise, rounding * largest), gaps, out=np.zeros_like(gaps), where=others)

    columns, order = _nearest_to_axes(rotation, labels, classes)
    costly = _costly(matrices, rotation, labels, columns, labels[order])
    if costly.any():
        apart = np.where(costly, labels.max() + 1 + np.arange(len(labels)), labels)
        columns, order = _nearest_to_axes(rotation, apart, classes)
    return SharedBasis(columns, _groups(labels[order]), np.linalg.norm(angles, axis=1)[order])


def _noise(turned: Floats, together: NDArray[np.bool_], rounding: float) -> tuple[float, int]:
    """Root mean square of an off-diagonal entry of the symmetric parts, and the number of entries it is known from.

    Antisymmetric parts have the same noise and count too, but those of symmetric matrices, such as products WᵀW, say
    nothing. Of the symmetric entries the basis has fitted one for each pair that it may turn.
    """
    pairs = np.triu_indices(len(together), 1)
    antisymmetric = (turned - turned.swapaxes(1, 2))[:, pairs[0], pairs[1]] / 2
    symmetric = (turned + turned.swapaxes(1, 2))[:, pairs[0], pairs[1]] / 2
    asymmetric = np.linalg.norm(antisymmetric, axis=1) > rounding * len(together) * np.linalg.norm(turned, axis=(1, 2))
    count = len(pairs[0]) * (len(turned) + int(asymmetric.sum())) - int(together[pairs].sum())
    squares = np.square(symmetric).sum() + np.square(antisymmetric[asymmetric]).sum()
    return (float(np.sqrt(squares / count)), count) if count else (0.0, 0)


def _hidden_gap(noise: float, evidence: float, values: Floats) -> float:
    """The largest gap that noise alone makes between equal ones of the values (K, n), as the module explains."""
    if noise == 0:
        return 0.0
    degrees, chance = 2 * len(values), _CHANCE / values.shape[1]
    quantile = f.isf(chance, degrees, evidence) if np.isfinite(evidence) else chi2.isf(chance, degrees) / degrees
    return 2 * noise * float(np.sqrt(degrees * quantile))


def _nearest_to_axes(
    rotation: Floats, labels: NDArray[np.intp], classes: NDArray[np.intp]
) -> tuple[Floats, NDArray[np.intp]]:
    """The columns, each group turned, ordered and signed to be nearest to axes of its class; and which went where.

    The axes are assigned to the groups for the largest sum of squared projections on their spans. Then with G the
    group's columns and E its axes, ‖G X − E‖ is least for X the orthogonal polar factor of GᵀE.
    """
    same = (labels[:, None] == labels).astype(np.float64)
    projections = np.square(rotation) @ same  # (axes, columns): of the axis on the span of the column's group
    projections[classes[:, None] != classes] = -len(labels)
    _, order = linear_sum_assignment(-projections)
    columns = rotation[:, order]
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        left, _, right = np.linalg.svd(columns[members][:, members].T)
        columns[:, members] = columns[:, members] @ (left @ right)
    return columns, order


def _costly(
    matrices: Floats, rotation: Floats, before: NDArray[np.intp], columns: Floats, after: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Whether the group of each column of `rotation` is much less diagonal among `columns`, for its size."""
    allowed = (_CHEAP * float(np.linalg.norm(matrices))) ** 2 / len(before)  # of each column
    costly = np.zeros(len(before), dtype=bool)
    for label in np.unique(before):
        members = before == label
        left = off_diagonal_squares(matrices, columns[:, after == label])
        costly[members] = left - off_diagonal_squares(matrices, rotation[:, members]) > allowed * members.sum()
    return costly


def _groups(labels: NDArray[np.intp]) -> Groups:
    """The columns of equal label, in order of the first column of each group."""
    return tuple(tuple(np.flatnonzero(labels == label).tolist()) for label in dict.fromkeys(labels.tolist()))
