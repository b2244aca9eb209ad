"""The figures of the map: measured against each rival, and from theory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ...plots.style import BLUE, DIVERGING, INK, ORANGE, axes_at, put_heading, styled
from .regimes import RIVALS

Results = Mapping[str, Any]

_CELL, _MAP_LEFT, _MAP_GAP, _MAP_BOTTOM = 0.34, 1.0, 0.35, 1.25  # of the map
_MOST = 2.0  # log₂ of the ratio of risks at which the colours end
_PANEL, _LEFT, _BOTTOM, _TOP, _ACROSS, _DOWN = (2.9, 2.4), 0.75, 1.55, 0.95, 0.3, 0.65  # of theory's map, in inches
_COLUMNS = 3
_MARGIN = 1.12  # factor by which the axes go beyond what was computed, for the points at its edge


@styled
def map_figure(results: Results, steps: int | None = None, choice: str = "c = 1") -> Figure:
    """Where the algorithm wins against each rival: a row of panels for each, a column for each number of examples.

    `steps` and `choice` say which algorithm; by default the number of steps is that of the curves.
    """
    config = results["config"]
    steps = config["steps"] if steps is None else steps
    cells = [row for row in results["map"] if (row["steps"], row["choice"]) == (steps, choice)]
    lengths, noises, sparsities = (
        list(dict.fromkeys(cell[key] for cell in cells)) for key in ("context_length", "noise_variance", "sparsity")
    )
    width, height = _CELL * len(sparsities), _CELL * len(noises)
    size = (
        _MAP_LEFT + len(lengths) * (width + _MAP_GAP) + 0.1,
        _MAP_BOTTOM + len(RIVALS) * (height + 0.75) + 0.55,
    )
    figure = Figure(figsize=size)
    for row, (rival, name) in enumerate(RIVALS.items()):
        bottom = _MAP_BOTTOM + (len(RIVALS) - 1 - row) * (height + 0.75)
        above = (bottom + height + 0.3) / size[1]
        figure.text(_MAP_LEFT / size[0], above, f"against {name}", color=INK, fontsize=11, va="bottom")
        for column, n in enumerate(lengths):
            axes = axes_at(figure, _MAP_LEFT + column * (width + _MAP_GAP), bottom, width, height)
            here = [cell for cell in cells if (cell["context_length"], cell["rival"]) == (n, rival)]
            _draw_cells(axes, here, noises, sparsities)
            axes.set_title(f"n = {n}", fontsize=10, pad=3)
            axes.set_yticks(range(len(noises)), [f"{noise:g}" for noise in noises] if column == 0 else [])
            if column == 0:
                axes.set_ylabel("σ²")
            last = row == len(RIVALS) - 1
            axes.set_xticks(range(len(sparsities)), [str(s) for s in sparsities] if last else [])
            if last:
                axes.set_xlabel("s")
    _draw_key(figure, size[0])
    put_heading(
        figure,
        f"Where the algorithm wins: blue (d = {config['dim_x']})",
        f"{steps} steps, {choice}; {config['map_prompts']} prompts for each cell; "
        "dots: undecided, within 2 standard errors",
    )
    return figure


def _draw_cells(
    axes: Axes, cells: Sequence[Mapping[str, Any]], noises: Sequence[float], sparsities: Sequence[int]
) -> None:
    ratios = np.zeros((len(noises), len(sparsities)))
    for cell in cells:
        place = noises.index(cell["noise_variance"]), sparsities.index(cell["sparsity"])
        ratios[place] = _bounded_log(cell["risk"] - cell["difference"], cell["risk"])
        if cell["verdict"] == 0:
            axes.plot(place[1], place[0], marker="o", ms=3, color=INK)
    axes.imshow(ratios, cmap=DIVERGING, norm=TwoSlopeNorm(0, -_MOST, _MOST), origin="lower", aspect="auto")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bounded_log(other: float, ours: float) -> float:
    """log₂ of the other's risk over ours, within the range of the colours; a risk of 0 beats every other."""
    if min(other, ours) <= 0:
        return _MOST * float(np.sign(other - ours))
    return float(np.clip(math.log2(other / ours), -_MOST, _MOST))


def _draw_key(figure: Figure, width: float) -> None:
    """The colours, named by the ratio of risks."""
    key = axes_at(figure, width / 2 - 1.6, 0.42, 3.2, 0.14)
    key.imshow(np.linspace(-_MOST, _MOST, 256)[None], cmap=DIVERGING, aspect="auto", extent=(-_MOST, _MOST, 0, 1))
    ticks = np.arange(-_MOST, _MOST + 1)
    key.set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
    key.set_yticks([])
    key.set_xlabel("the other's risk over the algorithm's", fontsize=10, labelpad=2)


