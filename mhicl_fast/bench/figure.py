"""The figure of a benchmark: how many times longer each competitor takes, shape by shape."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ..plots.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, axes_at, plainly, put_heading, round_numbers, styled
from .errors import BenchInputError
from .results import OURS, Report

_PANELS = {"forward": "forward", "both": "forward + backward"}
_FAMILIES = {"eager": BLUE, "compile": PURPLE, "sdpa": GREEN, "flex": ORANGE}  # a word of the name
_MARKERS = "osD^vP*Xph"  # of the members of a family
_ROW = 0.5  # inches


@styled
def bench_figure(report: Report) -> Figure:
    """One row per shape; a mark right of the line is a competitor that is slower than mhicl_fast.

    BenchInputError where there is nothing to compare.
    """
    names = [name for name in _names(report) if name != OURS]
    if not any(report.results and result.best(part) for result in report.results for part in _PANELS):
        raise BenchInputError("nothing to draw: no competitor and mhicl_fast both have times at any shape")
    rows = len(report.results)
    height = 2.3 + _ROW * rows
    figure = Figure(figsize=(11.5, height))
    several = len({result.dtype for result in report.results}) > 1
    labels = [f"{result.shape}{f' {result.dtype}' if several else ''}" for result in report.results]
    panels = [axes_at(figure, left, 1.2, 4.1, height - 2.15) for left in (2.6, 7.1)]
    for axes, part in zip(panels, _PANELS):
        _draw(axes, report, part, names)
    panels[0].set_yticks(range(rows), labels)
    panels[1].set_yticks(range(rows), [""] * rows)
    handles, texts = panels[1].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower center", ncols=min(len(names), 5), handletextpad=0.1, columnspacing=1.2)
    facts = report.machine
    put_heading(
        figure,
        "Time in terms of mhicl_fast's: right of the line, mhicl_fast is faster",
        f"{report.settings['operator']}, {', '.join(report.roofs)}; {facts['processor']}, {facts['instruction set']}, "
        f"threads: {facts['threads']}, torch {facts['torch']}",
    )
    return figure


def _draw(axes: Axes, report: Report, part: str, names: list[str]) -> None:
    """A panel: the quartiles as lines, the medians as marks, those of a shape below each other."""
    ratios = []
    for place, (name, (colour, marker)) in enumerate(zip(names, _looks(names))):
        points = []
        for row, result in enumerate(report.results):
            ours, entry = result.entries[OURS].times.get(part), result.entries.get(name)
            theirs = entry.times.get(part) if entry else None
            if ours and theirs:
                height = row + 0.7 * ((place + 0.5) / len(names) - 0.5)
                points.append((theirs.median / ours.median, height))
                axes.hlines(height, theirs.low / ours.median, theirs.high / ours.median, color=colour, linewidth=1)
        ratios += [ratio for ratio, _ in points]
        axes.plot(*zip(*points) if points else ([], []), marker, color=colour, markersize=4.5, label=name)
    for row in range(1, len(report.results)):
        axes.axhline(row - 0.5, color=FAINT, linewidth=0.5, alpha=0.4)
    axes.axvline(1, color=INK, linewidth=1)
    low, high = min([*ratios, 0.9]) * 0.9, max([*ratios, 2.0]) * 1.15
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(round_numbers(low, high, 8)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(plainly)
    axes.set_ylim(len(report.results) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_title(_PANELS[part])
    axes.set_xlabel("times as long as mhicl_fast")


def _looks(names: list[str]) -> list[tuple[str, str]]:
    """Colour and marker of each: a colour per family, a marker per member."""
    families = [next((word for word in name.split("-") if word in _FAMILIES), "") for name in names]
    return [
        (_FAMILIES.get(family, INK), _MARKERS[families[:place].count(family) % len(_MARKERS)])
        for place, family in enumerate(families)
    ]


def _names(report: Report) -> list[str]:
    """All competitors, in the order in which they first occur."""
    return list(dict.fromkeys(name for result in report.results for name in result.entries))
