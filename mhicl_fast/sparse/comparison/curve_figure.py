"""The figure of the risk curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ...plots.style import BLUE, FAINT, GREEN, ORANGE, PURPLE, axes_at, plainly, put_heading, styled
from .estimators import Estimator

Results = Mapping[str, Any]

_AXES = {
    "context_length": "examples n",
    "sparsity": "coefficients that are not zero, s",
    "dim_x": "covariates d",
    "noise_variance": "noise variance σ²",
    "steps": "gradient steps",
    "heads": "heads of the first layer, H",
}
_STYLES = {  # colour and dashes of a line, by its method and choice
    ("algorithm", "c = 1"): (BLUE, "-"),
    ("algorithm", "best c"): (BLUE, (0, (2, 1.5))),
    ("descent", "best c"): (ORANGE, "-"),
    ("ridge", "Bayes"): (GREEN, "-"),
    ("lasso", "best"): (PURPLE, "-"),
    ("support", ""): (FAINT, (0, (5, 2))),
}
_LOG_RATIO = 8  # an axis whose values range over this factor is logarithmic
_COLUMNS = 3
_FLOOR = 1e-3  # risks below are drawn there
_WIDTH, _HEIGHT, _LEFT, _GAP, _TOP, _BOTTOM, _ROW = 3.5, 2.9, 0.75, 0.55, 0.8, 1.2, 0.75  # of the curves, in inches


@styled
def curves_figure(results: Results) -> Figure:
    """Excess risk over n, s, d, σ², the steps and the heads, a panel each, with a band of ± 2 standard errors."""
    config, curves = results["config"], results["curves"]
    rows = math.ceil(len(curves) / _COLUMNS)
    size = (
        _LEFT + _COLUMNS * (_WIDTH + _GAP) - _GAP + 0.2,
        _TOP + rows * (_HEIGHT + _ROW) - _ROW + _BOTTOM,
    )
    figure = Figure(figsize=size)
    for place, (axis, curve) in enumerate(curves.items()):
        row, column = divmod(place, _COLUMNS)
        bottom = _BOTTOM + (rows - 1 - row) * (_HEIGHT + _ROW)
        axes = axes_at(figure, _LEFT + column * (_WIDTH + _GAP), bottom, _WIDTH, _HEIGHT)
        _draw_curve(axes, curve)
        axes.set_xlabel(_AXES[axis])
        axes.set_ylabel("excess risk" if column == 0 else "")
    lines = next(iter(curves.values()))["lines"]
    handles = [
        Line2D([], [], color=colour, ls=dashes, lw=1.6, label=Estimator(line["method"], line["choice"]).label)
        for line in lines
        for colour, dashes in [_STYLES[line["method"], line["choice"]]]
    ]
    figure.legend(handles=handles, loc="lower center", ncols=_COLUMNS, bbox_to_anchor=(0.5, 0.0))
    put_heading(
        figure,
        "The algorithm against other estimators",
        f"what does not vary: d = {config['dim_x']}, n = {config['context_length']}, s = {config['sparsity']}, "
        f"σ² = {config['noise_variance']:g}, {config['steps']} steps; {config['curve_prompts']} prompts a point, "
        "bands of ± 2 standard errors",
    )
    return figure


def _draw_curve(axes: Axes, curve: Mapping[str, Any]) -> None:
    at = np.asarray(curve["values"], np.float64)
    for line in curve["lines"]:
        colour, dashes = _STYLES[line["method"], line["choice"]]
        risk, error = (np.array(line[key], np.float64) for key in ("risk", "standard_error"))
        low, high = np.maximum(risk - 2 * error, _FLOOR / 2), np.maximum(risk + 2 * error, _FLOOR / 2)
        axes.fill_between(at, low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(at, np.maximum(risk, _FLOOR / 2), color=colour, ls=dashes, lw=1.6, marker="o", ms=2.5)
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(_FLOOR, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(plainly)
    positive = at[at > 0]
    if len(positive) == len(at) and at.max() / at.min() > _LOG_RATIO:
        axes.set_xscale("log")
        axes.set_xticks(_apart(at), [f"{value:g}" for value in _apart(at)])
        axes.xaxis.set_minor_locator(NullLocator())


def _apart(values: np.ndarray) -> list[float]:
    """Those of the values that are far enough apart on a logarithmic axis for their numbers."""
    span = math.log(values.max() / values.min()) / 9
    kept = [float(values[0])]
    for value in values[1:]:
        if math.log(value / kept[-1]) > span:
            kept.append(float(value))
    return kept