def best_map_figure(results: Results) -> Figure:
    """The map of the algorithm with the most steps and the best c."""
    return map_figure(results, max(row["steps"] for row in results["map"]), "best c")


@styled
def theory_figure(results: Results) -> Figure:
    """Theory's map against gradient descent over s/d and n/d, a panel for each noise variance, with the measured cells
    on it."""
    config, rows = results["config"], results["theory"]
    noises = list(dict.fromkeys(row["noise_variance"] for row in rows))
    columns = min(_COLUMNS, len(noises))
    lines = math.ceil(len(noises) / columns)
    width = _LEFT + columns * (_PANEL[0] + _ACROSS)
    figure = Figure(figsize=(width, _BOTTOM + lines * (_PANEL[1] + _DOWN) - _DOWN + _TOP))
    for place, noise in enumerate(noises):
        row, column = divmod(place, columns)
        bottom = _BOTTOM + (lines - 1 - row) * (_PANEL[1] + _DOWN)
        axes = axes_at(figure, _LEFT + column * (_PANEL[0] + _ACROSS), bottom, *_PANEL)
        _draw_theory(axes, [found for found in rows if found["noise_variance"] == noise], config["dim_x"])
        measured = [cell for cell in results["map"] if cell["noise_variance"] == noise and _is_theorys(cell, config)]
        _draw_verdicts(axes, measured, config["dim_x"])
        axes.set_title(f"σ² = {noise:g}", pad=4)
        axes.set_ylabel("n/d" if column == 0 else "")
        axes.set_xlabel("s/d" if place + columns >= len(noises) else "")
        if column:
            axes.set_yticklabels([])
    figure.legend(
        handles=_theory_key(), loc="lower center", ncols=4, bbox_to_anchor=(0.5, 0.6 / figure.get_figheight())
    )
    _draw_key(figure, width)
    put_heading(
        figure,
        "Where preprocessing wins against gradient descent, from the spectrum",
        f"d = {config['dim_x']}, {config['steps']} steps, c = 1 against the best c; {config['theory_draws']} draws; "
        f"points: measured on {config['map_prompts']} prompts",
    )
    return figure


def _is_theorys(cell: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return (cell["steps"], cell["choice"], cell["rival"]) == (config["steps"], "c = 1", "descent")


def _draw_theory(axes: Axes, rows: Sequence[Mapping[str, Any]], dim_x: int) -> None:
    """The ratio of risks, and the line where it is 1."""
    lengths, sparsities = (sorted({row[key] for row in rows if row[key]}) for key in ("context_length", "sparsity"))
    ratio = np.zeros((len(lengths), len(sparsities)))
    for row in rows:
        if row["sparsity"]:
            place = lengths.index(row["context_length"]), sparsities.index(row["sparsity"])
            ratio[place] = _bounded_log(row["descent_risk"], row["algorithm_risk"])
    across, up = np.array(sparsities) / dim_x, np.array(lengths) / dim_x
    axes.set_xscale("log")
    axes.set_yscale("log")
    if min(ratio.shape) > 1:
        norm = TwoSlopeNorm(0, -_MOST, _MOST)
        axes.contourf(across, up, ratio, levels=np.linspace(-_MOST, _MOST, 33), cmap=DIVERGING, norm=norm)
        axes.contour(across, up, ratio, levels=[0.0], colors=INK, linewidths=1.4)
    for axis, limit, values in ((axes.xaxis, axes.set_xlim, across), (axes.yaxis, axes.set_ylim, up)):
        limit(values[0] / _MARGIN, values[-1] * _MARGIN)
        ticks = [tick for tick in 2.0 ** np.arange(-6, 6) if values[0] <= tick <= values[-1]]
        axis.set_ticks(ticks, [f"1/{1 / tick:g}" if tick < 1 else f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(NullLocator())


def _draw_verdicts(axes: Axes, cells: Sequence[Mapping[str, Any]], dim_x: int) -> None:
    for cell in cells:
        if cell["sparsity"] and cell["context_length"]:
            style = _VERDICTS[cell["verdict"]]
            axes.plot(cell["sparsity"] / dim_x, cell["context_length"] / dim_x, ls="", clip_on=False, zorder=3, **style)


_VERDICTS: dict[int, dict[str, Any]] = {
    1: {"marker": "o", "ms": 6, "mfc": BLUE, "mec": "white"},
    -1: {"marker": "v", "ms": 6, "mfc": ORANGE, "mec": "white"},
    0: {"marker": "s", "ms": 5, "mfc": "white", "mec": INK},
}


def _theory_key() -> list[Line2D]:
    names = {1: "the algorithm wins", -1: "it loses", 0: "undecided"}
    points = [Line2D([], [], ls="", label=f"measured: {name}", **_VERDICTS[kind]) for kind, name in names.items()]
    return [*points, Line2D([], [], color=INK, lw=1.4, label="theory: equal risks")]
