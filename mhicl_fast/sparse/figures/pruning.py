"""Pruned against full against single-head models, over noise variances and numbers of context examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ...plots.style import BLUE, FAINT, GREEN, INK, ORANGE, put_heading, styled
from ...train.wording import number
from ..analysis.prune import Comparison
from ..analysis.statistics import Estimate
from ..study.experiments import Pruning
from .panels import (
    BARS,
    Models,
    draw_seeds,
    grid,
    handle,
    heads_label,
    hide_inner_labels,
    listed,
    put_legend,
    seeds_label,
    set_categories,
    set_risk_axes,
)

_HEIGHT = 2.5
LABELS = {
    "full": "all heads",
    "pruned": "pruned",
    "trained on": "pruned, trained on",
    "single": "single head",
    "other": "another head kept",
    "without": "all but the dominant",
}
_STYLES = {  # of those that are drawn
    "full": (INK, "o"),
    "pruned": (ORANGE, "s"),
    "trained on": (BLUE, "D"),
    "single": (GREEN, "^"),
    "other": (FAINT, "v"),
}


@styled
def pruning_figure(models: Models[Pruning], setting: str) -> Figure:
    """A column for each head count: above over the noise variance at the greatest n, below over n at the greatest noise
    variance, where several were measured."""
    against = {
        heads: {seed: each.against["full"] for seed, each in seeds.items()} for heads, seeds in sorted(models.items())
    }
    first = listed(against)[0]
    over_n = len(first.context_lengths) > 1
    figure, panels = grid(1 + over_n, len(models), height=_HEIGHT)
    for column, (heads, seeds) in enumerate(against.items()):
        for name in _STYLES:
            each = [one.risk[one.names.index(name)] for one in seeds.values() if name in one.names]
            _draw(panels[0][column], np.arange(len(first.noise_variance)), [risk[-1] for risk in each], name)
            if over_n:
                _draw(panels[1][column], first.context_lengths, [risk[:, -1] for risk in each], name)
                panels[1][column].set_xlabel("context examples n")
                panels[1][column].set_title(f"σ² = {first.noise_variance[-1]:g}")
        panels[0][column].set_title(f"{heads_label(heads)}, n = {first.context_lengths[-1]}")
        panels[0][column].set_xlabel("noise variance σ²")
        set_categories(panels[0][column], list(first.noise_variance))
    for row in panels:
        row[0].set_ylabel("excess risk")
        set_risk_axes(row)
    hide_inner_labels(panels)
    there = {name for one in listed(against) for name in one.names}
    put_legend(
        figure,
        [handle(LABELS[name], colour, marker=mark, ms=4) for name, (colour, mark) in _STYLES.items() if name in there],
    )
    put_heading(figure, pruning_title(against), f"{setting}; {seeds_label(models)}; {BARS}")
    return figure


def _draw(axes: Axes, at: ArrayLike, risks: Sequence[Estimate], name: str) -> None:
    if risks:
        draw_seeds(axes, at, risks, *_STYLES[name])


def pruning_title(models: Models[Comparison]) -> str:
    """The pooled risks over that of all heads of the models with the most heads, each the mean over seeds."""
    most = max(models)
    parts = []
    for name in ("pruned", "trained on", "single"):
        ratios = [one.pooled_ratio.value[one.names.index(name)] for one in models[most].values() if name in one.names]
        if ratios:
            parts.append(f"{number(float(np.mean(ratios)), 3)} {LABELS[name]}")
    return f"Pooled risk over that with all {most} heads: {'; '.join(parts)}"
