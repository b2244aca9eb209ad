"""Means over prompts, ratios of means and correlations, with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .record import Record


@dataclass(frozen=True, eq=False)
class Estimate(Record):
    """Estimated numbers and their standard errors, of one shape; NaN where undefined."""

    value: NDArray[np.float64]
    se: NDArray[np.float64]

    def __getitem__(self, index: Any) -> Estimate:
        return Estimate(np.asarray(self.value[index]), np.asarray(self.se[index]))

    def at(self, index: Any) -> tuple[float, float]:
        """One of the numbers with its standard error."""
        return float(self.value[index]), float(self.se[index])


def mean(values: ArrayLike) -> Estimate:
    """Mean over the last axis of independent prompts (…, P): s.e. is the standard deviation / √P, NaN for P < 2."""
    samples = _samples(values)
    return _linear(samples.mean(-1), samples)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Estimate:
    """Ratio of the means of two paired samples (…, P), NaN where the denominator's mean is 0.

    By the delta method, A/B varies as the mean of (a_p − (A/B) b_p) / B.
    """
    a, b = np.broadcast_arrays(_samples(numerator), _samples(denominator))
    bottom = b.mean(-1)
    bottom = np.where(bottom == 0, np.nan, bottom)
    quotient = a.mean(-1) / bottom
    return _linear(quotient, (a - quotient[..., None] * b) / bottom[..., None])


def correlation(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Correlation of two variables (…, P, K) measured K times in each of P independent prompts.

    NaN where one does not vary. With r = C/√(AB) of the covariance C and the variances A and B, r varies as the mean of
    r (c_p/C − a_p/2A − b_p/2B), the prompts' shares of the three.
    """
    x, y = np.broadcast_arrays(_samples(first), _samples(second))
    x, y = (z - z.mean((-2, -1), keepdims=True) for z in (x, y))
    c, a, b = ((u * v).mean(-1) for u, v in ((x, y), (x, x), (y, y)))  # each (…, P)
    spread = np.sqrt(a.mean(-1) * b.mean(-1))
    spread = np.where(spread == 0, np.nan, spread)
    r = c.mean(-1) / spread
    shares = c / spread[..., None]
    for variance in (a, b):
        total = variance.mean(-1)
        shares = shares - r[..., None] / 2 * variance / np.where(total == 0, np.nan, total)[..., None]
    return _linear(r, shares)


def stacked(estimates: Sequence[Estimate], shape: tuple[int, ...]) -> Estimate:
    """Estimates (…) one after another as one of shape (*shape, …)."""
    value, se = (np.stack(parts) for parts in zip(*((part.value, part.se) for part in estimates)))
    return Estimate(*(part.reshape(*shape, *part.shape[1:]) for part in (value, se)))


def _linear(value: ArrayLike, influence: NDArray[np.float64]) -> Estimate:
    """An estimate that varies as the mean of the influences (…, P)."""
    count = influence.shape[-1]
    spread = influence.std(-1, ddof=1) if count > 1 else np.full(influence.shape[:-1], np.nan)
    return Estimate(np.asarray(value), np.asarray(spread / np.sqrt(count)))


def _samples(values: ArrayLike) -> NDArray[np.float64]:
    samples = np.asarray(values, dtype=np.float64)
    if samples.ndim < 1 or samples.shape[-1] < 1:
        raise ValueError(f"there must be at least one sample, got shape {list(samples.shape)}")
    return samples
