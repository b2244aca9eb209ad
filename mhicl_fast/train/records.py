"""What a row of metrics.csv says about the weights at a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops, spectral
from ..tasks import MultiTaskRegression

_SCALARS = ("step", "flow_time", "step_size", "prompts_seen", "loss", "gradient_norm", "residual")
_PROBE_PROMPTS = 32


def columns(n_heads: int, n_tasks: int) -> list[str]:
    """The columns of metrics.csv.

    step; flow_time (Σ step sizes); step_size (of the step just taken); prompts_seen; loss (the training estimate at
    these weights); gradient_norm (Euclidean, of the trained tensors); residual (distance from decomposable weights);
    effective_examples_h (1/Σ_l p_lh², averaged over a few fixed prompts); share_i (Σ_h μ_i^h ω_i^h); mu_h_i; omega_h_i
    (averaged over the task's covariates).
    """
    pairs = [f"{h}_{i}" for h in range(n_heads) for i in range(n_tasks)]
    return [
        *_SCALARS,
        *(f"effective_examples_{h}" for h in range(n_heads)),
        *(f"share_{i}" for i in range(n_tasks)),
        *(f"mu_{pair}" for pair in pairs),
        *(f"omega_{pair}" for pair in pairs),
    ]


@dataclass(frozen=True, eq=False)
class SpectralState:
    """Semi-singular values read off the diagonal: mu, omega (H, I), shares (I,), residual."""

    mu: np.ndarray
    omega: np.ndarray
    shares: np.ndarray
    residual: float

    @classmethod
    def of(cls, task: MultiTaskRegression, kq: Tensor, ov: Tensor) -> SpectralState:
        """The values of kq (H, D, D), ov (H, I, D) in the coordinate axes."""
        values = spectral.diagonal(kq.double(), ov.double(), task)
        shares = spectral.shares(task, values.mu, values.omega)
        return cls(values.mu, omega_by_task(task, values.omega), shares, float(values.residual))


def omega_by_task(task: MultiTaskRegression, omega: np.ndarray) -> np.ndarray:
    """ω per covariate (..., H, d) -> ω per task (..., H, I), the mean over the covariates that the task reads."""
    support = task.support.numpy().astype(np.float64)
    return omega @ (support / support.sum(1, keepdims=True)).T


class EffectiveExamples:
    """N_eff = 1/Σ_l p_lh², how many context examples head h attends to, averaged over a fixed set of prompts."""

    def __init__(self, task: MultiTaskRegression, seed: int, dtype: torch.dtype) -> None:
        self._prompts = task.sample(_PROBE_PROMPTS, seed=seed, step=1, device="cpu", dtype=dtype)

    @torch.no_grad()
    def __call__(self, kq: Tensor) -> np.ndarray:
        """(H,) for kq (H, D, D) on the CPU."""
        _, overlaps = ops.prompt_moments(self._prompts.context, self._prompts.query, kq)
        return (1 / overlaps.diagonal(dim1=1, dim2=2).double()).mean(0).numpy()


def row(scalars: Mapping[str, float | int], state: SpectralState, examples: np.ndarray) -> dict[str, float | int]:
    """A row of metrics.csv; `scalars` holds step … gradient_norm."""
    values: list[float | int] = [scalars[name] for name in _SCALARS[:-1]]
    values += [
        state.residual,
        *examples.tolist(),
        *state.shares.tolist(),
        *state.mu.ravel().tolist(),
        *state.omega.ravel().tolist(),
    ]
    return dict(zip(columns(*state.mu.shape), values, strict=True))


def stack_columns(flat: Mapping[str, np.ndarray], n_heads: int, n_tasks: int) -> dict[str, np.ndarray]:
    """The columns of metrics.csv gathered into arrays: scalars (T,), `effective_examples` (T, H), `share` (T, I), `mu`
    and `omega` (T, H, I)."""
    gathered = {name: flat[name] for name in _SCALARS}
    gathered["effective_examples"] = np.stack([flat[f"effective_examples_{h}"] for h in range(n_heads)], -1)
    gathered["share"] = np.stack([flat[f"share_{i}"] for i in range(n_tasks)], -1)
    for name in ("mu", "omega"):
        values = [[flat[f"{name}_{h}_{i}"] for i in range(n_tasks)] for h in range(n_heads)]
        gathered[name] = np.moveaxis(np.array(values), -1, 0)
    return gathered


def gradient_norm(gradients: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all tensors."""
    return float(torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt())
