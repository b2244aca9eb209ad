"""Least squares on many prompts at once, in the eigenbasis of each prompt's Gram matrix.

Gradient descent after any number of steps, ridge regression with any penalty and the solution of minimum norm all have
the form f(Σ̂) Xᵀy/n with Σ̂ = XᵀX/n and some function f of the eigenvalues, so one decomposition serves all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Eigenbasis:
    """N least-squares problems min_β ‖y − Xβ‖² with X (n, d), decomposed once.

    With fewer examples than covariates n × n matrices are decomposed: f(XᵀX/n) Xᵀ = Xᵀ f(XXᵀ/n).

    Args:
        x: (N, n, d) covariates, float32 or float64.
        y: (N, n) labels.

    Raises ValueError for other shapes and TypeError for other types.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        check_examples(x, y)
        n, dim = x.shape[1:]
        root = max(n, 1) ** 0.5
        self.n_examples, self.dim = n, dim
        if n < dim:
            self.values, vectors = torch.linalg.eigh(x @ x.mT / max(n, 1))
            self._basis, right = x.mT @ vectors / root, y / root  # (N, d, n), (N, n)
        else:
            self.values, vectors = torch.linalg.eigh(x.mT @ x / max(n, 1))
            self._basis, right = vectors, moments(x, y)  # (N, d, d), (N, d)
        self.values = self.values.clamp_min(0)  # (N, min(n, d)), ascending
        self._right = (vectors.mT @ right[..., None])[..., 0]

    @property
    def largest(self) -> Tensor:
        """λ_max of XᵀX/n: (N,)."""
        if self.values.shape[1]:
            return self.values[:, -1]
        return self.values.new_zeros(len(self.values))

    def filtered(self, factors: Tensor) -> Tensor:
        """f(XᵀX/n) Xᵀy/n, (…, N, d), for the values f (…, N, min(n, d)) at the eigenvalues."""
        return torch.einsum("ndr,...nr->...nd", self._basis, factors * self._right)

    def descent(self, steps: int, step_size: Tensor) -> Tensor:
        """Coefficients (…, N, d) after that many steps of size η (…, N) from 0: β ← β − (η/n) Xᵀ(Xβ − y).

        f(λ) = η Σ_{k < steps} (1 − ηλ)ᵏ.
        """
        rate = step_size[..., None]
        return self.filtered(rate * geometric_sum(1 - rate * self.values, steps))

    def ridge(self, penalty: Tensor | float) -> Tensor:
        """argmin ‖y − Xβ‖² + κ‖β‖² with κ ≥ 0 (…, N) or a number; κ = 0: of all minimisers that of the least norm."""
        kappa = torch.as_tensor(penalty, dtype=self.values.dtype, device=self.values.device)[..., None]
        denominator = self.values + kappa / max(self.n_examples, 1)
        epsilon = torch.finfo(self.values.dtype).eps
        smallest = epsilon * max(self.n_examples, self.dim) * self.largest[:, None]
        known = (self.values > smallest) | (kappa > 0)
        return self.filtered(torch.where(known, 1 / denominator, 0.0))


def moments(x: Tensor, y: Tensor) -> Tensor:
    """Xᵀy/n, (N, d): 0 without examples."""
    return (x.mT @ y[..., None])[..., 0] / max(x.shape[1], 1)


def geometric_sum(ratio: Tensor, terms: int) -> Tensor:
    """Σ_{k < terms} ratioᵏ without cancellation where the ratio is close to 1: the number of terms is built up from its
    binary digits by S_2m = (1 + ratioᵐ) S_m and S_{m+1} = 1 + ratio · S_m."""
    total, power = torch.zeros_like(ratio), torch.ones_like(ratio)  # S_0 and ratio⁰
    for digit in f"{terms:b}":
        total, power = (1 + power) * total, power * power
        if digit == "1":
            total, power = 1 + ratio * total, power * ratio
    return total


def check_examples(x: Tensor, y: Tensor) -> None:
    """Raise TypeError or ValueError unless x is (N, n, d) with d ≥ 1 and y (N, n), both float32 or both float64."""
    for name, tensor in (("x", x), ("y", y)):
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, torch.float64):
            came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a tensor of float32 or float64, got {came}")
    if x.dtype != y.dtype:
        raise TypeError(f"x and y must have one dtype, got {x.dtype} and {y.dtype}")
    if x.dim() != 3 or x.shape[2] < 1:
        raise ValueError(f"x must be (prompts, examples, covariates), got shape {list(x.shape)}")
    if y.shape != x.shape[:2]:
        raise ValueError(f"y must be (prompts, examples) = {list(x.shape[:2])}, got shape {list(y.shape)}")
