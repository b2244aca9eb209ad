"""The Bayes risk: the loss of the best predictor that knows the distribution and sees the prompt.

Given the context the coefficients of task i are Gaussian with covariance (Id/λ_i + X_SᵀX_S/σ²)⁻¹ on its support, so the
risk is Σ_i E tr Σ_SS (Id/λ_i + X_SᵀX_S/σ²)⁻¹. Without noise it is λ_i times the part of Σ_SS outside the row space of
X_S: nothing for d_i ≤ L, and λ_i (d_i − L) for Σ = Id, where that space is uniformly random. With noise and Σ = Id it
is λ_i max(d_i − L, 0) + E Σ_k λ_i / (1 + λ_i x_k/σ²) over the min(d_i, L) nonzero eigenvalues x_k: see `wishart`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .._inputs import Floats, has_identity_covariance
from .wishart import LARGEST, mean_over_eigenvalues

if TYPE_CHECKING:
    from ...tasks import MultiTaskRegression

MOST_DRAWS, FEWEST_DRAWS = 256, 8
OPERATIONS = 2e9  # at d³ per draw, for each task: seconds


@dataclass(frozen=True, eq=False)
class BayesRisk:
    """task_loss (I,), their sum `excess`, `loss` with a noisy target's noise added, and how they were found.

    source: "closed form", "quadrature" (to rounding), or "Monte Carlo" over `draws` contexts for each task;
    standard_error is that of the sum, 0 for the first two.
    """

    task_loss: Floats
    excess: float
    loss: float
    standard_error: float
    source: str
    draws: int


def bayes_risk(task: MultiTaskRegression, *, draws: int | None = None, seed: int = 0) -> BayesRisk:
    """Bayes risk of the task: in closed form without noise, by quadrature for identity covariance, else Monte Carlo.

    With `draws` (at least 2) it is the mean over so many random contexts wherever it has no closed form. By default
    these are 256, fewer for tasks of several hundred covariates, whose risk hardly varies between contexts; they are
    used for other covariances, and where min(d_i, L) exceeds 256.
    """
    if draws is not None and draws < 2:
        raise ValueError(f"draws must be 2 or more, for a standard error, got {draws}")
    sizes = np.asarray(task.support).sum(1)
    seen = np.minimum(sizes, task.context_length)
    signal = np.asarray(task.signal)
    identity = has_identity_covariance(task)
    error, used = 0.0, 0
    if task.noise_std == 0 and (identity or bool((sizes == seen).all())):
        task_loss, source = signal * (sizes - seen), "closed form"
    elif draws is None and identity and seen.max() <= LARGEST:
        kinds = {kind: _by_quadrature(task, *kind) for kind in set(zip(sizes.tolist(), signal.tolist(), strict=True))}
        task_loss = np.array([kinds[kind] for kind in zip(sizes.tolist(), signal.tolist(), strict=True)])
        source = "quadrature"
    else:
        rng = np.random.default_rng(seed)
        affordable = int(OPERATIONS / float(sizes.max()) ** 3)
        used = draws or min(MOST_DRAWS, max(FEWEST_DRAWS, affordable))
        risks = np.stack([_posterior_variances(task, i, used, rng) for i in range(task.n_tasks)])  # (I, draws)
        task_loss, source = risks.mean(1), "Monte Carlo"
        error = float(np.sqrt((risks.var(1, ddof=1) / used).sum()))
    excess = float(task_loss.sum())
    return BayesRisk(task_loss, excess, excess + task.target_noise, error, source, used)


def _by_quadrature(task: MultiTaskRegression, size: int, signal: float) -> float:
    """The risk of a task with this many covariates, signal λ, and label noise."""
    few, many = sorted((size, task.context_length))
    if few == 0:
        return signal * size
    ratio = task.noise_std**2 / signal
    seen = mean_over_eigenvalues(lambda x: ratio / (ratio + x), few, many, finest=float(np.sqrt(ratio)))
    return signal * (size - few + seen)


def _posterior_variances(task: MultiTaskRegression, i: int, draws: int, rng: np.random.Generator) -> Floats:
    """tr Σ_SS Cov(β_S | X) for random contexts, (draws,)."""
    reads = np.flatnonzero(np.asarray(task.support)[i])
    full = np.eye(task.dim_x) if task.covariance is None else np.asarray(task.covariance)
    covariance = full[np.ix_(reads, reads)]
    factor = np.linalg.cholesky(covariance)
    signal = float(task.signal[i])
    result = np.empty(draws)
    for draw in range(draws):
        gram = factor @ _white_gram(len(reads), task.context_length, rng) @ factor.T  # X_Sᵀ X_S
        if task.noise_std > 0:
            precision = np.eye(len(reads)) / signal + gram / task.noise_std**2
            result[draw] = np.trace(np.linalg.solve(precision, covariance))
        else:
            unseen = np.eye(len(reads)) - gram @ np.linalg.pinv(gram, hermitian=True)
            result[draw] = signal * np.trace(unseen @ covariance)
    return result


def _white_gram(size: int, length: int, rng: np.random.Generator) -> Floats:
    """ξᵀξ for ξ (length, size) of independent standard normals; by Bartlett's factor where the context is longer."""
    if length < size:
        white = rng.standard_normal((length, size))
        return white.T @ white
    lower = np.tril(rng.standard_normal((size, size)), -1)
    lower[np.diag_indices(size)] = np.sqrt(rng.chisquare(length - np.arange(size)))
    return lower @ lower.T
