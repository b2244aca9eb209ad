"""Tasks and weights that the spectral tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mhicl_fast.tasks import MultiTaskRegression

Floats = NDArray[np.float64]


def block_support(sizes: tuple[int, ...], unread: int = 0) -> NDArray[np.bool_]:
    """Consecutive disjoint blocks, then covariates that no task reads."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    blocks = np.arange(len(sizes))[:, None] == owner
    return np.concatenate([blocks, np.zeros((len(sizes), unread), bool)], axis=1)


def block_task(sizes: tuple[int, ...], context_length: int, *, unread: int = 0, **options: Any) -> MultiTaskRegression:
    support = torch.as_tensor(block_support(sizes, unread))
    return MultiTaskRegression(support.shape[1], len(sizes), context_length, support=support, **options)


def overlapping_task(context_length: int = 500, **options: Any) -> MultiTaskRegression:
    """Seven covariates: 0–3 and 2–5 are read, so the atoms are {0, 1}, {2, 3}, {4, 5} and the unread {6}."""
    support = torch.zeros(2, 7, dtype=torch.bool)
    support[0, :4] = support[1, 2:6] = True
    options = {"signal": [0.7, 1.3], "noise_std": 0.4} | options
    return MultiTaskRegression(7, 2, context_length, support=support, **options)


def demo_task(n_tasks: int = 3, **options: Any) -> MultiTaskRegression:
    """Blocks of 10 covariates at L = 1000, label noise 0.1."""
    return block_task((10,) * n_tasks, 1000, **({"noise_std": 0.1, "noisy_target": True} | options))


def small_start(seed: int, heads: int = 3, tasks: int = 3) -> tuple[Floats, Floats]:
    """Random positive μ, ω (H, I) of the size of squared small factors."""
    mu, omega = np.random.default_rng(seed).uniform(0.02, 0.1, (2, heads, tasks)) ** 2
    return mu, omega


def multi_task_start() -> tuple[MultiTaskRegression, Floats, Floats, float]:
    """50 covariates in three blocks, L = 100, W_Q = W_K = L^−¾ Id, W_V = W_Oᵀ = L^−¾ diag(1, .., 2 at the own task)."""
    small, scale = 100**-0.75, 53**-0.5
    values = small * (np.ones((3, 3)) + np.eye(3))
    return block_task((16, 17, 17), 100), values**2, np.full((3, 3), scale * small**2), scale


def diagonal_weights(task: MultiTaskRegression, mu: Floats, omega: Floats) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 KQ, OV with μ (H, I) and ω (H, d) on their diagonals."""
    heads, d = len(mu), task.dim_x
    kq = torch.zeros(heads, task.dim, task.dim, dtype=torch.float64)
    ov = torch.zeros(heads, task.n_tasks, task.dim, dtype=torch.float64)
    kq[:, :d, :d] = torch.diag_embed(torch.as_tensor(omega))
    ov[:, :, d:] = torch.diag_embed(torch.as_tensor(mu))
    return kq, ov
