"""Semi-singular values of every head over flow time, with the ODE's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..train.loaded import LoadedRun
from .allocation import headline
from .style import (
    EMERGENCE,
    FAINT,
    INK,
    ORDER_NAMES,
    axes_at,
    compared_ode,
    head_colours,
    moment,
    put_title,
    results,
    set_time_axis,
    styled,
)

MOST_TASKS = 8  # columns that can still be read
_PANEL_HEIGHT, _GAP, _LEFT, _RIGHT, _TOP = 1.9, 0.3, 0.9, 0.25, 1.05  # inches
_LEGEND_ENTRY, _LEGEND_ROW = 1.15, 0.24


@styled
def values_figure(run: LoadedRun) -> Figure:
    """μ (upper row) and ω (lower row) of every head for each task (column) over flow time, the ODE dashed.

    Bands show each task's emergence; faint lines theory's limit, once a task is learnt. At most MOST_TASKS tasks are
    drawn; the title says so. Raises ValueError for a run that is not finished.
    """
    summary = results(run)
    n_tasks = min(run.config.n_tasks, MOST_TASKS)
    panel = max(2.2, (5.6 if n_tasks == 1 else 8.4) / n_tasks)
    width = _LEFT + n_tasks * panel + (n_tasks - 1) * _GAP + _RIGHT
    full_width = max(width, 7.6)
    columns = int(full_width / _LEGEND_ENTRY)
    below = 0.9 + _LEGEND_ROW * math.ceil(run.config.n_heads / columns)
    figure = Figure(figsize=(full_width, below + 2 * _PANEL_HEIGHT + _GAP + _TOP))
    left = _LEFT + (full_width - width) / 2
    limit = None if summary["phases"]["emergence_end"] is None else _limit(run, summary)
    for row, name in enumerate(("mu", "omega")):
        first: Axes | None = None
        for task in range(n_tasks):
            bottom = below + (1 - row) * (_PANEL_HEIGHT + _GAP)
            axes = axes_at(figure, left + task * (panel + _GAP), bottom, panel, _PANEL_HEIGHT)
            if first is None:
                first = axes
                axes.set_ylabel({"mu": "μ", "omega": "ω"}[name], fontsize=15, rotation=0)
                axes.yaxis.set_label_coords(-0.65 / panel, 0.5)
                axes.ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
            else:
                axes.sharey(first)
                axes.tick_params(labelleft=False)
            _draw_panel(axes, run, summary, name, task)
            if limit is not None:
                axes.axhline(limit[1][name][task], color=FAINT, lw=1, ls=":", zorder=1)
            if row == 0:
                axes.set_title(f"task {task}")
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel("flow time")
    _draw_legend(figure, run, None if limit is None else limit[0], columns)
    shown = "" if n_tasks == run.config.n_tasks else f" (first {n_tasks} of {run.config.n_tasks} tasks)"
    put_title(figure, run, headline(run) + shown)
    return figure


def _limit(run: LoadedRun, summary: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Theory's final values with a name, at the order of the ODE drawn where known: one head per task, or one head."""
    theory = summary["theory"]
    if run.config.n_heads == 1 and run.config.n_tasks > 1:
        return None if theory["single_head"] is None else ("theory: single head", theory["single_head"])
    ode = compared_ode(run)
    first, leading = theory["one_head_per_task_first_order"], theory["one_head_per_task"]
    if first is not None and (ode is None or ode[0] == "first"):
        return "theory: one head per task, 1st order", first
    return None if leading is None else ("theory: one head per task, leading order", leading)


def _draw_panel(axes: Axes, run: LoadedRun, summary: Mapping[str, Any], name: str, task: int) -> None:
    set_time_axis(axes, run, most_ticks=5)
    times, values, ode = run.metrics["flow_time"], run.metrics[name], compared_ode(run)
    start, end = (moment(summary["phases"][f"task_{phase}_end"][task]) for phase in ("warmup", "emergence"))
    if start is not None and end is not None:
        axes.axvspan(start, end, color=EMERGENCE, lw=0, zorder=0)
    for head, colour in enumerate(head_colours(run.config.n_heads)):
        marker = "." if len(times) < 3 else None
        axes.plot(times, values[:, head, task], color=colour, lw=1.8, marker=marker, label=f"head {head}", zorder=2)
        if ode is not None:
            curve = getattr(ode[1], name)[:, head, task]
            axes.plot(ode[1].t, curve, color=colour, lw=1.3, ls=(0, (3, 2)), alpha=0.75, label=f"ODE {head}", zorder=3)


def _draw_legend(figure: Figure, run: LoadedRun, limit: str | None, columns: int) -> None:
    heads = head_colours(run.config.n_heads)
    handles = [Line2D([], [], color=colour, lw=2.5, label=f"head {head}") for head, colour in enumerate(heads)]
    ode = compared_ode(run)
    lines = [Line2D([], [], color=INK, lw=1.8, label="run")]
    if ode is not None:
        lines.append(Line2D([], [], color=INK, lw=1.3, ls=(0, (3, 2)), label=f"ODE, {ORDER_NAMES[ode[0]]}"))
    if limit is not None:
        lines.append(Line2D([], [], color=FAINT, lw=1, ls=":", label=limit))
    height = figure.get_figheight()
    figure.legend(handles=handles, loc="lower center", ncols=columns, bbox_to_anchor=(0.5, 0.3 / height))
    figure.legend(handles=lines, loc="lower center", ncols=len(lines), bbox_to_anchor=(0.5, 0.05 / height))
