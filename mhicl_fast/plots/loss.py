"""Loss against flow time: the run, the ODEs, the phases, and theory's losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from ..train.loaded import LoadedRun
from .labels import spread
from .style import (
    FAINT,
    GREEN,
    INK,
    ORDER_COLOURS,
    ORDER_NAMES,
    PHASES,
    PURPLE,
    ROUND,
    axes_at,
    moment,
    plainly,
    put_title,
    results,
    round_numbers,
    set_time_axis,
    styled,
)

_WIDTH, _HEIGHT = 10.4, 5.9
_PLACE = (0.8, 1.0, 6.5, 3.75)  # left, bottom, width, height of the axes, in inches
_LABEL = 10  # points
_OFF_SCALE = 4  # a Bayes risk this factor below everything else is named at the edge rather than drawn
_LOG_LOSS = 4  # the loss is drawn logarithmically where it falls by this factor
_STEP_SPACING, _NARROWEST_PHASE = 0.07, 0.01  # of the axes' width


class _Line(NamedTuple):
    """A theory line: its label, loss and colour."""

    label: str
    loss: float
    colour: str


@styled
def loss_figure(run: LoadedRun) -> Figure:
    """Loss against flow time, with the ODEs, the three phases, theory's losses, and the evaluated loss ± 2 s.e.

    Raises ValueError for a run that is not finished.
    """
    summary = results(run)
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = axes_at(figure, *_PLACE)
    times, loss = run.metrics["flow_time"], run.metrics["loss"]
    set_time_axis(axes, run)
    axes.plot(times, loss, color=INK, lw=1.8, marker="." if len(times) < 3 else None, label="run", zorder=3)
    for order, ode in run.trajectories.items():
        axes.plot(ode.t, ode.loss, color=ORDER_COLOURS[order], lw=1.1, label=f"ODE, {ORDER_NAMES[order]}", zorder=4)
    axes.errorbar(
        times[-1],
        summary["eval_loss"],
        2 * summary["eval_loss_se"],
        fmt="D",
        color=INK,
        mfc="white",
        ms=6,
        capsize=4,
        clip_on=False,
        zorder=5,
        label=f"evaluated, ± 2 s.e.: {summary['eval_loss']:.4g} ± {2 * summary['eval_loss_se']:.2g}",
    )
    lines = _theory_lines(summary["theory"], run.config.n_tasks)
    _set_loss_axis(axes, run, lines)
    _draw_theory(axes, lines)
    phases = _draw_phases(axes, summary["phases"])
    _mark_steps(axes, run.metrics["step"], times)
    axes.set_xlabel("flow time")
    axes.set_ylabel("loss")
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=4, bbox_to_anchor=(0.5, 0.0))
    put_title(figure, run, _title(run, summary, phases))
    return figure


def _title(run: LoadedRun, summary: Mapping[str, Any], phases: int) -> str:
    change = f"from {run.metrics['loss'][0]:.3g} to {summary['eval_loss']:.3g}"
    if summary["phases"]["emergence_end"] is None:
        return f"No task is learnt: the loss goes {change}"
    return f"The loss falls {change}" + (" in three phases" if phases == len(PHASES) else "")


def _theory_lines(theory: Mapping[str, Any], n_tasks: int) -> list[_Line]:
    """The losses that theory knows for the run; of one task, a single head is the state with one head per task."""
    states = {
        "one_head_per_task_first_order": ("one head per task, 1st order", ORDER_COLOURS["first"]),
        "one_head_per_task": ("one head per task, leading", ORDER_COLOURS["leading"]),
        "best_shared_heads": ("best shared heads", ORDER_COLOURS["leading"]),
        "single_head": ("single head", PURPLE),
        "best_multi_head": ("best multi-head (infimum)", GREEN),
        "bayes": ("Bayes risk", FAINT),
    }
    return [
        _Line(f"{_bounded(name, label, theory[name])}  {theory[name]['loss']:.3g}", theory[name]["loss"], colour)
        for name, (label, colour) in states.items()
        if theory.get(name) is not None and not (n_tasks == 1 and name == "single_head")
    ]


def _bounded(name: str, label: str, state: Mapping[str, Any]) -> str:
    """The label of a state, which says where the infimum is bounded only."""
    return "best multi-head found" if name == "best_multi_head" and state["source"] == "numerical" else label


def _set_loss_axis(axes: Axes, run: LoadedRun, lines: Sequence[_Line]) -> None:
    """Scale and limits: all curves and theory lines, but the Bayes risk only if it is not far below the rest; with room
    for the phases' names at the top."""
    summary = results(run)
    curves = [run.metrics["loss"], *(ode.loss for ode in run.trajectories.values())]
    curves.append(summary["eval_loss"] + summary["eval_loss_se"] * np.array([-2, 2]))
    curves.append(np.array([line.loss for line in lines if line.colour != FAINT]))
    shown = np.concatenate(curves)
    low, high = shown.min(), shown.max()
    low = next((line.loss for line in lines if line.colour == FAINT and low / _OFF_SCALE < line.loss < low), low)
    if low > 0 and high / low > _LOG_LOSS:
        axes.set_yscale("log")
        span = high / low
        axes.set_ylim(low * span**-0.06, high * span**0.14)
        axes.yaxis.set_major_locator(FixedLocator(round_numbers(low * span**-0.05, high * span**0.1, 10)))
        axes.yaxis.set_major_formatter(plainly)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        span = high - low or abs(high) or 1.0
        axes.set_ylim(low - 0.06 * span, high + 0.14 * span)


