"""Gradients of single prompts, many at a time, for estimates of the population loss that share no code with training.

Weights are KQ's covariate block w (H, d, d) and OV's label block u (H, I, I), every other block 0, covariates
x ~ N(0, Id). Given a query x_q the logits depend on the context through its projections on the span of r_h = w_h x_q
alone: with an orthonormal basis Q of that span and P = Id − QQᵀ, x_l = Q c_l + (a part of covariance P that the softmax
does not see), which is integrated out of the loss and of its gradient. Q = Id gives the `conditional` estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mhicl_fast.tasks import MultiTaskRegression

DROPPED = 1e-9  # what is left of a head's direction beside the others' below this is rounding


class Gradient(NamedTuple):
    """∂ loss/∂r (N, H, rows) of N prompts, their queries (N, d) (∂KQ is the outer product), and ∂OV (N, H, I, ·)."""

    by_logit: Tensor
    query: Tensor
    by_output: Tensor

    def by_kq(self) -> Tensor:
        return torch.einsum("nha,nb->nhab", self.by_logit, self.query)


@dataclass(frozen=True, eq=False)
class Attention:
    """The weights of one state of a task, with what all prompts share."""

    task: MultiTaskRegression
    w: Tensor
    u: Tensor

    @property
    def reads(self) -> Tensor:
        """S_j as masks, (I, d)."""
        return self.task.support.double()

    @property
    def pairs(self) -> Tensor:
        """λ_j Σ_i U_h[i,j] U_g[i,j], (I, H, H)."""
        return self.task.signal[:, None, None] * torch.einsum("hij,gij->jhg", self.u, self.u)

    @property
    def noise(self) -> Tensor:
        """σ² Σ_ij U_h[i,j] U_g[i,j], (H, H)."""
        return self.task.noise_std**2 * torch.einsum("hij,gij->hg", self.u, self.u)

    def logits(self, query: Tensor) -> Tensor:
        """r (N, H, d)."""
        return torch.einsum("hab,nb->nha", self.w, query)

    def loss_in_means(self, query: Tensor, means: Tensor) -> Tensor:
        """Derivative (N, H, d) of the conditional loss in the averages a_h at `means`."""
        own = self.task.signal * self.u.diagonal(dim1=1, dim2=2)  # λ_j U_h[j,j], (H, I)
        return 2 * (
            torch.einsum("jd,jhg,ngd->nhd", self.reads, self.pairs, means) - (own @ self.reads) * query[:, None]
        )

    def by_output(self, query: Tensor, means: Tensor, outside: Tensor, overlap: Tensor) -> Tensor:
        """Derivative (N, H, I, I) of the loss in U, for a context whose part outside the basis has covariance
        `outside` (N, I), traces over S_j, times the overlap of the heads' weights (N, H, H)."""
        vectors = torch.cat([query[:, None], means], 1)
        gram = torch.einsum("jd,nmd,nkd->njmk", self.reads, vectors, vectors)
        gram[:, :, 1:, 1:] += outside[:, :, None, None] * overlap[:, None]
        identity = torch.eye(self.task.n_tasks, dtype=torch.float64)[..., None]
        residual = torch.cat([identity, -self.u.permute(1, 2, 0)], -1)  # δ_ij x_q − Σ_h U_h[i,j] a_h
        by_signal = torch.einsum("j,njhk,ijk->nhij", self.task.signal, gram[:, :, 1:], residual)
        return -2 * by_signal + 2 * self.task.noise_std**2 * torch.einsum("nhg,gij->nhij", overlap, self.u)


def basis(vectors: Tensor) -> Tensor:
    """Orthonormal columns Q (N, d, k) whose span holds the vectors (N, k, d): Gram–Schmidt, each orthogonalised twice;
    a zero column for a vector that adds no direction."""
    columns = torch.zeros_like(vectors).mT.contiguous()
    for index in range(vectors.shape[1]):
        norm = vectors[:, index].norm(dim=-1, keepdim=True)
        left = vectors[:, index] / norm.clamp(min=1e-300)
        for _ in range(2):
            left = left - (columns @ (columns.mT @ left[..., None]))[..., 0]
            length = left.norm(dim=-1, keepdim=True)
            left = torch.where(length > DROPPED, left / length.clamp(min=1e-300), 0.0)
        columns[:, :, index] = left
    return columns


