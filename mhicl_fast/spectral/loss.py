"""The population loss of decomposable weights, as a function of the semi-singular values, and its gradient.

Heads h, g; tasks i; classes m of n_m covariates each with one ω (see `atoms`); R_im = 1 where task i reads class m:

    b_im = 1 − Σ_h μ_i^h ω_m^h,   E_hg = exp(Σ_m n_m ω_m^h ω_m^g),   c_i = λ_i d_i + σ²
    leading = Σ_i λ_i Σ_m R_im n_m b_im² + (1/L) Σ_hg V_hg E_hg,     V_hg = Σ_i c_i μ_i^h μ_i^g

At first order every 1/L term is kept at finite d. With A_hgm = 1 − 2 ω_m^h ω_m^g, averaging over a Gaussian query gives
M_hg = Π_m A_hgm^{−n_m/2} in place of E, and two more terms,

    (2/L) Σ_h M_hh B_h,    B_h  = Σ_m n_m (ω_m^h / A_hhm) Σ_i λ_i R_im μ_i^h b_im
    (1/L) Σ_hg M_hg C_hg,  C_hg = Σ_m n_m (ω_m^h ω_m^g / A_hgm) Σ_i λ_i R_im μ_i^h μ_i^g

the first from the bias of self-normalised weights, E a_h = r_h (1 − e^{|r_h|²}/L), the second from the tilt in
Cov(a_h, a_g) = e^{r_h·r_g} (Id + r_g r_hᵀ) / L, where r_h = W_h x_q. They exist only where every A is positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._inputs import Floats, check_heads, check_mu, check_order, require_identity_covariance
from .atoms import Partition, resolve_omega

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression


def spectral_loss(task: MultiTaskRegression, mu: Any, omega: Any, *, order: str = "leading") -> Floats:
    """Population loss of decomposable weights at leading or first order in 1/L, summed over tasks.

    mu (..., H, I); omega (..., H, I) with disjoint supports or (..., H, d) -> (...) float64. A noisy target adds σ² I.
    Raises ValueError where `order="first"` meets some 2 ω_m^h ω_m^g ≥ 1: the average over queries does not exist.
    ValueError too where a value overflows. Warns with `ShortContextWarning` for first order below L = 400.
    """
    mu, omega, problem = _prepare(task, mu, omega, order)
    with np.errstate(over="ignore", invalid="ignore"):
        loss = np.asarray(problem.value(mu, omega))
    _require_finite(loss, omega)
    return loss


def spectral_gradient(
    task: MultiTaskRegression, mu: Any, omega: Any, *, order: str = "leading"
) -> tuple[Floats, Floats]:
    """Gradient of `spectral_loss`: (∂Loss/∂μ (..., H, I), ∂Loss/∂ω (..., H, I or d)).

    For ω per task this is the derivative when all d_i covariates of the task move together: d_i times that of one.
    """
    mu, omega, problem = _prepare(task, mu, omega, order)
    with np.errstate(over="ignore", invalid="ignore"):
        by_mu, by_omega = problem.gradient(mu, omega)
    _require_finite(by_mu, omega)
    _require_finite(by_omega, omega)
    return by_mu, by_omega


def _require_finite(result: Floats, omega: Floats) -> None:
    if not np.isfinite(result).all():
        raise ValueError(f"the loss overflows float64: the largest |ω| is {np.abs(omega).max():.6g}")


def _prepare(task: MultiTaskRegression, mu: Any, omega: Any, order: str) -> tuple[Floats, Floats, SpectralProblem]:
    check_order(order, task.context_length, stacklevel=4)
    require_identity_covariance(task, "the diagonal loss")
    mu = check_mu(task, mu)
    omega, partition = resolve_omega(task, omega)
    check_heads(mu, omega)
    problem = SpectralProblem.of(task, partition, order)
    problem.require_domain(omega)
    return mu, omega, problem


@dataclass(frozen=True, eq=False)
class SpectralProblem:
    """The loss on one partition of the covariates, without checks: what the ODE integrates.

    reads (I, M) as 0/1, count n (M,), signal λ (I,), variance c (I,), the label noise that a noisy target adds.
    """

    reads: Floats
    count: Floats
    signal: Floats
    variance: Floats
    context_length: int
    target_noise: float
    first_order: bool

    @classmethod
    def of(cls, task: MultiTaskRegression, partition: Partition, order: str) -> SpectralProblem:
        reads = partition.reads.astype(np.float64)
        signal = np.asarray(task.signal, dtype=np.float64)
        return cls(
            reads=reads,
            count=partition.count,
            signal=signal,
            variance=signal * (reads @ partition.count) + task.noise_std**2,
            context_length=task.context_length,
            target_noise=task.target_noise,
            first_order=order == "first",
        )

    def in_domain(self, omega: Floats) -> NDArray[np.bool_]:
        """Whether the loss exists, (..., H, M) -> (...). |ω_h ω_g| ≤ max ω², so the diagonal A_hh decides."""
        if not self.first_order:
            return np.ones(omega.shape[:-2], dtype=bool)
        return 2 * np.square(omega).max((-2, -1)) < 1

    def require_domain(self, omega: Floats) -> None:
        """ValueError unless the loss exists everywhere."""
        if not self.in_domain(omega).all():
            raise ValueError(
                "the first-order loss does not exist where 2 ω² ≥ 1 for some head and covariate; "
                f"the largest |ω| is {np.abs(omega).max():.6g}, it must be below {np.sqrt(0.5):.6g}"
            )

    def value(self, mu: Floats, omega: Floats) -> Floats:
        """Loss, mu (..., H, I), omega (..., H, M) -> (...)."""
        bias = self._bias(mu, omega)
        squared_bias = np.einsum("i,...im,m->...", self.signal, self.reads * bias**2, self.count)
        kernel, inverse_a = self._kernel(omega)
        pairs = np.einsum("i,...hi,...gi->...hg", self.variance, mu, mu)  # V
        if self.first_order:
            pairs = pairs + self._tilt(mu, omega, inverse_a)
            diagonal = np.einsum("...hh->...h", kernel)
            squared_bias = squared_bias + 2 / self.context_length * np.sum(
                diagonal * self._shrinkage(mu, omega, bias, inverse_a), -1
            )
        return squared_bias + np.sum(pairs * kernel, (-2, -1)) / self.context_length + self.target_noise

    def gradient(self, mu: Floats, omega: Floats) -> tuple[Floats, Floats]:
        """(∂Loss/∂μ, ∂Loss/∂ω) at mu (..., H, I), omega (..., H, M)."""
        # ∂b_im/∂μ_i^h = −ω_m^h and ∂b_im/∂ω_m^h = −μ_i^h, each weighted by ∂Loss/∂b_im.
        bias = self._bias(mu, omega)
        weighted = self.signal[:, None] * self.reads * self.count  # λ_i R_im n_m
        by_bias = 2 * weighted * bias
        kernel, inverse_a = self._kernel(omega)
        pairs = np.einsum("i,...hi,...gi->...hg", self.variance, mu, mu)
        by_mu = 2 / self.context_length * self.variance * (kernel @ mu)
        by_omega: Floats = np.zeros(())
        if self.first_order:
            by_bias = by_bias + self._shrinkage_by_bias(mu, omega, kernel, inverse_a, weighted)
            mu_terms, omega_terms = self._first_order_gradient(mu, omega, bias, kernel, inverse_a)
            by_mu = by_mu + mu_terms
            by_omega = by_omega + omega_terms
            pairs = pairs + self._tilt(mu, omega, inverse_a)
        # F_hg(ω_h, ω_g) is symmetric, so its double sum moves by twice the derivative in the first argument,
        # and ∂E_hg/∂ω_m^h = n_m ω_m^g E_hg (over A_hgm at first order).
        slope = self.count * omega[..., None, :, :]  # (..., 1, G, M)
        if self.first_order:
            slope = slope * inverse_a
        by_omega = by_omega + 2 / self.context_length * np.sum((pairs * kernel)[..., None] * slope, -2)
        by_mu = by_mu - np.einsum("...im,...hm->...hi", by_bias, omega)
        return by_mu, by_omega - np.einsum("...im,...hi->...hm", by_bias, mu)

    def _bias(self, mu: Floats, omega: Floats) -> Floats:
        return 1 - np.einsum("...hi,...hm->...im", mu, omega)

    def _kernel(self, omega: Floats) -> tuple[Floats, Floats]:
        """E (..., H, H), or M with 1/A (..., H, H, M)."""
        if not self.first_order:
            return np.exp((omega * self.count) @ np.swapaxes(omega, -1, -2)), np.ones(1)
        a = 1 - 2 * omega[..., :, None, :] * omega[..., None, :, :]
        return np.exp(-0.5 * np.log(a) @ self.count), 1 / a

    def _tilt(self, mu: Floats, omega: Floats, inverse_a: Floats) -> Floats:
        """C (..., H, H)."""
        ratio = omega[..., :, None, :] * omega[..., None, :, :] * inverse_a * self.count
        return np.einsum("...hgm,...hgm->...hg", ratio, self._shared_signal(mu))

    def _shared_signal(self, mu: Floats) -> Floats:
        """Σ_i λ_i R_im μ_i^h μ_i^g, (..., H, H, M)."""
        return np.einsum("im,...hi,...gi->...hgm", self.signal[:, None] * self.reads, mu, mu)

    def _shrinkage(self, mu: Floats, omega: Floats, bias: Floats, inverse_a: Floats) -> Floats:
        """B (..., H)."""
        ratio = omega * np.einsum("...hhm->...hm", inverse_a) * self.count
        return np.sum(ratio * self._signal_bias(mu, bias), -1)

    def _signal_bias(self, mu: Floats, bias: Floats) -> Floats:
        """Σ_i λ_i R_im μ_i^h b_im, (..., H, M)."""
        return np.einsum("im,...hi,...im->...hm", self.signal[:, None] * self.reads, mu, bias)

    def _shrinkage_by_bias(
        self, mu: Floats, omega: Floats, kernel: Floats, inverse_a: Floats, weighted: Floats
    ) -> Floats:
        """∂/∂b_im of (2/L) Σ_h M_hh B_h = (2/L) λ_i R_im n_m Σ_h M_hh μ_i^h ω_m^h / A_hhm, (..., I, M)."""
        diagonal = np.einsum("...hh->...h", kernel)[..., None]
        ratio = diagonal * omega * np.einsum("...hhm->...hm", inverse_a)
        return 2 / self.context_length * weighted * np.einsum("...hi,...hm->...im", mu, ratio)

    def _first_order_gradient(
        self, mu: Floats, omega: Floats, bias: Floats, kernel: Floats, inverse_a: Floats
    ) -> tuple[Floats, Floats]:
        """What the two first-order terms add at fixed b, less what `gradient` takes care of through C in `pairs`."""
        own_inverse = np.einsum("...hhm->...hm", inverse_a)
        diagonal = np.einsum("...hh->...h", kernel)[..., None]
        # (2/L) M_hh B_h: M_hh' = 2 n ω M_hh / A and (ω / A)' = (1 + 2 ω²) / A².
        through_kernel = 2 * self._shrinkage(mu, omega, bias, inverse_a)[..., None] * omega * own_inverse
        through_ratio = (1 + 2 * omega**2) * own_inverse**2 * self._signal_bias(mu, bias)
        by_omega = diagonal * self.count * (through_kernel + through_ratio)
        per_read = self.signal[:, None] * self.reads * self.count
        by_mu = diagonal * np.einsum("im,...im,...hm->...hi", per_read, bias, omega * own_inverse)
        # (1/L) M_hg C_hg: (ω_h ω_g / A)' = ω_g / A² in ω_h; M' is in `gradient`.
        shared = self._shared_signal(mu) * kernel[..., None]
        by_omega = by_omega + self.count * np.einsum("...hgm,...gm->...hm", shared * inverse_a**2, omega)
        ratio = omega[..., :, None, :] * omega[..., None, :, :] * inverse_a * kernel[..., None]
        by_mu = by_mu + np.einsum("im,...gi,...hgm->...hi", per_read, mu, ratio)
        return 2 / self.context_length * by_mu, 2 / self.context_length * by_omega
