"""Many attention layers trained at once, on the same prompts, from decomposable starts: who learns what, and when."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mhicl_fast.ops import prompt_moments
from mhicl_fast.tasks import MultiTaskRegression


def conditional_losses(
    task: MultiTaskRegression, kq: Tensor, ov: Tensor, n_prompts: int, *, seed: int = 0, step: int = 0
) -> Tensor:
    """The `conditional` estimate of M models' losses on the same prompts, (M,), differentiable.

    kq (M, H, d, d) is KQ's covariate block, ov (M, H, I, I) OV's label block; the other blocks are zero, and stay zero
    in training. With averages a_h = Σ_l p_lh x_l and overlaps K_hg = Σ_l p_lh p_lg a prompt's loss, given its
    covariates, is Σ_ij λ_j ‖S_j∘(δ_ij x_q − Σ_h U_h[i,j] a_h)‖² + σ² Σ_ij Σ_hg U_h[i,j] U_g[i,j] K_hg.
    """
    x, query = task.sample_covariates(n_prompts, seed=seed, step=step, dtype=kq.dtype)
    averages, overlaps = prompt_moments(x, query, kq)  # (M, N, H, d), (M, N, H, H)
    vectors = torch.cat([query.expand(len(kq), 1, *query.shape).transpose(1, 2), averages], 2)  # (M, N, 1 + H, d)
    by_covariate = vectors.permute(0, 3, 2, 1) @ vectors.permute(0, 3, 1, 2)  # (M, d, 1 + H, 1 + H)
    gram = torch.einsum("jc,mcab->mjab", task.support.to(kq), by_covariate) / n_prompts
    identity = torch.eye(task.n_tasks, dtype=kq.dtype).expand(len(kq), 1, -1, -1)
    residual = torch.cat([identity, -ov], 1)  # (M, 1 + H, I, I): coefficients of x_q and of every a_h
    bias = torch.einsum("j,maij,mbij,mjab->m", task.signal.to(kq), residual, residual, gram)
    return bias + task.noise_std**2 * torch.einsum("mhij,mgij,mhg->m", ov, ov, overlaps.mean(1))


def train_from(
    task: MultiTaskRegression, mu: np.ndarray, omega: np.ndarray, *, n_prompts: int, step_size: float, t_end: float
) -> tuple[np.ndarray, np.ndarray]:
    """Train M models by gradient descent from balanced starts μ, ω (M, H, I) until each has half learnt every task.

    Full factored matrices at scale 1, fresh prompts at every step, steps shortened where a parameter would change by
    more than `step_size`. Returns, for each model and task (M, I), the head ahead when half is learnt and the flow
    time; −1 and inf where that did not come before `t_end`.
    """
    reads = np.asarray(task.support, dtype=float)
    kappa, v = (torch.as_tensor(np.sqrt(values)).float() for values in (omega @ reads, mu))
    w_q, w_k, w_o, w_v = (torch.diag_embed(x) for x in (kappa, kappa, v, v))
    mean_over_support = torch.as_tensor(reads / reads.sum(1, keepdims=True)).float().T
    head, time = np.full((len(mu), task.n_tasks), -1), np.full((len(mu), task.n_tasks), np.inf)
    running = np.arange(len(mu))
    t, learnt, step = torch.zeros(len(mu)), torch.zeros(len(mu), task.n_tasks), 0
    while len(running):
        parameters = [w.requires_grad_() for w in (w_q, w_k, w_o, w_v)]
        losses = conditional_losses(task, w_k.mT @ w_q, w_o @ w_v, n_prompts, step=step)
        gradients = torch.autograd.grad(losses.sum(), parameters)
        with torch.no_grad():
            largest = torch.stack([g.abs().flatten(1).amax(1) for g in gradients]).amax(0)
            size = step_size / largest.clamp(min=1)  # (M,)
            w_q, w_k, w_o, w_v = (w - size[:, None, None, None] * g for w, g in zip(parameters, gradients))
            kq, ov = w_k.mT @ w_q, w_o @ w_v
            shares = ov.diagonal(dim1=2, dim2=3) * (kq.diagonal(dim1=2, dim2=3) @ mean_over_support)  # (M, H, I)
            now = shares.sum(1)
            crossed = (learnt < 0.5) & (now >= 0.5) & torch.as_tensor(np.isinf(time[running]))
            for model, i in crossed.nonzero().tolist():
                part = (0.5 - learnt[model, i]) / (now[model, i] - learnt[model, i])
                time[running[model], i] = t[model] + part * size[model]
                head[running[model], i] = shares[model, :, i].argmax()
            t, learnt, step = t + size, now, step + 1
            if step % 20 == 0:  # go on with the models that have something left to learn
                left = torch.as_tensor(np.isinf(time[running]).any(1)) & (t < t_end)
                w_q, w_k, w_o, w_v, t, learnt = (x[left] for x in (w_q, w_k, w_o, w_v, t, learnt))
                running = running[left.numpy()]
    return head, time
