"""The figures of the separation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from mhicl_fast.plots.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, plainly, styled

if TYPE_CHECKING:
    from separation import Point

COLOURS = {"single head": PURPLE, "one head per task": BLUE, "best multi-head": GREEN, "Bayes": FAINT}
MARKS: dict[str, dict[str, Any]] = {
    "ode": {"marker": ".", "ms": 5, "label": "limit of the ODE"},
    "evaluated": {"marker": "o", "ms": 7, "mfc": "white", "label": "real attention in that state"},
    "trained": {"marker": "x", "ms": 7, "mew": 1.6, "label": "real attention, trained"},
}
DASHED = (0, (4, 3))


def marks(axes: Axes, points: Sequence[Point], x: str, colour: str, zorder: float = 3) -> None:
    """Points with two standard errors, each in the mark of its source."""
    for source, style in MARKS.items():
        found = [point for point in points if point.source == source]
        errors = [2 * point.standard_error for point in found]
        axes.errorbar([getattr(point, x) for point in found], [point.excess for point in found], errors, ls="",
                      color=colour, zorder=zorder, **style | {"label": None})  # fmt: skip


def source_legend(figure: Figure, points: Sequence[Point], *lines: Line2D) -> None:
    sources = {point.source for point in points}
    handles = [Line2D([], [], ls="", color=INK, **style) for source, style in MARKS.items() if source in sources]
    figure.legend(handles=[*lines, *handles], loc="outside lower center", ncols=3)


@styled
def law_figure(points: Sequence[Point]) -> Figure:
    """Excess loss against the context length, both logarithmic."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    for state, colour in COLOURS.items():
        for name, style in ((state, "-"), (f"{state}, 1st order", DASHED)):
            line = [point for point in points if (point.state, point.source) == (name, "theory")]
            axes.plot([p.context_length for p in line], [p.excess for p in line], color=colour, lw=1.5, ls=style)
        line = [point for point in points if (point.state, point.source) == (state, "theory")]
        axes.annotate(state, (line[-1].context_length, line[-1].excess), (8, 0), textcoords="offset points",
                      va="center", color=colour if colour != FAINT else "#5A5A5A", annotation_clip=False)  # fmt: skip
        marks(axes, [point for point in points if point.state == state], "context_length", colour)
    axes.set(xscale="log", yscale="log", xlabel="context length L", ylabel="loss above the noise floor")
    lengths = sorted({point.context_length for point in points})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(plainly)
    axes.set_title("Every loss falls like 1/L, and the distances between them stay")
    source_legend(
        figure,
        points,
        Line2D([], [], color=INK, label="theory, leading order"),
        Line2D([], [], color=INK, ls=DASHED, label="theory, 1st order"),
    )
    return figure


@styled
def tasks_figure(
    ratios: Mapping[str, Sequence[tuple[int, float]]], real: Sequence[tuple[int, float, float]], evaluated: int
) -> Figure:
    """Excess of the single head over that of one head per task against I; `ratios` by "order, L = …"."""
    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = figure.subplots()
    lengths = sorted({int(name.rpartition(" ")[2]) for name in ratios})
    for name, line in ratios.items():
        length = int(name.rpartition(" ")[2])
        colour = (ORANGE, PURPLE, BLUE)[lengths.index(length)]
        style = DASHED if name.startswith("1st") else "-"
        axes.plot(*zip(*line), color=colour, lw=1.5, ls=style, label=name.replace(str(length), f"{length:,}"))
    n_tasks, value, error = np.array(real).T
    axes.errorbar(n_tasks, value, 2 * error, ls="", marker="o", mfc="white", ms=7, color=PURPLE,
                  label=f"real attention in the leading states,\nL = {evaluated:,}, ± 2 s.e.")  # fmt: skip
    axes.set(xlabel="tasks I", ylabel="single head / one head per task", xticks=n_tasks)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("One head for all tasks costs up to a factor I")
    return figure


@styled
def heads_figure(points: Sequence[Point], each_for_itself: Sequence[Point]) -> Figure:
    """Excess loss against the number of heads; `each_for_itself` is theory's value for every H."""
    figure = Figure(figsize=(7.8, 4.9), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.n_heads for p in each_for_itself], [p.excess for p in each_for_itself], color=BLUE, lw=1.5)
    together = [point for point in points if (point.state, point.source) == ("best multi-head", "theory")]
    together = [each_for_itself[0], *together]
    axes.plot([p.n_heads for p in together], [p.excess for p in together], color=GREEN, lw=1.5)
    for state, colour in (("each for itself", BLUE), ("best multi-head", GREEN)):
        marks(axes, [point for point in points if point.state == state], "n_heads", colour)
    bayes = next(point.excess for point in points if point.state == "Bayes")
    axes.axhline(bayes, color=FAINT, lw=1, ls=DASHED)
    axes.annotate("Bayes risk", (1, bayes), (0, 3), textcoords="offset points", color="#5A5A5A")
    for line, text, colour, above in (
        (each_for_itself, "each for itself (balanced flow)", BLUE, 20),
        (together, "together, signs free (infimum, combined flow)", GREEN, -20),
    ):
        axes.annotate(text, (line[-1].n_heads, line[-1].excess), (6, above), textcoords="offset points", ha="right",
                      va="center", color=colour)  # fmt: skip
    heads = [point.n_heads for point in each_for_itself]
    axes.set(yscale="log", xlabel="heads H", ylabel="loss above the noise floor", xticks=heads)
    axes.yaxis.set_major_formatter(plainly)
    axes.set_title(f"What each head buys: {each_for_itself[0].n_tasks} tasks, L = {each_for_itself[0].context_length}")
    source_legend(figure, points, Line2D([], [], color=INK, label="theory"))
    return figure