def _draw_theory(axes: Axes, lines: Sequence[_Line]) -> None:
    """Horizontal lines, each with its label beside the axes; labels move apart where lines are close."""
    bottom, top = axes.get_ylim()
    transform = axes.transScale.transform
    low, high = (float(transform((1, y))[1]) for y in (bottom, top))
    heights = [(float(transform((1, max(line.loss, bottom)))[1]) - low) / (high - low) for line in lines]  # of the axes
    size = 1.45 * _LABEL / 72 / _PLACE[3]
    for line, height, place in zip(lines, heights, spread(heights, [size] * len(lines), 0.0, 1.0)):
        visible = line.loss > bottom
        if visible:
            axes.axhline(line.loss, color=line.colour, lw=1, ls=(0, (5, 3)), zorder=2)
        axes.annotate(
            line.label if visible else f"{line.label}  ↓ below",
            (1.0, height),
            (1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=_LABEL,
            color=line.colour if line.colour != FAINT else "#5A5A5A",
            arrowprops={"arrowstyle": "-", "color": line.colour, "lw": 0.8, "shrinkA": 1, "shrinkB": 0},
            annotation_clip=False,
        )


def _draw_phases(axes: Axes, phases: Mapping[str, Any]) -> int:
    """Bands of the phases with their names, moved apart where a band is narrow; none where not reached, or too short to
    be seen. Returns how many there are."""
    ends = [moment(phases["warmup_end"]), moment(phases["emergence_end"])]
    if ends[0] is None or ends[1] is None:
        return 0
    left, right = axes.get_xlim()
    edges = [left, ends[0], ends[1], right]
    renderer = FigureCanvasAgg(axes.figure.get_figure(root=True)).get_renderer()
    texts, centres, sizes = [], [], []
    to_axes = axes.transAxes.inverted()
    for (name, band, colour), start, end in zip(PHASES, edges[:-1], edges[1:]):
        places = to_axes.transform(axes.transData.transform([(start, 1), (end, 1)]))[:, 0]
        if places[1] - places[0] < _NARROWEST_PHASE:
            continue
        axes.axvspan(start, end, color=band, lw=0, zorder=0)
        texts.append(axes.text(0, 0.985, name, color=colour, ha="center", va="top", transform=axes.transAxes))
        centres.append(places.mean())
        sizes.append(texts[-1].get_window_extent(renderer).width / axes.bbox.width + 0.015)
    for text, place in zip(texts, spread(centres, sizes, 0.0, 1.0)):
        text.set_x(place)
    return len(texts)


def _mark_steps(axes: Axes, steps: np.ndarray, times: np.ndarray) -> None:
    """Optimiser steps along the top, where flow time reaches them; those too close to the one before are left out."""
    if axes.get_xscale() == "linear":
        candidates = list(MaxNLocator(8, steps=ROUND, integer=True).tick_values(0, int(steps[-1])))
    else:
        candidates = [0.0, *round_numbers(1, float(steps[-1]), 8)]
    to_axes = axes.transData + axes.transAxes.inverted()
    marked: dict[float, str] = {}
    for step in candidates:
        place = float(to_axes.transform((np.interp(step, steps, times), 1))[0])
        if step <= steps[-1] and all(place - other > _STEP_SPACING for other in marked):
            marked[place] = f"{int(step):,}".replace(",", "\u202f")
    upper = axes.twiny()
    upper.set_xlim(0, 1)
    upper.set_xticks(list(marked), list(marked.values()))
    upper.tick_params(colors=FAINT)
    upper.set_xlabel("step", color=FAINT)
