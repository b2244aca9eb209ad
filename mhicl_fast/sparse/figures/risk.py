"""Excess risk against the number of context examples, for each head count, with the baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...plots.style import BLUE, FAINT, GREEN, ORANGE, PURPLE, put_heading, styled
from ...train.wording import number
from ..analysis.statistics import Estimate
from ..comparison.estimators import BEST_LASSO, RIDGE, SUPPORT, algorithm, descent
from ..study.experiments import name_of
from .panels import (
    BARS,
    Models,
    count_colours,
    count_markers,
    draw_seeds,
    grid,
    handle,
    heads_label,
    hide_inner_labels,
    in_rows,
    listed,
    mean_over_seeds,
    put_legend,
    seeds_label,
    set_risk_axes,
)

_HEIGHT = 2.9
_FEW, _MANY = (0, (1, 1.2)), (0, (5, 1.5))  # dashes, of few gradient steps and of many
_DRAWN: dict[str, tuple[Any, Any]] = {  # colour and dashes of the estimators that are drawn
    **{name_of(algorithm(steps)): (BLUE, dashes) for steps, dashes in ((2, _FEW), (10, _MANY))},
    **{name_of(descent(steps)): (ORANGE, dashes) for steps, dashes in ((2, _FEW), (10, _MANY))},
    name_of(RIDGE): (GREEN, _MANY),
    name_of(BEST_LASSO): (PURPLE, _MANY),
    name_of(SUPPORT): (FAINT, _MANY),
}


@dataclass(frozen=True, eq=False)
class RiskCurves:
    """Excess risks at C context lengths and V noise variances: estimates (C, V) of models, and of estimators that are
    not trained, by name one for each seed. Infinite risks are NaN."""

    context_lengths: Sequence[int]
    noise_variance: Sequence[float]
    models: Models[Estimate]
    estimators: Mapping[str, Sequence[Estimate]]


@styled
def risk_figure(curves: RiskCurves, setting: str) -> Figure:
    """A panel for each noise variance."""
    context_lengths, noise_variance, models = curves.context_lengths, curves.noise_variance, curves.models
    columns = min(2, len(noise_variance))
    rows = math.ceil(len(noise_variance) / columns)
    drawn = {name: seeds for name, seeds in curves.estimators.items() if name in _DRAWN}
    figure, panels = grid(rows, columns, height=_HEIGHT, legend_rows=1 + len(in_rows(list(drawn))))
    flat = [axes for row in panels for axes in row]
    for spare in flat[len(noise_variance) :]:
        spare.remove()
    flat = flat[: len(noise_variance)]
    colours, markers = count_colours(models), count_markers(models)
    low = _lowest(models)
    for k, (axes, level) in enumerate(zip(flat, noise_variance)):
        for name, estimates in drawn.items():
            risk = np.maximum(mean_over_seeds(estimates)[:, k], low / 10)  # what is 0 leaves the axis as well
            axes.plot(context_lengths, risk, color=_DRAWN[name][0], ls=_DRAWN[name][1], lw=1.3)
        for heads, seeds in models.items():
            each = [estimate[:, k] for estimate in seeds.values()]
            draw_seeds(axes, context_lengths, each, colours[heads], markers[heads])
        axes.set_title(f"σ² = {level:g}")
    set_risk_axes(flat, lowest=low)
    hide_inner_labels(panels)
    for axes in flat[-columns:]:
        axes.set_xlabel("context examples n")
    for row in panels:
        row[0].set_ylabel("excess risk")
    counts = [handle(heads_label(h), colours[h], marker=markers[h], ms=4) for h in sorted(models)]
    others = [handle(name, colour, ls=dashes, lw=1.3) for name, (colour, dashes) in _DRAWN.items() if name in drawn]
    put_legend(figure, counts, *in_rows(others))
    put_heading(figure, risk_title(curves), f"{setting}; {seeds_label(models)}; {BARS}")
    return figure


def risk_title(curves: RiskCurves) -> str:
    """What is seen at the greatest length, as the mean over noise variances and seeds of each head count."""
    models = curves.models
    at_full = {heads: float(mean_over_seeds(seeds.values())[-1].mean()) for heads, seeds in sorted(models.items())}
    fewest, most = min(at_full), max(at_full)
    where = f"at n = {curves.context_lengths[-1]}, mean over σ²"
    if fewest == most:
        return f"Excess risk with {heads_label(most)}: {number(at_full[most], 2)} {where}"
    change = f"from {number(at_full[fewest], 2)} with {heads_label(fewest)} to {number(at_full[most], 2)} with {most}"
    steps = np.diff(list(at_full.values()))
    if (steps < 0).all():
        return f"Each larger head count has less risk: {change} ({where})"
    best = min(at_full, key=lambda heads: at_full[heads])
    return f"Risk goes {change}; least with {heads_label(best)} ({where})"


def _lowest(models: Models[Estimate]) -> float:
    """A third of the least risk of a model: baselines that are zero, or nearly, leave the axis."""
    values: NDArray[np.float64] = np.concatenate([each.value.ravel() for each in listed(models)])
    positive = values[values > 0]
    return float(positive.min()) / 3 if len(positive) else 1e-3