def subspace(model: Attention, query: Tensor, columns: Tensor, context: Tensor) -> Gradient:
    """The gradient for contexts with coordinates `context` (N, L, k) in the basis `columns` (N, d, k)."""
    inside = model.logits(query) @ columns  # (N, H, k)
    p = torch.softmax(context @ inside.mT, 1)  # (N, L, H)
    overlap, centre = p.mT @ p, p.mT @ context
    means = centre @ columns.mT
    outside = model.reads.sum(1) - torch.einsum("jd,ndk->nj", model.reads, columns.square())  # tr S_j P

    in_means = model.loss_in_means(query, means)
    in_overlap = 2 * model.noise + 2 * torch.einsum("jhg,nj->nhg", model.pairs, outside)
    weighted = p * (context @ (in_means @ columns).mT + p @ in_overlap.mT)
    in_plane = weighted.mT @ context - weighted.sum(1)[..., None] * centre
    # The part outside: covariances of x⊥ with the averages, and of two heads' weights along the basis.
    joint = torch.einsum("nlh,nlg,nlk->nhgk", p, p, context) - overlap[..., None] * centre[:, :, None]
    across = torch.einsum("jd,ndk,jhg,nhgk->nhd", model.reads, columns, 2 * model.pairs, joint)
    out = (1 - overlap.diagonal(dim1=1, dim2=2))[..., None] * in_means + across
    by_logit = out + (in_plane - out @ columns) @ columns.mT
    return Gradient(by_logit, query, model.by_output(query, means, outside, overlap))


def conditional(model: Attention, query: Tensor, context: Tensor) -> Gradient:
    """The gradient for whole contexts (N, L, d)."""
    identity = torch.eye(query.shape[1], dtype=torch.float64).expand(len(query), -1, -1)
    return subspace(model, query, identity, context)


def sampled(model: Attention, query: Tensor, context: Tensor, generator: torch.Generator) -> Gradient:
    """The gradient for drawn coefficients and noise too: all of KQ's rows and OV's columns that it moves."""
    task, d = model.task, model.task.dim_x

    def normals(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    beta = normals(len(query), d, task.n_tasks) * (task.signal.sqrt()[:, None] * model.reads).T
    labels = context @ beta + task.noise_std * normals(*context.shape[:2], task.n_tasks)
    target = (query[:, None] @ beta)[:, 0]
    if task.noisy_target:
        target = target + task.noise_std * normals(*target.shape)
    tokens = torch.cat([context, labels], -1)
    p = torch.softmax(context @ model.logits(query).mT, 1)
    averages = p.mT @ tokens
    error = torch.einsum("hij,nhj->ni", model.u, averages[..., d:]) - target
    in_labels = torch.einsum("ni,hij->nhj", 2 * error, model.u)
    weighted = p * (labels @ in_labels.mT)
    by_logit = weighted.mT @ tokens - weighted.sum(1)[..., None] * averages
    return Gradient(by_logit, query, 2 * error[:, None, :, None] * averages[:, :, None])


def leading_order(model: Attention, query: Tensor) -> Gradient:
    """The gradient of the leading-order loss at each query: its mean over queries has a closed form.

    Σ_ij λ_j ‖S_j (δ_ij x_q − Σ_h U_h[i,j] r_h)‖² + (1/L) Σ_hg (Σ_j λ_j d_j U_h·U_g + σ² U_h·U_g) exp(r_h·r_g)
    """
    r = model.logits(query)
    sizes = model.reads.sum(1)
    overlap = (r @ r.mT).exp() / model.task.context_length
    weights = torch.einsum("jhg,j->hg", model.pairs, sizes) + model.noise
    by_logit = model.loss_in_means(query, r) + 2 * (weights * overlap) @ r
    outside = sizes.expand(len(query), -1)
    return Gradient(by_logit, query, model.by_output(query, r, outside, overlap))


def average(*gradients: Gradient) -> Gradient:
    """The mean of gradients at the same queries."""
    by_logit = sum(gradient.by_logit for gradient in gradients) / len(gradients)
    by_output = sum(gradient.by_output for gradient in gradients) / len(gradients)
    return Gradient(by_logit, gradients[0].query, by_output)  # type: ignore[arg-type]
