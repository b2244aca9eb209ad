"""Correspondence with the algorithm: what states hold of its preprocessed covariates, and layers against its steps."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...plots.style import BLUE, FAINT, GREEN, put_heading, styled
from ...train.wording import count, number
from ..analysis.contents import LayerContents
from ..analysis.correspondence import Agreement, Correspondence
from .panels import (
    BARS,
    MARKERS,
    Models,
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
)

_HEIGHT = 2.6
_CONTENT_COLOURS = (BLUE, GREEN, FAINT)


@styled
def contents_figure(models: Models[LayerContents], setting: str) -> Figure:
    """A column for each head count: above the share of variance that linear regression on the states explains of each
    content, below the correlation of the probed features with it, over the number of layers."""
    figure, panels = grid(2, len(models), height=_HEIGHT)
    first = listed(models)[0]
    styles = {name: (_CONTENT_COLOURS[k], MARKERS[k]) for k, name in enumerate(first.contents)}
    at = np.arange(len(first.pooled_r2.value))
    for column, (heads, seeds) in enumerate(sorted(models.items())):
        for k, (colour, marker) in enumerate(styles.values()):
            draw_seeds(panels[0][column], at, [each.pooled_r2[:, k] for each in seeds.values()], colour, marker)
            draw_seeds(panels[1][column], at, [each.pooled_probed[:, k] for each in seeds.values()], colour, marker)
        panels[0][column].set_title(heads_label(heads))
        panels[1][column].set_xlabel("layers passed")
    for row, quantity in zip(panels, ("R² of a regression on h", f"correlation with P h, t = {first.probe_steps}")):
        row[0].set_ylabel(quantity)
        low = min(0.0, *(axes.dataLim.ymin for axes in row))
        for axes in row:
            axes.set_ylim(low - 0.03, 1.03)
            axes.set_xticks(at)
    hide_inner_labels(panels)
    put_legend(figure, [handle(name, colour, marker=marker, ms=4) for name, (colour, marker) in styles.items()])
    put_heading(figure, contents_title(models), f"{setting}; {seeds_label(models)}; {BARS}")
    return figure


def contents_title(models: Models[LayerContents]) -> str:
    """How much of r̂x the first layer adds, with the most and the fewest heads."""
    parts = []
    for heads in dict.fromkeys((max(models), min(models))):
        each = list(models[heads].values())
        column = each[0].contents.index("r̂x")
        before, after = mean_over_seeds([one.pooled_r2[:2, column] for one in each])
        parts.append(f"{number(float(after), 2)} with {heads_label(heads)} ({number(float(before), 2)} before)")
    return f"R² of r̂x after the first layer: {', '.join(parts)}"


@styled
def steps_figure(models: Models[Correspondence], setting: str) -> Figure:
    """A column for each head count: the cosine of each layer's implied coefficients with those of gradient descent over
    its steps, above on preprocessed covariates, below on raw ones."""
    first = listed(models)[0]
    layers = len(first.raw.cosine.value)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, layers))
    markers = [MARKERS[layer % len(MARKERS)] for layer in range(layers)]
    legend = in_rows(
        [
            handle(f"after {count(layer, 'layer')}", colours[layer], marker=markers[layer], ms=4)
            for layer in range(1, layers)
        ]
    )
    figure, panels = grid(2, len(models), height=_HEIGHT, legend_rows=len(legend))
    for column, (heads, seeds) in enumerate(sorted(models.items())):
        sides = ([each.preprocessed for each in seeds.values()], [each.raw for each in seeds.values()])
        for row, agreements in zip(panels, sides):
            for layer in range(1, layers):
                each = [agreement.cosine[layer, 1:] for agreement in agreements]
                draw_seeds(row[column], first.steps[1:], each, colours[layer], markers[layer])
        panels[0][column].set_title(f"{heads_label(heads)}: against descent on r̂x")
        panels[1][column].set_title("against descent on x")
        panels[1][column].set_xlabel("gradient steps t")
    low = min(axes.dataLim.ymin for row in panels for axes in row)
    for row in panels:
        row[0].set_ylabel("cosine of coefficients")
        for axes in row:
            axes.set_ylim(max(low - 0.02, -1.0), 1.0)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    hide_inner_labels(panels)
    put_legend(figure, *legend)
    put_heading(figure, steps_title(models), f"{setting}; {seeds_label(models)}; {BARS}")
    return figure


def nearest_steps(agreement: Agreement, steps: np.ndarray) -> list[tuple[int, float]]:
    """For each layer the number of steps of which it is nearest, and the cosine there."""
    cosine = agreement.cosine.value[:, 1:]
    best = np.nanargmax(np.where(np.isnan(cosine), -np.inf, cosine), axis=1)
    return [(int(steps[1 + k]), float(cosine[layer, k])) for layer, k in enumerate(best)]


def steps_title(models: Models[Correspondence]) -> str:
    """What the last layer's coefficients are nearest to, with the most heads."""
    heads = max(models)
    each = list(models[heads].values())
    after, before = (
        np.mean([nearest_steps(getattr(one, side), one.steps)[-1][1] for one in each])
        for side in ("preprocessed", "raw")
    )
    return (
        f"Greatest cosine of {heads_label(heads)}' last layer: {number(float(after), 3)} with descent on r̂x, "
        f"{number(float(before), 3)} on x"
    )
