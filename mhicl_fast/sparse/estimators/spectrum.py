"""Excess risk of gradient descent, on raw and on preprocessed covariates, from the spectrum of the sample covariance.

With Σ̂ = XᵀX/n, y = Xw + ξ, and E ξξᵀ = σ²I, k steps of size η from 0 end at β = f(Σ̂)(Σ̂w + Xᵀξ/n), where
f(λ) = (1 − (1 − ηλ)ᵏ)/λ. Its risk (β − w)ᵀΣ(β − w) has, given X, the expectation

    bias      Σ_i q_i (1 − ηλ_i)²ᵏ s/d            over w, whose second moment is (s/d) I,
    variance  (σ²/n) Σ_i q_i λ_i f(λ_i)²           over ξ,

with the eigenvalues λ_i and eigenvectors v_i of Σ̂ and q_i = v_iᵀΣv_i, which is 1 for Σ = I. This is exact.

Preprocessed, β = R̂ f(M)R̂(Σ̂w + Xᵀξ/n) with M = R̂Σ̂R̂. Were R̂ = diag(r̂) independent of ξ, the same would hold with the
spectrum of M: given X, w and R̂

    bias      ‖w − R̂ f(M)R̂Σ̂w‖²_Σ,
    variance  (σ²/n) Σ_i q_i λ_i f(λ_i)²           with q_i = u_iᵀR̂ΣR̂u_i and the eigenvectors u_i of M.

But r̂ = Σ̂w + Xᵀξ/n has the same noise. Treating it as another draw of that noise leaves out that the covariates which
the noise enlarges are those that it is fitted on, so that the risk comes out too low where noise matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .algorithm import step_sizes_of
from .eigenbasis import geometric_sum


class RiskParts(NamedTuple):
    """Expected excess risk of each draw in two parts that add up to it, each (…, N)."""

    bias: Tensor
    variance: Tensor

    @property
    def risk(self) -> Tensor:
        return self.bias + self.variance


@dataclass(frozen=True, eq=False)
class RawSpectrum:
    """The spectra of N sample covariances (N, d, d), with the covariates' covariance Σ (d, d); the identity if None."""

    values: Tensor  # λ (N, d)
    weights: Tensor  # q (N, d)

    @classmethod
    def of(cls, sample: Tensor, covariance: Tensor | None = None) -> RawSpectrum:
        """Decompose; ValueError for other shapes."""
        check_covariances(sample, covariance)
        values, vectors = torch.linalg.eigh(sample)
        return cls(values.clamp_min(0), _weights(vectors, covariance))

    def risk(
        self, n_examples: int, *, signal_variance: float, noise_variance: float, steps: int, c: Tensor | float = 1.0
    ) -> RiskParts:
        """Of gradient descent with η = c / λ_max, c a number or (…, 1), for w with variance s/d per coefficient."""
        rate = _rates(self.values, c)
        left = (1 - rate * self.values) ** steps
        bias = signal_variance * (self.weights * left**2).sum(-1)
        return RiskParts(bias, _variance(self.values, self.weights, rate, steps, noise_variance / n_examples))


@dataclass(frozen=True, eq=False)
class PreprocessedSpectrum:
    """The spectra of N matrices R̂Σ̂R̂, with what the risk takes besides."""

    values: Tensor  # λ (N, d)
    weights: Tensor  # q (N, d)
    back: Tensor  # R̂U (N, d, d)
    moments: Tensor  # UᵀR̂Σ̂w (N, d)
    coefficients: Tensor  # w (N, d)
    covariance: Tensor | None

    @classmethod
    def of(
        cls, sample: Tensor, scales: Tensor, coefficients: Tensor, covariance: Tensor | None = None
    ) -> PreprocessedSpectrum:
        """Decompose, for sample covariances (N, d, d), r̂ (N, d) and w (N, d); ValueError for other shapes."""
        check_covariances(sample, covariance)
        if scales.shape != sample.shape[:2] or coefficients.shape != sample.shape[:2]:
            raise ValueError(
                f"scales and coefficients must be (draws, covariates) = {list(sample.shape[:2])}, "
                f"got shapes {list(scales.shape)} and {list(coefficients.shape)}"
            )
        scaled = sample * scales[:, None, :]  # Σ̂R̂
        values, vectors = torch.linalg.eigh(scales[..., None] * scaled)
        back = scales[..., None] * vectors
        moments = (back.mT @ (sample @ coefficients[..., None]))[..., 0]
        return cls(values.clamp_min(0), _weights(back, covariance), back, moments, coefficients, covariance)

    def risk(self, n_examples: int, *, noise_variance: float, steps: int, c: Tensor | float = 1.0) -> RiskParts:
        """Of gradient descent with η = c / λ_max, c a number or (…, 1)."""
        rate = _rates(self.values, c)
        found = (self.back @ (rate * geometric_sum(1 - rate * self.values, steps) * self.moments)[..., None])[..., 0]
        missed = self.coefficients - found
        weighted = missed if self.covariance is None else missed @ self.covariance.to(missed)
        variance = _variance(self.values, self.weights, rate, steps, noise_variance / n_examples)
        return RiskParts((weighted * missed).sum(-1), variance)


