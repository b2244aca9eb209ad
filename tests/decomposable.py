"""Decomposable weights with bases that are known, for the tests of decompositions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float64]


class Planted(NamedTuple):
    """Weights and what a decomposition of them should find."""

    kq: Floats
    ov: Floats
    omega: Floats
    mu: Floats
    covariates: Floats
    outputs: Floats


def classes(rows: Floats | NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Indices of equal columns, class by class."""
    found: dict[bytes, list[int]] = {}
    for index, column in enumerate(np.ascontiguousarray(np.asarray(rows, float).T)):
        found.setdefault(column.tobytes(), []).append(index)
    return [np.array(members) for members in found.values()]


def rotation_within(groups: list[NDArray[np.intp]], rng: np.random.Generator) -> Floats:
    """A random orthogonal matrix (either orientation) that mixes indices of one group only."""
    n = sum(map(len, groups))
    rotation = np.zeros((n, n))
    for members in groups:
        rotation[np.ix_(members, members)] = np.linalg.qr(rng.normal(size=(len(members),) * 2))[0]
    return rotation


def allowed_rotations(support, signal, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Rotations of covariates that the same tasks read, and of tasks with equal support and signal."""
    support = np.asarray(support, float)
    tasks = np.column_stack([support, np.broadcast_to(1.0 if signal is None else signal, len(support))])
    return rotation_within(classes(support), rng), rotation_within(classes(tasks.T), rng)


def assemble(omega: Floats, mu: Floats, covariates: Floats, outputs: Floats) -> Planted:
    """The decomposable weights with these semi-singular values in these bases."""
    (heads, d), n_tasks = omega.shape, mu.shape[1]
    kq, ov = np.zeros((heads, d + n_tasks, d + n_tasks)), np.zeros((heads, n_tasks, d + n_tasks))
    for h in range(heads):
        kq[h, :d, :d] = covariates @ np.diag(omega[h]) @ covariates.T
        ov[h, :, d:] = outputs @ np.diag(mu[h]) @ outputs.T
    return Planted(kq, ov, omega, mu, covariates, outputs)


def plant(support, signal, heads: int, rng: np.random.Generator) -> Planted:
    """Values of both signs in random bases."""
    support = np.asarray(support)
    omega, mu = rng.normal(size=(heads, support.shape[1])), rng.normal(size=(heads, len(support)))
    return assemble(omega, mu, *allowed_rotations(support, signal, rng))


def matching(found: Floats, true: Floats) -> tuple[NDArray[np.intp], float]:
    """The true column that each found one is, up to sign, and the largest angle between the two."""
    overlap = np.abs(true.T @ found)
    rows, columns = linear_sum_assignment(-overlap)
    order = np.empty_like(rows)
    order[columns] = rows
    signs = np.sign((true[:, order] * found).sum(0))
    return order, float(np.linalg.norm(true[:, order] * signs - found, axis=0).max())


def span_distance(found: Floats, true: Floats) -> float:
    """Largest sine of an angle between the spans of two orthonormal sets of columns."""
    return float(np.linalg.norm(found @ found.T - true @ true.T, 2))
