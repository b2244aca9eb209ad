"""The closed-form population loss of full matrices in powers of 1/L, differentiable in KQ and OV."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._inputs import check_order

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression


class DomainError(ValueError):
    """The closed-form loss does not exist at these weights."""


def asymptotic_loss(task: MultiTaskRegression, kq: Tensor, ov: Tensor, *, order: str = "first") -> Tensor:
    """Population loss Σ_i E(ŷ_i − y_i)² at leading or first order in 1/L, for any supports and covariance.

    kq (H, D, D), ov (H, I, D), D = d + I -> scalar, in their dtype and on their device, differentiable in both.
    With W_h the covariate block of KQ_h, U_h the label block of OV_h, Σ = A Aᵀ, W̃_h = Aᵀ W_h A, P_j = Aᵀ S_j A,

        G_hg = Id − W̃_hᵀ W̃_g − W̃_gᵀ W̃_h,   M_hg = det(G_hg)^−½,   R_ij = δ_ij Id − Σ_h U_h[i,j] W̃_h
        leading: Σ_ij λ_j tr(R_ijᵀ P_j R_ij) + (1/L) Σ_ij Σ_hg U_h[i,j] U_g[i,j] (λ_j tr P_j + σ²) M_hg
        first:   + (2/L) Σ_ij Σ_h λ_j U_h[i,j] M_hh tr(R_ijᵀ P_j W̃_h G_hh⁻¹)
                 + (1/L) Σ_ij Σ_hg λ_j U_h[i,j] U_g[i,j] M_hg tr(W̃_hᵀ P_j W̃_g G_hg⁻¹)

    and σ² I more with a noisy target. The formula holds for weights that attend by covariates and read labels only: it
    raises ValueError unless KQ[:, d:, :d] = 0 and OV[:, :, :d] = 0 exactly (gradient flow keeps them so, their
    gradient is 0), and, as DomainError, where some G is not positive definite: the average over queries does not exist.
    The last I columns of KQ meet the zeros of the query token and never matter. Warns with `ShortContextWarning` for
    first order below L = 400.
    """
    check_order(order, task.context_length)
    return loss_of_blocks(task, *label_and_covariate_blocks(task, kq, ov), order)


def exponential_loss(task: MultiTaskRegression, kq: Tensor, ov: Tensor) -> Tensor:
    """The leading order of `asymptotic_loss` with exp tr(W̃_hᵀ W̃_g) for M_hg, its limit for many covariates.

    On diagonal weights it is `spectral_loss` at leading order, and its gradient flow the spectral ODE's. It exists
    everywhere. Shapes and errors as in `asymptotic_loss`.
    """
    w, u = label_and_covariate_blocks(task, kq, ov)
    weights, projections = _fold_covariance(task, w), _projections(task, w)
    kernel = torch.einsum("hab,gab->hg", weights, weights).exp()
    bias, _ = _bias(task, weights, projections, u)
    pairs = _label_pairs(task, projections, u)
    return bias + (pairs * kernel).sum() / task.context_length + task.target_noise


def loss_of_blocks(task: MultiTaskRegression, w: Tensor, u: Tensor, order: str) -> Tensor:
    """`asymptotic_loss` for KQ's covariate block W (H, d, d) and OV's label block U (H, I, I), without its checks."""
    weights = _fold_covariance(task, w)  # W̃ (H, d, d)
    projections = _projections(task, w)  # P (I, d, d)
    kernel, inverse = query_average(weights)  # M (H, H), G⁻¹ (H, H, d, d)
    pairs = _label_pairs(task, projections, u)
    loss, weighted = _bias(task, weights, projections, u)
    if order == "first":
        own_inverse = inverse.diagonal(dim1=0, dim2=1).permute(2, 0, 1)  # G_hh⁻¹ (H, d, d)
        shrinkage = torch.einsum("hij,ijab,hab->h", u, weighted, weights @ own_inverse)
        loss = loss + 2 / task.context_length * (kernel.diagonal() * shrinkage).sum()
        tilt = torch.einsum("hab,jac,gce,hgeb->hgj", weights, projections, weights, inverse)
        pairs = pairs + torch.einsum("j,hij,gij,hgj->hg", task.signal.to(w), u, u, tilt)
    return loss + (pairs * kernel).sum() / task.context_length + task.target_noise


def _bias(task: MultiTaskRegression, weights: Tensor, projections: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_ij λ_j tr(R_ijᵀ P_j R_ij), and λ_j P_j R_ij (I, I, d, d)."""
    identity = torch.eye(task.dim_x, dtype=u.dtype, device=u.device)
    own = torch.eye(task.n_tasks, dtype=u.dtype, device=u.device)
    residual = own[:, :, None, None] * identity - torch.einsum("hij,hab->ijab", u, weights)  # R (I, I, d, d)
    weighted = torch.einsum("j,jab,ijbc->ijac", task.signal.to(u), projections, residual)
    return (residual * weighted).sum(), weighted


