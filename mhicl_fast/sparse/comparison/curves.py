"""Excess risk as one thing varies: examples, sparsity, covariates, noise, gradient steps, or heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .config import ComparisonConfig
from .estimators import BEST_LASSO, RIDGE, SUPPORT, Estimator, algorithm, descent
from .measuring import Measured, measure

AXES = {  # of the curves: the task's argument and the key of its values
    "context_length": "curve_lengths",
    "sparsity": "curve_sparsities",
    "dim_x": "curve_dims",
    "noise_variance": "curve_noises",
}


def risk_curves(config: ComparisonConfig, tick: Callable[[], None]) -> dict[str, Any]:
    """For each axis its values and the lines over them, each with the risks and their standard errors; None for a risk
    that is known to be infinite. `tick` is called after each point, or each
    axis whose points have the same prompts."""
    curves = {}
    for axis, key in AXES.items():
        values: list[Any] = config.numbers(key) if axis == "noise_variance" else config.integers(key)
        points = []
        for value in values:
            points.append(_measure(config, _drawn(config.steps), **{axis: value}))
            tick()
        lines = [_line(estimator, points, [estimator] * len(points)) for estimator in _drawn(config.steps)]
        curves[axis] = {"values": values, "lines": lines}
    counts, heads = config.integers("curve_steps"), numbers_of_heads(config.dim_x)
    curves["steps"] = _along(config, counts, [_drawn(count) for count in counts])
    tick()
    curves["heads"] = _along(config, heads, [_drawn(config.steps, number) for number in heads])
    tick()
    return curves


def _along(config: ComparisonConfig, values: list[int], estimators: list[list[Estimator]]) -> dict[str, Any]:
    """A curve on the same prompts, with other estimators at each value."""
    measured = _measure(config, dict.fromkeys(estimator for some in estimators for estimator in some))
    lines = [_line(line[0], [measured] * len(values), line) for line in zip(*estimators)]
    return {"values": values, "lines": lines}


def numbers_of_heads(dim_x: int) -> list[int]:
    """1, 2, 4, … up to the number of covariates, and this."""
    return [*(2**k for k in range(dim_x.bit_length()) if 2**k < dim_x), dim_x]


def points_of_curves(config: ComparisonConfig) -> int:
    """How often `risk_curves` ticks."""
    return sum(len(config.numbers(key)) for key in AXES.values()) + 2


def _drawn(steps: int, heads: int | None = None) -> list[Estimator]:
    ours = [algorithm(steps, choice, heads) for choice in ("c = 1", "best c")]
    return [*ours, descent(steps), RIDGE, BEST_LASSO, SUPPORT]


def _measure(config: ComparisonConfig, estimators: Iterable[Estimator], **changes: Any) -> Measured:
    return measure(
        config.task(**changes),
        estimators,
        n_prompts=config.curve_prompts,
        tuning_prompts=config.tuning_prompts,
        seed=config.seed,
    )


def _line(named: Estimator, points: list[Measured], estimators: Sequence[Estimator]) -> dict[str, Any]:
    """The risks of an estimator, which may be another at each of the points."""
    means = [measured.mean(estimator) for measured, estimator in zip(points, estimators)]
    return {
        "method": named.method,
        "choice": named.choice,
        "risk": [risk if math.isfinite(risk) else None for risk, _ in means],
        "standard_error": [error if math.isfinite(risk) else None for risk, error in means],
    }
