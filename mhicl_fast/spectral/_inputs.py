"""Checks and conversions shared by the spectral functions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression

Floats: TypeAlias = NDArray[np.float64]
Order = Literal["leading", "first"]

SHORTEST_FIRST_ORDER_CONTEXT = 400


class ShortContextWarning(UserWarning):
    """First-order losses were asked for at a context length where the expansion in 1/L is not accurate."""


def as_float64(name: str, value: Any) -> Floats:
    """A float64 numpy copy of a tensor, an array or nested numbers; ValueError where an entry is not finite."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    array = np.array(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} NaN or infinite entries")
    return array


def check_mu(task: MultiTaskRegression, mu: Any, name: str = "mu") -> Floats:
    """μ as a float64 array of shape (..., H, I)."""
    array = as_float64(name, mu)
    if array.ndim < 2 or array.shape[-1] != task.n_tasks or array.shape[-2] < 1:
        raise ValueError(f"{name} must be (..., heads, {task.n_tasks} tasks), got shape {list(array.shape)}")
    return array


def check_heads(mu: Floats, omega: Floats) -> None:
    """The two must agree on the number of heads and broadcast over the leading dimensions."""
    if mu.shape[-2] != omega.shape[-2]:
        raise ValueError(f"mu has {mu.shape[-2]} heads, omega has {omega.shape[-2]}")
    try:
        np.broadcast_shapes(mu.shape[:-2], omega.shape[:-2])
    except ValueError:
        raise ValueError(
            f"the leading dimensions of mu {list(mu.shape)} and omega {list(omega.shape)} do not broadcast"
        ) from None


def check_order(order: str, context_length: int, *, stacklevel: int = 3) -> None:
    """ValueError for an unknown order; `ShortContextWarning` for first order below 400 context examples."""
    check_choice("order", order, get_args(Order))
    if order == "first" and context_length < SHORTEST_FIRST_ORDER_CONTEXT:
        warnings.warn(
            f'order="first" is an expansion for context lengths in the hundreds and more; at L = {context_length} '
            "it is often worse than the leading order",
            ShortContextWarning,
            stacklevel=stacklevel,
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError naming the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_positive(name: str, value: float) -> float:
    """The value as a float; ValueError unless positive and finite."""
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def has_identity_covariance(task: MultiTaskRegression) -> bool:
    """Whether the covariates have Σ = Id."""
    return task.covariance is None or bool(torch.equal(task.covariance, torch.eye(task.dim_x, dtype=torch.float64)))


def require_identity_covariance(task: MultiTaskRegression, what: str) -> None:
    """ValueError unless Σ = Id: the diagonal formulas have one value per covariate, which Σ would mix."""
    if not has_identity_covariance(task):
        raise ValueError(
            f"{what} needs covariates with identity covariance; for another covariance use asymptotic_loss, "
            "which takes full matrices"
        )
