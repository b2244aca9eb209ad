"""The results of a finished run, as what summary.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..train.folder import versions
from .config import SparseConfig
from .estimators.baselines import bayes_penalty, ridge
from .estimators.baselines import excess_risk as risk_of_coefficients
from .evaluate import Risk, draw_in_parts, measure_risk, risk_of
from .model import Transformer

SUMMARY_KEYS = (
    *(
        "steps",
        "prompts_seen",
        "final_loss",
        "noise_variance",
        "excess_risk",
        "excess_risk_se",
        "ridge_risk",
        "eval_prompts",
    ),
    *("risk_by_length", "versions", "wall_s", "steps_per_second"),
)
_LENGTHS = 6  # at which the risk is measured, where steps differ in theirs


def summarise(config: SparseConfig, metrics: Mapping[str, np.ndarray], model: Transformer) -> dict[str, Any]:
    """All deterministic results: SUMMARY_KEYS but for the two of speed.

    Risks are measured on fresh prompts, which are the same for every noise variance but for the size of their noise,
    and for every length but for the examples that a shorter one lacks. `risk_by_length` has the lengths and, for each,
    a risk and a standard error for each noise variance. `ridge_risk` is that of ridge regression with κ = σ²d/s, the
    Bayes penalty where Σ is the identity, from the same contexts.
    """
    levels = config.noise_variances()
    at_full_length = _risks(config, model, config.context_length)
    lengths = sorted(
        {round(length) for length in np.linspace(config.context_lengths()[0], config.context_length, _LENGTHS)}
    )
    by_length = [at_full_length if n == config.context_length else _risks(config, model, n) for n in lengths]
    return {
        "steps": config.steps,
        "prompts_seen": int(metrics["prompts_seen"][-1]),
        "final_loss": float(metrics["loss"][-1]),
        "noise_variance": levels,
        "excess_risk": at_full_length["excess_risk"],
        "excess_risk_se": at_full_length["excess_risk_se"],
        "ridge_risk": [_ridge_risk(config, model, level).mean for level in levels],
        "eval_prompts": config.eval_prompts,
        "risk_by_length": {
            "context_length": lengths,
            **{key: [risks[key] for risks in by_length] for key in ("excess_risk", "excess_risk_se")},
        },
        "versions": versions(),
    }


def _risks(config: SparseConfig, model: Transformer, length: int) -> dict[str, list[float]]:
    """The risk and its standard error for each noise variance."""
    task = config.task().replace(context_length=length)
    risks = [
        measure_risk(model, task.replace(noise_variance=level), config.eval_prompts, seed=config.evaluation_seed)
        for level in config.noise_variances()
    ]
    return {
        "excess_risk": [risk.mean for risk in risks],
        "excess_risk_se": [risk.standard_error for risk in risks],
    }


def _ridge_risk(config: SparseConfig, model: Transformer, level: float) -> Risk:
    """In float64, at full length."""
    task = config.task().replace(noise_variance=level)
    penalty = bayes_penalty(task.dim_x, task.sparsity, level)
    like = model.read_in.double()
    parts = draw_in_parts(task, config.eval_prompts, n_queries=0, seed=config.evaluation_seed, like=like)
    return risk_of(
        risk_of_coefficients(ridge(part.x, part.y, penalty), part.coefficients, task.covariance) for part in parts
    )
