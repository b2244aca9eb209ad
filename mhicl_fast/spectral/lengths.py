"""The loss that a model trained at one context length has at others.

Nothing in the weights refers to L. At either order the loss of given weights is affine in 1/L,

    loss(L') = floor + slope / L':

the floor is the bias, which no context cures, and slope / L' the variance of averages over L' examples (at first order
with what self-normalised weights add). In the state with one head per task, trained at L with r = e d φ / L, a task has
floor λ d r² / (1+r)² and slope L λ d r / (1+r)², so λ d (r² + r L/L') / (1+r)² in all: the bias was fitted to L.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ._inputs import Floats, ShortContextWarning, as_float64, check_order
from .asymptotic import asymptotic_loss
from .loss import spectral_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..tasks import MultiTaskRegression

_ENDLESS = 10**15  # a context length whose 1/L is nothing next to rounding


class LengthPrediction(NamedTuple):
    """loss (lengths,) = floor + slope / lengths; floor includes the noise of a noisy target."""

    lengths: Floats
    loss: Floats
    floor: float
    slope: float


def length_generalisation(
    task: MultiTaskRegression, mu: Any, omega: Any, lengths: Any, *, order: str = "leading"
) -> LengthPrediction:
    """Predicted loss at context lengths (lengths,) ≥ 1 of a state mu (H, I), omega (H, I or d); see `spectral_loss`.

    Only the values matter, not the length they were trained at. Warns with `ShortContextWarning` for first order and
    lengths below 400. Raises ValueError as `spectral_loss` does, and for lengths that are not whole numbers from 1 on.
    """
    return _affine(task, lengths, order, lambda at: float(spectral_loss(at, mu, omega, order=order)))


def length_generalisation_of_weights(
    task: MultiTaskRegression, kq: Any, ov: Any, lengths: Any, *, order: str = "first"
) -> LengthPrediction:
    """The same for full weights kq (H, D, D), ov (H, I, D), tensors or arrays; see `asymptotic_loss`."""
    kq, ov = (torch.as_tensor(as_float64(name, value)) for name, value in (("kq", kq), ("ov", ov)))
    return _affine(task, lengths, order, lambda at: float(asymptotic_loss(at, kq, ov, order=order)))


def check_lengths(lengths: Any) -> list[int]:
    """Context lengths as whole numbers; ValueError unless a non-empty sequence of such from 1 on."""
    values = as_float64("lengths", lengths)
    if values.ndim != 1 or not values.size or (values < 1).any() or (values != np.round(values)).any():
        raise ValueError(f"lengths must be a sequence of whole numbers from 1 on, got {np.asarray(lengths).tolist()}")
    return [int(value) for value in values]


def _affine(
    task: MultiTaskRegression, lengths: Any, order: str, loss_at: Callable[[MultiTaskRegression], float]
) -> LengthPrediction:
    values = np.array(check_lengths(lengths), dtype=np.float64)
    check_order(order, int(values.min()), stacklevel=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortContextWarning)
        floor, at_one = (loss_at(task.replace(context_length=length)) for length in (_ENDLESS, 1))
    return LengthPrediction(values, floor + (at_one - floor) / values, floor, at_one - floor)
