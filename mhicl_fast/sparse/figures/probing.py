"""Risk of a few gradient steps on linear maps of hidden states, against the number of steps, for each layer."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ...plots.style import BLUE, FAINT, INK, ORANGE, put_heading, styled
from ...train.wording import count, number
from ..analysis.probe import Probes
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
    set_categories,
    set_risk_axes,
)

_HEIGHT = 3.1
_OF_COVARIATES: dict[str, tuple[Any, Any, str]] = {  # colour, dashes and label of what no layer has changed
    "x": (FAINT, (0, (4, 2)), "x"),
    "P x": (INK, (0, (1, 1)), "P x, fitted"),
    "r̂x": (BLUE, (0, (4, 2)), "r̂x, the algorithm's"),
}


@styled
def probing_figure(models: Models[Probes], setting: str) -> Figure:
    """A panel for each head count: risk over the steps, a line for each layer's states and for the covariates."""
    styles = source_styles(listed(models)[0])
    fitted_sources = [source for source in styles if source not in _OF_COVARIATES]
    markers = dict.fromkeys(styles, "") | dict(zip(fitted_sources, itertools.cycle(MARKERS)))
    handles = {s: handle(label, c, ls=ls, marker=markers[s], ms=4) for s, (c, ls, label) in styles.items()}
    fitted = in_rows([line for source, line in handles.items() if source not in _OF_COVARIATES])
    others = [line for source, line in handles.items() if source in _OF_COVARIATES]
    figure, (panels,) = grid(1, len(models), height=_HEIGHT, legend_rows=len(fitted) + 1)
    for axes, (heads, seeds) in zip(panels, sorted(models.items())):
        probes = list(seeds.values())
        for k, source in enumerate(probes[0].sources):
            colour, dashes, _ = styles[source]
            each = [probe.risk[k] for probe in probes]
            order = 6 if source in _OF_COVARIATES else 4
            draw_seeds(axes, np.arange(len(probes[0].steps)), each, colour, markers[source], ls=dashes, zorder=order)
        for probe in probes:
            axes.axhline(float(probe.model_risk.value), color=ORANGE, lw=1.0, zorder=1)
        set_categories(axes, list(probes[0].steps))
        axes.set_title(heads_label(heads))
        axes.set_xlabel("gradient steps t")
    panels[0].set_ylabel("excess risk")
    set_risk_axes(panels)
    hide_inner_labels([panels])
    put_legend(figure, *fitted, [*others, handle("the model itself", ORANGE, lw=1.0)])
    put_heading(figure, probing_title(models), f"{setting}; {seeds_label(models)}; {BARS}")
    return figure


def source_styles(probes: Probes) -> dict[str, tuple[Any, Any, str]]:
    """Colour, dashes and label of each source."""
    layers = [source for source in probes.sources if source not in _OF_COVARIATES]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    named = {source: (shade, "-", source_label(source)) for source, shade in zip(layers, shades)}
    return {source: _OF_COVARIATES.get(source) or named[source] for source in probes.sources}


def source_label(source: str) -> str:
    """As in: P h, after 2 layers."""
    if not source.startswith("P h"):
        return _OF_COVARIATES[source][2] if source in _OF_COVARIATES else source
    return f"P h, after {count(int(source[3:]), 'layer')}"


def probing_title(models: Models[Probes]) -> str:
    """The risk of about as many steps as layers that are left after the first, on x and on the states after one layer,
    with the most and the fewest heads."""
    first = listed(models)[0]
    layers = sum(source.startswith("P h") for source in first.sources) - 1
    place = int(np.argmin(np.abs(first.steps - (layers - 1))))

    def risk(heads: int, source: str) -> str:
        each = [probe.risk[probe.sources.index(source), place] for probe in models[heads].values()]
        return number(float(mean_over_seeds(each)), 2)

    counts = dict.fromkeys((max(models), min(models)))
    after = ", ".join(f"{risk(heads, 'P h1')} with {heads_label(heads)}" for heads in counts)
    steps = count(int(first.steps[place]), "gradient step")
    return f"Risk of {steps}: {risk(max(models), 'x')} on x; after one layer {after}"
