"""The risks of estimators on the same prompts, with penalties and step sizes that were chosen on others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tasks import SparseRegression
from ..estimators.algorithm import feature_maps, step_sizes_of
from ..estimators.baselines import (
    bayes_penalty,
    excess_risk,
    has_infinite_risk,
    support_least_squares,
    usual_lasso_penalty,
)
from ..estimators.eigenbasis import Eigenbasis
from ..estimators.lasso import lasso
from .estimators import BEST_LASSO, BEST_RIDGE, CONSTANT, LASSO, MINIMUM_NORM, RIDGE, SUPPORT, ZERO, Estimator

# Values of c tried: small ones are best where there are many steps and much noise.
STEP_FACTORS = torch.tensor(
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(k / 10 for k in range(1, 20))], dtype=torch.float64
)
_CONSTANT_STEPS = torch.logspace(-2.5, 0.5, 19, dtype=torch.float64)  # of η times the median λ_max
_NONE = torch.zeros(1, dtype=torch.float64)
_RIDGE_PENALTIES = torch.cat([_NONE, torch.logspace(-3, 4, 36, dtype=torch.float64)])  # of κ
_LASSO_PENALTIES = torch.cat([_NONE, torch.logspace(-3, 0.8, 30, dtype=torch.float64)])  # of λ√n
_MEASURING, _TUNING = 0, 1  # steps of the sampler


@dataclass(frozen=True, eq=False)
class Measured:
    """Risks of every prompt (N,) by estimator, on the same prompts, with what was chosen on other prompts: the step
    size's factor c, the constant step size η, or the penalty."""

    risks: Mapping[Estimator, Tensor]
    parameters: Mapping[Estimator, float | None]
    infinite: frozenset[Estimator]  # whose expected risk is infinite, so that no mean says anything

    def mean(self, estimator: Estimator) -> tuple[float, float]:
        """The mean risk and its standard error; infinite and 0 where that is known."""
        if estimator in self.infinite:
            return math.inf, 0.0
        return mean_and_error(self.risks[estimator])

    def difference(self, one: Estimator, other: Estimator) -> tuple[float, float]:
        """The mean of the difference of two risks on the same prompts, and its standard error."""
        return mean_and_error(self.risks[one] - self.risks[other])


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of independent values (N,) and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def measure(
    task: SparseRegression,
    estimators: Iterable[Estimator],
    *,
    n_prompts: int,
    tuning_prompts: int,
    seed: int,
    step: int = _MEASURING,
) -> Measured:
    """The risks of estimators on `n_prompts` prompts of a task with one noise variance, those of a step of the sampler.
    What is called best was chosen on `tuning_prompts` prompts of another step.

    With a constant η the algorithm diverges on those prompts that have a large λ_max, and they alone would decide the
    mean; its risk counts as that of predicting 0 where it is larger, which flatters it.
    """
    tuning = _Problem(task, tuning_prompts, seed, _TUNING)
    problem = _Problem(task, n_prompts, seed, step)
    parameters = {estimator: _parameter(estimator, task, tuning) for estimator in estimators}
    values = {estimator: torch.tensor([value or 0.0], dtype=torch.float64) for estimator, value in parameters.items()}
    infinite = {
        MINIMUM_NORM: has_infinite_risk(task.context_length, task.dim_x, task.noise_variance[0]),
        SUPPORT: has_infinite_risk(task.context_length, task.sparsity, task.noise_variance[0]),
    }
    return Measured(
        {estimator: problem.risks(estimator, value)[0] for estimator, value in values.items()},
        parameters,
        frozenset(estimator for estimator, is_so in infinite.items() if is_so),
    )


class _Problem:
    """Prompts with the decompositions that the estimators share."""

    def __init__(self, task: SparseRegression, n_prompts: int, seed: int, step: int) -> None:
        self.prompts = task.sample(n_prompts, n_queries=0, seed=seed, step=step, dtype=torch.float64, device="cpu")
        self.covariance = task.covariance
        self.raw = Eigenbasis(self.prompts.x, self.prompts.y)
        self._features: dict[int | None, tuple[Tensor, Eigenbasis]] = {}

    def features(self, heads: int | None) -> tuple[Tensor, Eigenbasis]:
        """The maps (N, m, d) to the features that so many heads make, and least squares on these."""
        if heads not in self._features:
            x, y = self.prompts.x, self.prompts.y
            maps = feature_maps(x, y, heads)
            self._features[heads] = maps, Eigenbasis(x @ maps.mT, y)
        return self._features[heads]

    def risks(self, estimator: Estimator, parameters: Tensor) -> Tensor:
        """(P, N) risks with each of the parameters (P,)."""
        truth, covariance = self.prompts.coefficients, self.covariance
        risks = excess_risk(self._coefficients(estimator, parameters), truth, covariance)
        if estimator.choice == CONSTANT:
            return torch.fmin(risks, excess_risk(torch.zeros_like(truth), truth, covariance))
        return risks

    def _coefficients(self, estimator: Estimator, parameters: Tensor) -> Tensor:
        """(P, N, d)."""
        prompts, method = self.prompts, estimator.method
        if method == "lasso":
            return lasso(prompts.x, prompts.y, parameters)
        if method == "ridge":
            return self.raw.ridge(parameters[:, None])
        if method == "minimum norm":
            return self.raw.ridge(0.0)[None]
        if method == "zero":
            return torch.zeros_like(prompts.coefficients)[None]
        if method == "support":
            return support_least_squares(prompts.x, prompts.y, prompts.coefficients)[None]
        if method == "descent":
            return _descended(self.raw, estimator, parameters)
        maps, basis = self.features(estimator.heads)
        return torch.einsum("nmd,pnm->pnd", maps, _descended(basis, estimator, parameters))


def _descended(basis: Eigenbasis, estimator: Estimator, parameters: Tensor) -> Tensor:
    """(P, N, m) after the estimator's steps, with each of the parameters as c or η."""
    assert estimator.steps is not None
    each = torch.ones_like(basis.largest) if estimator.choice == CONSTANT else step_sizes_of(basis.largest)
    return basis.descent(estimator.steps, parameters[:, None] * each)


def _parameter(estimator: Estimator, task: SparseRegression, tuning: _Problem) -> float | None:
    """What an estimator takes: as it is known, or with the least mean risk on the prompts for tuning; None: nothing."""
    n, noise = task.context_length, task.noise_variance[0]
    known = {RIDGE: bayes_penalty(task.dim_x, task.sparsity, noise), LASSO: usual_lasso_penalty(task.dim_x, n, noise)}
    if estimator in known:
        return known[estimator]
    if estimator in (MINIMUM_NORM, SUPPORT, ZERO):
        return None
    if estimator.choice == "c = 1":
        return 1.0
    if estimator == BEST_RIDGE:
        tried = _RIDGE_PENALTIES
    elif estimator == BEST_LASSO:
        tried = _LASSO_PENALTIES / math.sqrt(max(n, 1))
    elif estimator.choice == CONSTANT:
        tried = _CONSTANT_STEPS / (float(tuning.features(estimator.heads)[1].largest.median()) or 1.0)
    else:
        tried = STEP_FACTORS
    return float(tried[tuning.risks(estimator, tried).mean(1).argmin()])