def _label_pairs(task: MultiTaskRegression, projections: Tensor, u: Tensor) -> Tensor:
    """Σ_ij U_h[i,j] U_g[i,j] (λ_j tr P_j + σ²), (H, H)."""
    per_label = task.signal.to(u) * projections.diagonal(dim1=-2, dim2=-1).sum(-1) + task.noise_std**2
    return torch.einsum("j,hij,gij->hg", per_label, u, u)


def label_and_covariate_blocks(task: MultiTaskRegression, kq: Tensor, ov: Tensor) -> tuple[Tensor, Tensor]:
    """The covariate block of KQ (H, d, d) and the label block of OV (H, I, I), after the checks."""
    for name, tensor in (("kq", kq), ("ov", ov)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(tensor, 'dtype', type(tensor))}")
    d, dim = task.dim_x, task.dim
    if kq.ndim != 3 or kq.shape[0] < 1 or kq.shape[1:] != (dim, dim):
        raise ValueError(f"kq must be (heads, {dim}, {dim}), got shape {list(kq.shape)}")
    if ov.shape != (kq.shape[0], task.n_tasks, dim):
        raise ValueError(f"ov must be ({kq.shape[0]} heads, {task.n_tasks}, {dim}), got shape {list(ov.shape)}")
    if kq.dtype != ov.dtype or kq.device != ov.device:
        raise ValueError(f"kq is {kq.dtype} on {kq.device}, ov is {ov.dtype} on {ov.device}: they must agree")
    if bool((kq[:, d:, :d] != 0).any()):
        raise ValueError(f"logits must not read labels: kq[:, {d}:, :{d}] must be 0")
    if bool((ov[:, :, :d] != 0).any()):
        raise ValueError(f"outputs must read labels only: ov[:, :, :{d}] must be 0")
    return kq[:, :d, :d], ov[:, :, d:]


def _fold_covariance(task: MultiTaskRegression, w: Tensor) -> Tensor:
    if task.covariance_factor is None:
        return w
    factor = task.covariance_factor.to(w)
    return factor.T @ w @ factor


def _projections(task: MultiTaskRegression, like: Tensor) -> Tensor:
    selected = torch.diag_embed(task.support.to(like))
    return _fold_covariance(task, selected)


def query_average(weights: Tensor) -> tuple[Tensor, Tensor]:
    """det(G)^−½ (H, H) and G⁻¹ (H, H, d, d): E exp(r_h·r_g) over queries and the tilted query covariance.

    DomainError where some G is not positive definite.
    """
    heads = len(weights)
    first, second = torch.triu_indices(heads, heads, device=weights.device)  # G_hg = G_gh: each pair once
    overlaps = weights[first].mT @ weights[second]  # W_hᵀ W_g
    identity = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    factor, failed = torch.linalg.cholesky_ex(identity - overlaps - overlaps.mT)
    if bool(failed.any()) or not bool(torch.isfinite(factor).all()):
        largest = float(torch.linalg.matrix_norm(weights.detach(), 2).max())
        raise DomainError(
            "the loss does not exist: Id − W_hᵀW_g − W_gᵀW_h must be positive definite for every pair of heads; the "
            f"largest singular value of the covariate blocks is {largest:.6g}, and below 0.707107 it always exists"
        )
    log_determinant = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    pair = torch.empty(heads, heads, dtype=torch.int64, device=weights.device)
    pair[first, second] = pair[second, first] = torch.arange(len(first), device=weights.device)
    # Not cholesky_inverse: its forward-mode derivative is wrong (pytorch/pytorch#196682).
    inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return torch.exp(-log_determinant / 2)[pair], (inverse_factor.mT @ inverse_factor)[pair]
