"""The figures of the escape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mhicl_fast import spectral
from mhicl_fast.plots.style import BLUE, DIVERGING, FAINT, GREEN, INK, ORANGE, PURPLE, styled

if TYPE_CHECKING:
    from escape import Outcome
    from training import Training

DASHED = (0, (4, 3))


@styled
def loss_figure(
    levels: spectral.Theory, outcomes: Sequence[Outcome], others: Mapping[str, spectral.Trajectory]
) -> Figure:
    """Loss against flow time from one start under the three flows."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, level in (("one head per task", levels.one_head_per_task), ("best multi-head", levels.best_multi_head)):
        axes.axhline(level.loss, color=FAINT, lw=1, ls=(0, (5, 3)))
        axes.annotate(f"{name} {level.loss:.4f}", (1.01, level.loss), xycoords=("axes fraction", "data"), va="center",
                      fontsize=9, color="#5A5A5A", annotation_clip=False)  # fmt: skip
    for colour, outcome in zip(shades(len(outcomes)), outcomes):
        label = f"imbalance {outcome.imbalance:.0e}"
        axes.plot(outcome.trajectory.t, outcome.trajectory.loss, color=colour, lw=1.6, label=label)
    for (name, trajectory), colour in zip(others.items(), (INK, ORANGE)):
        axes.plot(trajectory.t, trajectory.loss, color=colour, lw=2, label=name)
    axes.set_xlim(0, 1.25 * max(outcome.escape_time for outcome in outcomes))
    axes.set_xlabel("flow time")
    log_loss_axis(axes)
    axes.legend(ncols=2, loc="upper right")
    axes.set_title("Every imbalance ends the plateau, each factor of 100 the same time later")
    return figure


@styled
def rate_figure(outcomes: Sequence[Outcome], rate: float, wait: float, shown: Outcome, head: int, task: int) -> Figure:
    """Left: the growing and the shrinking direction of one head and task; right: escape times over the imbalance."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    t, factors = shown.trajectory.t, shown.trajectory.factors
    v_o, v_v = factors.v_o[:, head, task], factors.v_v[:, head, task]
    grown, shrunk = np.abs(v_o - v_v) / np.sqrt(2), np.abs(v_o + v_v) / np.sqrt(2)
    left.plot(t, grown, color=BLUE, lw=1.8, label="|v_O − v_V| / √2")
    left.plot(t, shrunk, color=ORANGE, lw=1.8, label="|v_O + v_V| / √2")
    span = np.array([0.15, 0.85]) * shown.escape_time
    middle = span.mean()
    for curve, sign in ((grown, 1), (shrunk, -1)):
        at = np.exp(np.interp(middle, t, np.log(curve)))
        left.plot(span, at * np.exp(sign * rate * (span - middle)), color=INK, lw=1, ls=DASHED, zorder=5)
    left.plot([], [], color=INK, lw=1, ls=DASHED, label=f"slope ± {rate:.4f} (theory)")
    left.set(xlim=(0, 1.25 * shown.escape_time), yscale="log", xlabel="flow time", ylabel="head off its task")
    left.set_ylim(top=3e3 * grown.max())
    left.legend(loc="upper left", ncols=2)
    left.set_title(f"Imbalance {shown.imbalance:.0e}: head {head} on task {task}")

    depth = -np.log([outcome.imbalance for outcome in outcomes])
    times = np.array([outcome.escape_time for outcome in outcomes])
    right.plot(depth, times.mean() + (depth - depth.mean()) / rate, color=INK, lw=1, ls=DASHED,
               label=f"slope 1/{rate:.4f} = {1 / rate:.2f} (theory)")  # fmt: skip
    right.plot(depth, times, "o", color=BLUE, ms=7, label=f"integrated, slope {wait:.2f}")
    right.set(xlabel="ln(1 / imbalance)", ylabel="escape time", ylim=(0, None))
    right.legend(loc="upper left")
    right.set_title("The wait is the time to grow from the imbalance")
    return figure


@styled
def heads_figure(states: Mapping[str, np.ndarray]) -> Figure:
    """μ of heads (rows) on tasks (columns) for several states side by side."""
    figure = Figure(figsize=(3.3 * len(states) + 0.6, 3.6), layout="constrained")
    for axes, (name, mu) in zip(figure.subplots(1, len(states)), states.items()):
        largest = np.abs(mu).max()
        axes.imshow(mu, cmap=DIVERGING, vmin=-largest, vmax=largest, aspect="auto")
        for (head, task), value in np.ndenumerate(mu):
            dark = abs(value) > 0.6 * largest
            text = f"{round(value, 2) + 0.0:.2f}" if largest < 10 else f"{value:.1f}"
            axes.text(task, head, text, ha="center", va="center", color="white" if dark else INK)
        axes.set_xticks(range(mu.shape[1]), [f"task {i}" for i in range(mu.shape[1])])
        axes.set_yticks(range(mu.shape[0]), [f"head {h}" for h in range(mu.shape[0])])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(name, fontsize=10)
    figure.suptitle("μ of each head: after the escape the heads on a task sum to zero", fontsize=13)
    return figure


@styled
def training_figure(runs: Sequence[Training], ode: spectral.Trajectory) -> Figure:
    """Loss of the trained layers, and how far the most negative μ has come."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(ode.t, ode.loss, color=INK, lw=1.1, ls=DASHED, label="ODE, 1st order, imbalance 0.01", zorder=5)
    right.plot(ode.t, -ode.mu.min((1, 2)), color=INK, lw=1.1, ls=DASHED, zorder=5)
    for run, colour in zip(runs, (GREEN, BLUE, PURPLE)):
        left.plot(run.t, run.loss, color=colour, lw=1.6, label=run.name)
        right.plot(run.t, -run.lowest_mu, color=colour, lw=1.6)
    end = max(run.t[-1] for run in runs)
    left.set(xlim=(0, end), xlabel="flow time")
    log_loss_axis(left)
    left.legend(loc="upper right", fontsize=9)
    left.set_title(f"Real attention, {ode.task.context_length} examples")
    right.set(xlim=(0, end), ylim=(1e-4, 20), yscale="log", xlabel="flow time", ylabel="− smallest μ")
    right.set_title("Other heads turn negative, or never do")
    return figure


def shades(count: int) -> list[tuple[float, ...]]:
    """Colours of one family, from dark to light."""
    return [tuple(colormaps["viridis"](x)) for x in np.linspace(0.1, 0.85, count)]


def log_loss_axis(axes: Axes) -> None:
    axes.set(yscale="log", ylim=(0.42, 40), ylabel="loss")
    axes.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.yaxis.set_minor_locator(NullLocator())