def scale_moments(
    coefficients: Tensor, n_examples: int, noise_variance: float, covariance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean (N, d) and covariance (N, d, d) of r̂ = Xᵀy/n over X and ξ, given w (N, d), exactly.

    E r̂ = Σw and Cov r̂ = ((wᵀΣw + σ²) Σ + Σw wᵀΣ)/n, as E x_j x_k (x·w)² = Σ_jk wᵀΣw + 2 (Σw)_j (Σw)_k for Gaussian x.
    With Σ = I a coordinate has the variance (‖w‖² + w_j² + σ²)/n, and two have the covariance w_j w_k/n.
    """
    sigma = torch.eye(coefficients.shape[1]).to(coefficients) if covariance is None else covariance.to(coefficients)
    mean = coefficients @ sigma
    size = (mean * coefficients).sum(-1) + noise_variance
    return mean, (size[:, None, None] * sigma + mean[:, :, None] * mean[:, None, :]) / n_examples


def gaussian_scales(
    coefficients: Tensor,
    n_examples: int,
    noise_variance: float,
    generator: torch.Generator,
    covariance: Tensor | None = None,
) -> Tensor:
    """Draws (N, d) of a Gaussian with the moments of r̂, independent of the data: what is known of R̂ without any.

    Σw (1 + g₀/√n) + √((wᵀΣw + σ²)/n) Σ^½ g has them.
    """
    normal = torch.randn((*coefficients.shape[:1], coefficients.shape[1] + 1), generator=generator, dtype=torch.float64)
    common, each = normal[:, :1].to(coefficients), normal[:, 1:].to(coefficients)
    mean = coefficients
    if covariance is not None:
        mean, each = coefficients @ covariance.to(mean), each @ torch.linalg.cholesky(covariance).T.to(mean)
    size = (mean * coefficients).sum(-1, keepdim=True) + noise_variance
    return mean * (1 + common / n_examples**0.5) + (size / n_examples).sqrt() * each


def check_covariances(sample: Tensor, covariance: Tensor | None) -> None:
    """ValueError unless `sample` is (N, d, d) and `covariance` (d, d) or None."""
    if sample.dim() != 3 or sample.shape[1] != sample.shape[2]:
        raise ValueError(f"sample covariances must be (draws, covariates, covariates), got shape {list(sample.shape)}")
    if covariance is not None and covariance.shape != sample.shape[1:]:
        raise ValueError(f"covariance must be {list(sample.shape[1:])}, got shape {list(covariance.shape)}")


def _weights(vectors: Tensor, covariance: Tensor | None) -> Tensor:
    """v_iᵀΣv_i of the columns: (N, d)."""
    weighted = vectors if covariance is None else covariance.to(vectors) @ vectors
    return (weighted * vectors).sum(1)


def _rates(values: Tensor, c: Tensor | float) -> Tensor:
    """η of each draw, (…, N, 1)."""
    return (c * step_sizes_of(values[:, -1]))[..., None]


def _variance(values: Tensor, weights: Tensor, rate: Tensor, steps: int, noise: float) -> Tensor:
    """noise · Σ_i q_i λ_i f(λ_i)²."""
    factor = rate * geometric_sum(1 - rate * values, steps)
    return noise * (weights * values * factor**2).sum(-1)
