"""The figure of the multi-task runs."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mhicl_fast.plots.style import BLUE, GREEN, INK, ORANGE, PURPLE, styled
from mhicl_fast.train import LoadedRun

COLOURS = (PURPLE, BLUE)
ODES = {"leading": (ORANGE, "leading-order ODE"), "first": (GREEN, "first-order ODE")}


@styled
def comparison_figure(runs: Mapping[str, LoadedRun]) -> Figure:
    """Loss of each run against flow time, as recorded from step to step, with the ODEs from the same start: the whole
    run, and its emergence."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    whole, emergence = figure.subplots(1, 2, sharey=True)
    for axes in (whole, emergence):
        draw_losses(axes, runs)
    last = list(runs.values())[-1]
    whole.set(xlabel="flow time", ylabel="loss", xlim=(0, last.metrics["flow_time"][-1]))
    assert last.summary is not None
    first, end = (last.summary["phases"][name]["flow_time"] for name in ("warmup_end", "emergence_end"))
    emergence.set(xlabel="flow time", xlim=(first - 2 * (end - first), end + 2 * (end - first)), title="emergence")
    whole.legend(loc="upper right", frameon=False, labelcolor=INK)
    return figure


def draw_losses(axes: Axes, runs: Mapping[str, LoadedRun]) -> None:
    for (name, run), colour in zip(runs.items(), COLOURS, strict=True):
        axes.plot(run.metrics["flow_time"], run.metrics["loss"], color=colour, lw=1, label=name)
    trajectories = list(runs.values())[-1].trajectories
    for order, (colour, label) in ODES.items():
        if order in trajectories:
            path = trajectories[order]
            axes.plot(path.t, path.loss, color=colour, lw=1.2, ls=(0, (4, 3)), label=label)
