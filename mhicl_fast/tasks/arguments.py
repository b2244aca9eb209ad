"""The arguments of tasks, checked: sizes, arrays, covariances."""

from __future__ import annotations

import math
import operator
from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_SYMMETRY_TOLERANCE = 1e-10  # relative to the covariance's largest entry: what rounding leaves of A @ A.T


def integer(name: str, value: SupportsIndex, at_least: int | None = None) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value}")
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if at_least is not None and result < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {result}")
    return result


def as_array(name: str, value: ArrayLike | Tensor, expected: str) -> Tensor:
    """The value as a CPU tensor of its own. Through NumPy, which keeps the 64 bits of Python's floats."""
    try:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", copy=True)
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {expected}, got {value!r} ({error})") from None


def positive_definite(value: ArrayLike | Tensor, dim_x: int) -> tuple[Tensor, Tensor]:
    """The covariance in float64, exactly symmetric, and its lower Cholesky factor."""
    covariance = as_array("covariance", value, "a matrix (dim_x, dim_x)").double()
    if covariance.shape != (dim_x, dim_x):
        raise ValueError(f"covariance must be (dim_x, dim_x) = ({dim_x}, {dim_x}), got shape {list(covariance.shape)}")
    if not covariance.isfinite().all():
        raise ValueError("covariance must be finite, got NaN or infinite entries")
    asymmetry = (covariance - covariance.T).abs().max().item()
    if asymmetry > _SYMMETRY_TOLERANCE * covariance.abs().max().item():
        raise ValueError(f"covariance must be symmetric, got entries that differ from their mirror by {asymmetry:g}")
    covariance = (covariance + covariance.T) / 2
    factor = _cholesky(covariance.numpy())
    if factor is None:
        smallest = torch.linalg.eigvalsh(covariance)[0].item()
        raise ValueError(f"covariance must be positive definite, got smallest eigenvalue {smallest:g}")
    return covariance, torch.from_numpy(factor)


def _cholesky(matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The lower Cholesky factor, None if there is none: LAPACK's bits depend on its threads, these on nothing."""
    rest = matrix.copy()
    factor = np.zeros_like(rest)
    for j in range(len(rest)):
        if not rest[j, j] > 0:
            return None
        factor[j:, j] = rest[j:, j] / math.sqrt(rest[j, j])
        rest[j + 1 :, j + 1 :] -= np.multiply.outer(factor[j + 1 :, j], factor[j + 1 :, j])
    return factor
