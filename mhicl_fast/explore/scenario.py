"""A setting of the sliders, and the task, the start and the flow it stands for.

Starts are positive, and small in u = μ and v, the drive of the other factor: v = d ω / scale for factored weights, √d ω
for combined ones (see `spectral.predict_allocation`). All u and v are `start_size` times a factor of the start's kind:

    random      log-uniform between ½ and 2 for each head and task, times one between ½ and 2 for each task
    own         1, and 1.5 for the one head favoured by each task: task i by head i mod H
    shared      1, and 1.5 for head 0, which all tasks favour
    equal       1: the heads cannot be told apart

An unbalanced start multiplies W_O's and W_Q's values by 1 + δ and divides W_V's and W_K's by it, where δ is uniform
within ± `imbalance` for each head, task and pair: μ and ω are those of the balanced start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..tasks import MultiTaskRegression

Kind = Literal["random", "own", "shared", "equal"]
Flow = Literal["balanced", "combined", "unbalanced"]
Order = Literal["leading", "first"]

MOST_TASKS, MOST_HEADS, MOST_COVARIATES, MOST_SEEDS = 6, 8, 50, 100
SPREAD, FAVOUR = 2.0, 1.5

# What `spectral.solve` calls the flows.
PARAMETERS = {"balanced": "factored", "combined": "combined", "unbalanced": "unbalanced"}


@dataclass(frozen=True)
class Scenario:
    """One setting of the sliders; ValueError for one that they cannot take.

    n_covariates is d_i, the same for every task, on disjoint supports with signal variance 1; the target is noisy. The
    logit scale of factored weights is 1.
    """

    n_tasks: int = 3
    n_heads: int = 3
    context_length: int = 1000
    noise_std: float = 0.1
    n_covariates: int = 10
    start: Kind = "random"
    start_size: float = 0.01
    seed: int = 0
    flow: Flow = "balanced"
    imbalance: float = 0.01
    order: Order = "leading"

    def __post_init__(self) -> None:
        for name, most in (("n_tasks", MOST_TASKS), ("n_heads", MOST_HEADS), ("n_covariates", MOST_COVARIATES)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie between 1 and {most}, got {getattr(self, name)}")
        for name, choices in (("start", get_args(Kind)), ("flow", get_args(Flow)), ("order", get_args(Order))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.context_length < 1:
            raise ValueError(f"context_length must be positive, got {self.context_length}")
        if not 0 < self.start_size < np.inf:
            raise ValueError(f"start_size must be positive and finite, got {self.start_size}")
        if not 0 < self.imbalance < 1:
            raise ValueError(f"imbalance must lie between 0 and 1, got {self.imbalance}")

    @property
    def parameters(self) -> str:
        """The flow's name for `spectral.solve`."""
        return PARAMETERS[self.flow]

    def task(self) -> MultiTaskRegression:
        """The regression task: blocks of `n_covariates` covariates."""
        support = torch.eye(self.n_tasks, dtype=torch.bool).repeat_interleave(self.n_covariates, dim=1)
        return MultiTaskRegression(
            self.n_tasks * self.n_covariates,
            self.n_tasks,
            self.context_length,
            support=support,
            noise_std=self.noise_std,
            noisy_target=True,
        )

    def start_values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """μ and ω at the start, each (H, I)."""
        u, v = self.start_size * self._factors()
        return u, v / (np.sqrt(self.n_covariates) if self.flow == "combined" else self.n_covariates)

    def start_arguments(self) -> tuple[Any, Any]:
        """mu0 and omega0 as `spectral.solve` takes them: pairs of factors for the unbalanced flow."""
        mu, omega = self.start_values()
        if self.flow != "unbalanced":
            return mu, omega
        tilt = 1 + self.imbalance * np.random.default_rng([self.seed, 1]).uniform(-1, 1, (2, *mu.shape))
        (mu, omega), (tilt_mu, tilt_omega) = np.sqrt([mu, omega]), tilt
        return (mu * tilt_mu, mu / tilt_mu), (omega * tilt_omega, omega / tilt_omega)

    def _factors(self) -> NDArray[np.float64]:
        """What multiplies `start_size` in u and v, (2, H, I)."""
        shape = (2, self.n_heads, self.n_tasks)
        if self.start == "random":
            rng = np.random.default_rng([self.seed, 0])
            return SPREAD ** (rng.uniform(-1, 1, shape) + rng.uniform(-1, 1, self.n_tasks))
        factors = np.ones(shape)
        tasks = np.arange(self.n_tasks)
        if self.start == "own":
            factors[:, tasks % self.n_heads, tasks] = FAVOUR
        elif self.start == "shared":
            factors[:, 0] = FAVOUR
        return factors
