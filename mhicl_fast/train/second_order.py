"""Loss, gradient and second derivatives along directions of the estimates over prompts, for some prompts at a time.

All are sums over prompts, so they add up over chunks whose tables stay in the processor's cache. Weights and results
are stacks of 1 + K as in `attention_tangents`: the weights and K directions in, the gradient and K products of the
Hessian out. `second_order_sums` gives the values that automatic differentiation of `population_loss` twice would.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..tasks import MultiTaskRegression
from .attention_tangents import AttentionTangents, product

CHUNK_BYTES = 1 << 22  # a chunk's contexts and tables: more leaves the cache, less is lost in calls
_TABLES = 6  # tables (N, 1 + K, H, L) that are alive or in the cache at a time


class Sums(NamedTuple):
    """The loss (scalar), its gradients and products in KQ (1 + K, H, D, D) and OV (1 + K, H, I, D)."""

    loss: Tensor
    kq: Tensor
    ov: Tensor


def second_order_sums(
    task: MultiTaskRegression, kq: Tensor, ov: Tensor, estimator: str, n_prompts: int, seed: int, step: int
) -> Sums:
    """Means over n_prompts prompts for "sampled" or "conditional", in float64.

    kq (1 + K, H, D, D), ov (1 + K, H, I, D).
    """
    of_chunk = _sampled if estimator == "sampled" else _conditional
    total = Sums(*(torch.zeros(shape, dtype=torch.float64) for shape in ((), kq.shape, ov.shape)))
    size = prompts_at_a_time(task, kq.shape[0] * kq.shape[1], kq.element_size())
    for first in range(0, n_prompts, size):
        sums = of_chunk(task, kq, ov, min(size, n_prompts - first), first, seed, step)
        for one, chunk in zip(total, sums, strict=True):
            one += chunk
    for one in total:
        one /= n_prompts
    return total


def prompts_at_a_time(task: MultiTaskRegression, rows: int, item_size: int) -> int:
    """Prompts whose contexts and tables for so many rows of attention fill CHUNK_BYTES; at least one."""
    tokens = max(task.context_length, 1)
    numbers = tokens * task.dim + rows * (_TABLES * tokens + 2 * task.n_tasks * task.dim)
    return max(1, CHUNK_BYTES // (item_size * numbers))


def _sampled(task: MultiTaskRegression, kq: Tensor, ov: Tensor, count: int, first: int, seed: int, step: int) -> Sums:
    """With e = Σ_h OV_h c_h − y_q: loss ‖e‖², derivatives 2 OV_hᵀ e in c_h and 2 e c_hᵀ in OV_h."""
    prompts = task.sample(count, seed=seed, step=step, first_prompt=first, dtype=kq.dtype)
    heads = AttentionTangents(prompts.context, prompts.query, kq)
    error = product("knhd,khod->kno", heads.moments, ov)  # e, ė (1 + K, N, I)
    error[0] -= prompts.target
    by_ov = 2 * product("kno,knhd->khod", error, heads.moments)
    by_kq = heads.pull_back(2 * product("kno,khod->knhd", error, ov))
    return Sums(error[0].double().square().sum(), by_kq, by_ov)


def _conditional(
    task: MultiTaskRegression, kq: Tensor, ov: Tensor, count: int, first: int, seed: int, step: int
) -> Sums:
    """The expectation of ‖e‖² given X and x_q. With averages a_h = Σ_l p_lh x_l, overlaps K, OV_h = (V_h, U_h) and

        b_hg = Σ_j λ_j S_j Σ_i U_h[i,j] U_g[i,j],  o_h = Σ_j λ_j S_j U_h[j,j],  m = Σ_h V_h a_h

    (b and o diagonal, as vectors over covariates) it is a constant and

        Σ_hg a_hᵀ b_hg a_g − 2 Σ_h o_h·(x_q ∘ a_h) + ‖m‖² + σ² Σ_hg Σ_ij U_h[i,j] U_g[i,j] K_hg.
    """
    d, noise = task.dim_x, task.noise_std**2
    xi, xi_query = task.sample_covariates(count, seed=seed, step=step, first_prompt=first, dtype=kq.dtype)
    block, v, u = kq[..., :d, :d], ov[..., :d], ov[..., d:]
    # With x = A ξ attention runs over ξ, with A folded into what multiplies it.
    factor = None if task.covariance_factor is None else task.covariance_factor.to(kq)
    heads = AttentionTangents(xi, xi_query, block if factor is None else factor.T @ block @ factor)
    a, x_query = (x if factor is None else x @ factor.T for x in (heads.moments, xi_query))  # (1 + K, N, H, d), (N, d)
    reads = (task.signal[:, None] * task.support).to(kq)  # λ_j S_j (I, d)

    pairs = product("khij,kgij->khgj", u, u)
    own = u.diagonal(dim1=-2, dim2=-1) @ reads  # o (1 + K, H, d)
    outputs = product("knhc,khic->kni", a, v)  # m
    read = a[:, :, :, None] * reads  # λ_j S_j a_h (1 + K, N, H, I, d)
    by_a = 2 * (
        product("khgj,knhjc->kngc", pairs, read)
        - own[:, None] * x_query[:, None]
        + product("kni,khic->knhc", outputs, v)
    )
    by_overlaps = noise * pairs.sum(-1)
    by_block = heads.pull_back(by_a if factor is None else by_a @ factor, by_overlaps if noise > 0 else None)

    overlaps = heads.overlaps()
    second_moments = product("knhjc,kngc->khgj", read, a)  # Σ_n λ_j a_hᵀ S_j a_g
    by_u = 2 * product("kgij,khgj->khij", u, second_moments + noise * overlaps[..., None])
    by_u.diagonal(dim1=-2, dim2=-1).sub_(2 * (x_query[:, None] * a).sum(1) @ reads.T)
    by_v = 2 * product("kni,knhc->khic", outputs, a)

    by_kq = torch.zeros_like(kq)
    by_kq[..., :d, :d] = by_block if factor is None else factor @ by_block @ factor.T
    # The terms above are half of what their derivative in a gives along a, but for the one that is linear.
    loss = (a[0] * (by_a[0] / 2 - own[0] * x_query[:, None])).double().sum()
    loss = loss + (x_query.square() @ reads.T).double().sum() + count * task.target_noise
    loss = loss + (by_overlaps[0] * overlaps[0]).double().sum()
    return Sums(loss, by_kq, torch.cat([by_v, by_u], -1))
