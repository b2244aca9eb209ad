"""What the study's figures have in common: grids of panels, axes of risks, colours of head counts, and seeds.

What is known of models is keyed by their number of heads, then by their seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from ...plots.style import axes_at, plainly, round_numbers
from ...train.wording import count
from ..analysis.statistics import Estimate

T = TypeVar("T")
Models: TypeAlias = Mapping[int, Mapping[int, T]]  # by number of heads, by seed

BARS = "bars ± 2 s.e. over prompts"
MARKERS = "osD^vP*X"
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.8, 0.2, 0.72, 0.6  # in inches
_GAP, _ROW_GAP, _TITLE, _LEGEND_ROW = 0.45, 0.62, 0.28, 0.24
WIDTH = 10.4
_WIDEST = 6.4
_LOWEST_SHARE = 1e-4  # of the greatest risk in a figure: what is below is below the axis
_FEW_TICKS, _NARROW = 3, 20  # ticks at 1, 2, 5, 10, … are few, over a range of at most this factor


def grid(
    rows: int, columns: int, *, height: float, legend_rows: int = 1, titled: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with equal panels, room for their titles, and for a legend below."""
    width = min(_WIDEST, (WIDTH - _LEFT - _RIGHT + _GAP) / columns - _GAP)
    below = _BOTTOM + _LEGEND_ROW * legend_rows
    title = _TITLE if titled else 0.0
    left = (WIDTH - columns * (width + _GAP) + _GAP + _LEFT - _RIGHT) / 2
    figure = Figure(figsize=(WIDTH, below + rows * (height + title + _ROW_GAP) - _ROW_GAP + _TOP))
    bottoms = [below + (rows - 1 - row) * (height + title + _ROW_GAP) for row in range(rows)]
    return figure, [
        [axes_at(figure, left + column * (width + _GAP), bottom, width, height) for column in range(columns)]
        for bottom in bottoms
    ]


def in_rows(handles: Sequence[T], most: int = 4) -> list[Sequence[T]]:
    """Legend entries in rows of at most so many."""
    return [handles[k : k + most] for k in range(0, len(handles), most)]


def put_legend(figure: Figure, *rows: Sequence[Any]) -> None:
    """Rows of legend entries below all panels."""
    height = figure.get_figheight()
    for place, row in enumerate(reversed(rows)):
        style: dict[str, Any] = {"ncols": len(row), "columnspacing": 1.2, "handlelength": 1.6}
        at = (0.5, place * _LEGEND_ROW / height)
        figure.legend(handles=list(row), loc="lower center", bbox_to_anchor=at, **style)


def handle(label: str, colour: Any, **style: Any) -> Line2D:
    """A line of a legend."""
    return Line2D([], [], color=colour, label=label, **{"lw": 1.6, **style})


def count_colours(counts: Iterable[int]) -> dict[int, Any]:
    """A grey for each head count, the darkest for the most."""
    ordered = sorted(counts)
    shades = np.linspace(0.35, 1.0, len(ordered)) if len(ordered) > 1 else [1.0]
    return {heads: matplotlib.colormaps["Greys"](shade) for heads, shade in zip(ordered, shades)}


def count_markers(counts: Iterable[int]) -> dict[int, str]:
    """A marker for each head count."""
    return {heads: MARKERS[k % len(MARKERS)] for k, heads in enumerate(sorted(counts))}


def heads_label(heads: int) -> str:
    """As in 1 head, 8 heads."""
    return count(heads, "head")


def listed(models: Models[T]) -> list[T]:
    """What is known of all models."""
    return [each for seeds in models.values() for each in seeds.values()]


def seeds_label(models: Models[Any]) -> str:
    """What lines and points are."""
    most = max(map(len, models.values()))
    return f"points: {count(most, 'seed')}, lines: their mean" if most > 1 else "one seed"


def mean_over_seeds(estimates: Iterable[Estimate]) -> NDArray[np.float64]:
    """The mean of the values."""
    return np.asarray(np.mean([each.value for each in estimates], axis=0))


def draw_seeds(axes: Axes, at: ArrayLike, estimates: Sequence[Estimate], colour: Any, marker: str, **line: Any) -> None:
    """Estimates (points,) of each seed with bars of ± 2 s.e., and a line through their mean."""
    axes.plot(at, mean_over_seeds(estimates), color=colour, **{"lw": 1.6, "zorder": 4, **line})
    for estimate in estimates:
        style: dict[str, Any] = {"ls": "", "marker": marker, "ms": 3.5, "lw": 0.9, "mew": 0, "zorder": 5}
        axes.errorbar(at, estimate.value, 2 * estimate.se, color=colour, **style)


def set_risk_axes(panels: Sequence[Axes], *, lowest: float | None = None) -> None:
    """One logarithmic vertical axis for all panels, from the least positive risk, or `lowest`, to the greatest."""
    high = max(axes.dataLim.ymax for axes in panels)
    low = min(axes.dataLim.minposy for axes in panels) if lowest is None else lowest
    if not (math.isfinite(high) and high > 0):
        return  # nothing but zeros is to be seen
    low = min(max(low, _LOWEST_SHARE * high), high / 2)
    margin = (high / low) ** 0.05
    for axes in panels:
        axes.set_yscale("log")
        axes.set_ylim(low / margin, high * margin)
        axes.yaxis.set_major_locator(FixedLocator(_ticks(low / margin, high * margin)))
        axes.yaxis.set_major_formatter(plainly)
        axes.yaxis.set_minor_locator(NullLocator())


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, …, or more where few of these are within the limits."""
    found = round_numbers(low, high, 8)
    if len(found) > _FEW_TICKS or high / low > _NARROW:
        return found
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    finer = [m * 10.0**k for k in decades for m in (1, 1.5, 2, 3, 4, 5, 7)]
    return [tick for tick in finer if low <= tick <= high]


def set_categories(axes: Axes, values: Sequence[float]) -> None:
    """Ticks 0, 1, … named by the values, for a horizontal axis on which they stand evenly."""
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_xlim(-0.3, len(values) - 0.7)


def hide_inner_labels(panels: Sequence[Sequence[Axes]]) -> None:
    """Only the left column has numbers at its vertical axis."""
    for row in panels:
        for axes in row[1:]:
            axes.set_yticklabels([])
