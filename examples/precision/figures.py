"""The figure of the precision study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from mhicl_fast.plots.style import BLUE, FAINT, GREEN, ORANGE, styled

if TYPE_CHECKING:
    from precision import Row

MARKS = {"start": (BLUE, "o"), "half emergence": (ORANGE, "s"), "limit": (GREEN, "D")}


@styled
def times_figure(rows: Sequence[Row], error: float) -> Figure:
    """Core milliseconds for a gradient of the given error, by estimate (downwards), setting (panels) and moment."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    names = list(dict.fromkeys(row.estimate for row in rows))
    figure = Figure(figsize=(3 + 3.2 * len(settings), 1.6 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axes, setting in zip(panels, settings):
        for moment, (colour, marker) in MARKS.items():
            found = [row for row in rows if (row.setting, row.moment) == (setting, moment)]
            axes.plot([row.milliseconds for row in found], [names.index(row.estimate) for row in found],
                      ls="", marker=marker, ms=6, color=colour)  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(setting, loc="left")
        axes.grid(axis="y", color=FAINT, lw=0.4, alpha=0.5)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.supxlabel(
        f"milliseconds of one core for a gradient of {100 * error:.0f} % error in KQ and in OV", fontsize=11
    )
    handles = [Line2D([], [], ls="", marker=mark, color=colour, label=name) for name, (colour, mark) in MARKS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure
