"""The gradient of the closed-form loss of full matrices, by hand: several times faster than automatic differentiation.

In the notation of `asymptotic_loss`, with Ŵ_h = A W̃_h, so that tr(W̃_hᵀ P_j W̃_g) sums rows of Ŵ_h, Ŵ_g over S_j, and

    b_hg = Σ_j λ_j (Σ_i U_h[i,j] U_g[i,j]) S_j    (a diagonal matrix, as all sums over j below)
    N̂_h  = Σ_j λ_j U_h[j,j] S_j A − Σ_g b_hg Ŵ_g,  Y_hg = M_hg G_hg⁻¹,  D_hg = Ŵ_g Y_hg

the loss is, up to a constant, quadratic in U:

    − 2 Σ_hj λ_j U_h[j,j] (p_hj − p'_hj / L) + Σ_hg Σ_ij U_h[i,j] U_g[i,j] K_hgj
    K_hgj = λ_j tr_j(Ŵ_h Ŵ_gᵀ) + (λ_j d_j + σ²) M_hg / L + (λ_j / L) tr_j(Ŵ_h D_hgᵀ − Ŵ_h D_ggᵀ − Ŵ_g D_hhᵀ)
    p_hj = tr_j(Ŵ_h Aᵀ),   p'_hj = tr_j(D_hh Aᵀ),   tr_j X = tr(S_j X)

and leading order has no p' and ends K after M. In W it takes ∂M_hg = M_hg tr(dW̃_hᵀ W̃_g G_hg⁻¹) (the derivative in the
first of two heads; a symmetric double sum moves by twice that) and, with X + Xᵀ for X = Ŵ_hᵀ b_hg Ŵ_g,
d tr(X G⁻¹) = tr(dŴ_hᵀ b_hg Ŵ_g G⁻¹) + tr(dW̃_hᵀ W̃_g G⁻¹ (X + Xᵀ) G⁻¹).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .asymptotic import query_average

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression


class _FirstOrderTerms(NamedTuple):
    """What first order adds, times L: to half the gradient in Ŵ (H, d, d), to what multiplies W̃_g in half the gradient
    in W̃_h (H, H, d, d), to the row products in K (H, H, d), and p' by rows (H, d)."""

    by_rows: Tensor
    by_kernel: Tensor
    traces: Tensor
    own_traces: Tensor


class AsymptoticGradient:
    """The gradient of `asymptotic_loss` of a task at order "leading" or "first", as a function of the weights."""

    def __init__(self, task: MultiTaskRegression, order: str) -> None:
        self._first, self._length = order == "first", task.context_length
        support = task.support.double()
        self._reads = task.signal[:, None] * support  # λ_j S_j (I, d)
        self._variance = task.signal * task.support_sizes + task.noise_std**2  # λ_j tr P_j + σ²
        self._factor = task.covariance_factor

    def __call__(self, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(∂Loss/∂W (H, d, d), ∂Loss/∂U (H, I, I)) for KQ's covariate block W and OV's label block U, in float64.

        All other entries of the gradient are 0. Raises DomainError where the loss does not exist.
        """
        heads, d = w.shape[:2]
        factor = self._factor
        folded = w if factor is None else factor.T @ w @ factor  # W̃
        rows = folded if factor is None else factor @ folded  # Ŵ
        kernel, inverse = query_average(folded)  # M (H, H), G⁻¹ (H, H, d, d)

        products = torch.einsum("hij,gij->hgj", u, u)
        shared = products @ self._reads  # b (H, H, d)
        residual = self._residual(rows, u, shared)  # N̂ (H, d, d)
        pairs = products @ self._variance  # what multiplies M_hg in the loss, (H, H)
        by_rows = -residual
        by_kernel = inverse * (kernel * pairs)[:, :, None, None]
        traces, own_traces = _row_products(rows, rows), self._with_factor(rows)
        if self._first:
            terms = self._first_order(rows, residual, shared, kernel, inverse)
            by_rows = by_rows + terms.by_rows / self._length
            by_kernel = by_kernel + terms.by_kernel
            traces = traces + terms.traces / self._length
            own_traces = own_traces - terms.own_traces / self._length

        # Σ_g W̃_g Z_hg as one product with the heads side by side
        side_by_side = folded.permute(1, 0, 2).reshape(d, heads * d)
        by_folded = side_by_side @ by_kernel.reshape(heads, heads * d, d) / self._length
        by_folded = by_folded + (by_rows if factor is None else factor.T @ by_rows)
        by_w = 2 * (by_folded if factor is None else factor @ by_folded @ factor.T)

        quadratic = traces @ self._reads.T + self._variance * kernel[:, :, None] / self._length  # K (H, H, I)
        by_u = 2 * torch.einsum("gij,hgj->hij", u, quadratic)
        by_u.diagonal(dim1=1, dim2=2).sub_(2 * own_traces @ self._reads.T)
        return by_w, by_u

    def _with_factor(self, rows: Tensor) -> Tensor:
        """Products of the rows of (H, d, d) with those of A: diagonals of · Aᵀ, (H, d)."""
        if self._factor is None:
            return rows.diagonal(dim1=-2, dim2=-1)
        return (rows * self._factor).sum(-1)

    def _residual(self, rows: Tensor, u: Tensor, shared: Tensor) -> Tensor:
        """N̂ (H, d, d): minus half the gradient of the bias in Ŵ."""
        own = u.diagonal(dim1=1, dim2=2) @ self._reads  # Σ_j λ_j U_h[j,j] S_j (H, d)
        at_start = torch.diag_embed(own) if self._factor is None else own[:, :, None] * self._factor
        return at_start - torch.einsum("hgc,gcb->hcb", shared, rows)

    def _first_order(
        self, rows: Tensor, residual: Tensor, shared: Tensor, kernel: Tensor, inverse: Tensor
    ) -> _FirstOrderTerms:
        weighted = inverse * kernel[:, :, None, None]  # Y
        moved = rows @ weighted  # D (H, H, d, d)
        own_moved = moved.diagonal(dim1=0, dim2=1).permute(2, 0, 1)  # D_hh
        own_weighted = weighted.diagonal(dim1=0, dim2=1).permute(2, 0, 1)
        by_rows = torch.einsum("hgc,hgcb->hcb", shared, moved - own_moved) + residual @ own_weighted

        # The terms in G: tilts tr(X_hg Y_hg), and shrinkages 2 tr(N̂_hᵀ Ŵ_h Y_hh), whose G_hh has both heads the same.
        x = rows.mT[:, None] @ (shared[..., None] * rows)
        x.diagonal(dim1=0, dim2=1).add_(2 * (residual.mT @ rows).permute(1, 2, 0))
        symmetric = x + x.mT
        tilt = (symmetric * weighted).sum((-2, -1)) / 2
        by_kernel = inverse * tilt[:, :, None, None] + weighted @ symmetric @ inverse

        across = _row_products(rows, own_moved)
        traces = (rows[:, None] * moved).sum(-1) - across - across.transpose(0, 1)
        return _FirstOrderTerms(by_rows, by_kernel, traces, self._with_factor(own_moved))


def _row_products(first: Tensor, second: Tensor) -> Tensor:
    """Diagonals of X_h Y_gᵀ for (H, d, d) each, (H, H, d)."""
    return torch.einsum("hcb,gcb->hgc", first, second)
