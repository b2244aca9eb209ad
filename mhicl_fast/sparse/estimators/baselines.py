"""Estimators that the algorithm is compared with, for many prompts at once.

All take covariates (N, n, d) and labels (N, n), float32 or float64, and return coefficients (…, N, d); ValueError or
TypeError for other shapes and types. `excess_risk` says how good they are, without drawing a query.
"""

from __future__ import annotations

import math

from torch import Tensor

from .eigenbasis import Eigenbasis


def ridge(x: Tensor, y: Tensor, penalty: float | Tensor) -> Tensor:
    """argmin Σ_i (y_i − β·x_i)² + κ‖β‖² for κ ≥ 0: a number, (N,) or (…, N). κ = 0 is `minimum_norm`."""
    return Eigenbasis(x, y).ridge(penalty)


def bayes_penalty(dim_x: int, sparsity: int, noise_variance: float) -> float:
    """κ = σ²d/s, with which ridge regression is best among linear estimators, as w has the variance s/d per coefficient
    (s = 0: infinite, so that the coefficients are 0)."""
    return noise_variance * dim_x / sparsity if sparsity else math.inf


def minimum_norm(x: Tensor, y: Tensor) -> Tensor:
    """Least squares; where many coefficients fit equally well, those of the least norm.

    For Gaussian covariates and noisy labels its expected risk is infinite for n from d − 1 to d + 1: see
    `has_infinite_risk`.
    """
    return Eigenbasis(x, y).ridge(0.0)


def has_infinite_risk(n_examples: int, dim: int, noise_variance: float) -> bool:
    """Whether least squares of minimum norm has infinite expected risk: E tr (XᵀX)⁺ is finite for Gaussian covariates
    only where n ≥ d + 2 or n ≤ d − 2, and that of no examples or covariates is 0."""
    return noise_variance > 0 and n_examples > 0 and dim > 0 and abs(n_examples - dim) <= 1


def support_least_squares(x: Tensor, y: Tensor, coefficients: Tensor) -> Tensor:
    """Least squares on the covariates where w, (N, d), is not 0, as if an oracle named them: a floor."""
    support = (coefficients != 0).to(x)
    return minimum_norm(x * support[:, None, :], y) * support


def usual_lasso_penalty(dim_x: int, n_examples: int, noise_variance: float) -> float:
    """λ = σ √(2 log d / n), the usual rate; without noise that is 0, the least ℓ₁ norm that fits."""
    return math.sqrt(noise_variance * 2 * math.log(dim_x) / n_examples) if n_examples else 0.0


def excess_risk(estimate: Tensor, coefficients: Tensor, covariance: Tensor | None = None) -> Tensor:
    """(β − w)ᵀΣ(β − w), (…, N), of estimates (…, N, d) of w (N, d): the mean of (β·x_q − w·x_q)² over x_q ~ N(0, Σ)."""
    error = estimate - coefficients
    weighted = error if covariance is None else error @ covariance.to(error)
    return (weighted * error).sum(-1)
