"""What the figures have in common: settings, colours, titles, the axis of time, and the results they draw."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..train.loaded import LoadedRun
from ..train.odes import StoredTrajectory

P = ParamSpec("P")
R = TypeVar("R")

_SETTINGS: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
}
_TITLE, _SUBTITLE = 14, 10

# Colours that remain distinct for the colour-blind (Okabe and Ito); yellow is left out, too faint for lines.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#A6528A"
_HEADS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000", "#8C6D46")
INK, FAINT = "#222222", "#8A8A8A"
ORDER_COLOURS = {"first": BLUE, "leading": ORANGE}
ORDER_NAMES = {"first": "1st order", "leading": "leading order"}
EMERGENCE = "#FBE6CC"  # the band of the phase in which tasks are learnt
PHASES = (  # name, colour of the band and of the name
    ("warm-up", "#F0F0F0", "#6B6B6B"),
    ("emergence", EMERGENCE, "#9C5A00"),
    ("convergence", "#E1F0E8", "#1F6B4A"),
)
DIVERGING = "RdBu"  # white is zero, blue positive

ROUND = (1, 2, 2.5, 5, 10)  # first digits of the numbers at ticks
LOG_TIME = 15  # time is drawn logarithmically where the run lasts this many times as long as emergence takes


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run `draw` under the figures' settings, whatever the caller's are; these come back afterwards."""

    @functools.wraps(draw)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            return draw(*arguments, **options)

    return wrapped


def results(run: LoadedRun) -> Mapping[str, Any]:
    """The summary of a finished run; ValueError for one that is not."""
    if run.summary is None:
        raise ValueError(f"figures are of finished runs, and the run in {run.path} has no summary yet")
    return run.summary


def head_colours(n_heads: int) -> list[Any]:
    """A colour per head, the same in every figure."""
    if n_heads <= len(_HEADS):
        return list(_HEADS[:n_heads])
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, n_heads)))


def compared_ode(run: LoadedRun) -> tuple[str, StoredTrajectory] | None:
    """The order and solution of the ODE that the run is measured against, or the other order's, or None."""
    for order in (run.config.order, *run.trajectories):
        if order in run.trajectories:
            return order, run.trajectories[order]
    return None


def put_title(figure: Figure, run: LoadedRun, title: str) -> None:
    """A title that says what is seen, over a line that says of which run."""
    c = run.config
    subtitle = (
        f"{c.preset}, seed {c.seed}:  {c.dim_x} covariates, {c.n_tasks} task{'s' * (c.n_tasks > 1)}, "
        f"{c.context_length} examples, {c.n_heads} head{'s' * (c.n_heads > 1)}, {c.parameters}, {c.optimizer}"
    )
    put_heading(figure, title, subtitle)


def put_heading(figure: Figure, title: str, subtitle: str) -> None:
    """A title over a fainter line, at the top."""
    height = figure.get_figheight()
    figure.text(0.5, 1 - 0.13 / height, title, fontsize=_TITLE, ha="center", va="top", color=INK)
    figure.text(0.5, 1 - 0.42 / height, subtitle, fontsize=_SUBTITLE, ha="center", va="top", color=FAINT)


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))


def set_time_axis(axes: Axes, run: LoadedRun, *, most_ticks: int = 9) -> None:
    """Scale and limits of a horizontal axis of flow time: logarithmic (but linear up to the first record, so that the
    start is seen) where the run goes on long after emergence."""
    times = run.metrics["flow_time"]
    end = float(times[-1]) or 1.0
    emerged = moment(results(run)["phases"]["emergence_end"])
    if emerged is not None and end > LOG_TIME * emerged:
        axes.set_xscale("symlog", linthresh=times[1], linscale=0.4)
        axes.xaxis.set_major_locator(FixedLocator([0.0, *round_numbers(times[1], end, most_ticks - 1)]))
        axes.xaxis.set_major_formatter(plainly)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(most_ticks, steps=ROUND, prune="upper" if most_ticks < 9 else None))
    axes.set_xlim(0, end)


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, evenly in their logarithm: 1, 2, 5, 10, …, or only powers of ten, or of a
    hundred and so on, so that there are at most `most`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [[m * 10.0**k for k in decades for m in (1, 2, 5)]]
    choices += [[10.0**k for k in decades if k % stride == 0] for stride in range(1, len(decades) + 1)]
    inside = [[number for number in choice if low <= number <= high] for choice in choices]
    return next(choice for choice in inside if len(choice) <= most)


@FuncFormatter
def plainly(value: float, _: int) -> str:
    """A tick's number without powers of ten, as far as that is short."""
    return f"{value:g}"


def moment(entry: Mapping[str, Any] | None) -> float | None:
    """The flow time of a phase's end as the summary has it."""
    return None if entry is None else float(entry["flow_time"])
