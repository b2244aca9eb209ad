"""How many context examples each head attends to, over flow time, with the prediction from its own ω."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from ..spectral import supports_overlap
from ..spectral._inputs import has_identity_covariance
from ..spectral.attention import effective_examples
from ..train.loaded import LoadedRun
from .style import (
    EMERGENCE,
    FAINT,
    INK,
    axes_at,
    head_colours,
    moment,
    plainly,
    put_title,
    results,
    round_numbers,
    set_time_axis,
    styled,
)

_WIDTH = 10.4
_PLACE = (0.9, 3.3, 6.9)  # left, height and width of the axes, in inches
_TOP, _BELOW, _LEGEND_ROW = 0.75, 0.75, 0.24
_COLUMNS = 8
NEARLY_DIAGONAL = 0.1  # a residual below this: the recorded values say nearly all of the weights
_LOG_EXAMPLES = 10  # the axis is logarithmic where some head comes down to this part of all examples


@styled
def examples_figure(run: LoadedRun) -> Figure:
    """Effective number of attended examples of every head, 1/Σ_l p_l² averaged over a few fixed prompts, against flow
    time; dashed the prediction from the head's own ω of the same instant, where the weights are nearly diagonal and the
    supports disjoint.

    Lines mark all L examples, and √L, below which attention condenses on a few examples and the prediction ends.
    Raises ValueError for a run that is not finished.
    """
    summary = results(run)
    n_heads = run.config.n_heads
    left, height, width = _PLACE
    bottom = _BELOW + _LEGEND_ROW * (1 + math.ceil(n_heads / _COLUMNS))
    figure = Figure(figsize=(_WIDTH, bottom + height + _TOP))
    axes = axes_at(figure, left, bottom, width, height)
    set_time_axis(axes, run)
    times, measured = run.metrics["flow_time"], run.metrics["effective_examples"]
    predicted = _predicted(run)
    for head, colour in enumerate(head_colours(n_heads)):
        marker = "." if len(times) < 3 else None
        axes.plot(times, measured[:, head], color=colour, lw=1.8, marker=marker, label=f"head {head}", zorder=3)
        if predicted is not None:
            axes.plot(times, predicted[:, head], color=colour, lw=1.3, ls=(0, (3, 2)), alpha=0.8, zorder=2)
    _mark_levels(axes, run.config.context_length, float(measured.min()))
    ends = [moment(summary["phases"][f"{phase}_end"]) for phase in ("warmup", "emergence")]
    if ends[0] is not None and ends[1] is not None:
        axes.axvspan(ends[0], ends[1], color=EMERGENCE, lw=0, zorder=0)
    axes.set_xlabel("flow time")
    axes.set_ylabel("effective examples")
    _draw_legend(figure, n_heads, predicted is not None)
    put_title(figure, run, _title(run, measured[-1]))
    return figure


def _predicted(run: LoadedRun) -> np.ndarray | None:
    """The predictions along the run, (T, H), not a number where the weights are far from diagonal; None where the
    recorded means over each task's covariates do not give them."""
    task = run.config.task()
    if supports_overlap(task) or not has_identity_covariance(task):
        return None
    predicted = effective_examples(task, run.metrics["omega"]).examples
    return np.where(run.metrics["residual"][:, None] < NEARLY_DIAGONAL, predicted, np.nan)


def _mark_levels(axes: Axes, length: int, least: float) -> None:
    """The vertical scale, and lines at all examples and at their square root."""
    low = 0.0
    if length > _LOG_EXAMPLES * least:
        low = 0.8 * least
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(round_numbers(low, length, 8)))
        axes.yaxis.set_major_formatter(plainly)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, 1.08 * length)
    levels: list[tuple[float, str]] = [(length, f"all {length} examples")]
    if low < math.sqrt(length):
        levels.append((math.sqrt(length), f"√L = {math.sqrt(length):.3g}"))
    for level, label in levels:
        axes.axhline(level, color=FAINT, lw=1, ls=":", zorder=1)
        axes.annotate(
            label,
            (1.0, level),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color="#5A5A5A",
            annotation_clip=False,
        )


def _title(run: LoadedRun, final: np.ndarray) -> str:
    heads = "the head attends" if len(final) == 1 else "heads attend"
    low, high = final.min(), final.max()
    between = f"about {high:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
    return f"In the end {heads} to {between} of {run.config.context_length} examples"


def _draw_legend(figure: Figure, n_heads: int, predicted: bool) -> None:
    heads = [
        Line2D([], [], color=colour, lw=2.5, label=f"head {head}") for head, colour in enumerate(head_colours(n_heads))
    ]
    lines = [Line2D([], [], color=INK, lw=1.8, label="measured: mean of 1/Σp² over prompts")]
    if predicted:
        label = "predicted from ω"
        lines.append(Line2D([], [], color=INK, lw=1.3, ls=(0, (3, 2)), label=label))
    height = figure.get_figheight()
    figure.legend(handles=heads, loc="lower center", ncols=_COLUMNS, bbox_to_anchor=(0.5, 0.3 / height))
    figure.legend(handles=lines, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 0.05 / height))
