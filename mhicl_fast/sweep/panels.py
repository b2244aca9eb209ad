"""What is drawn over an axis of a sweep: the loss with theory's values, the excess over L, or the time of emergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from ..plots.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, plainly, round_numbers
from ..train.config import RunConfig
from ..train.summary import prediction
from .dimensions import Group, exponent

_LOG_LOSS = 4  # the loss is drawn logarithmically where it ranges over this factor
_CURVE = 16  # points of a predicted curve


@dataclass(frozen=True, eq=False)
class Line:
    """Groups of runs over an axis: their places on it, and the configurations of their runs. `colour` None: no other
    line is to be told from it."""

    colour: Any
    at: list[float]
    groups: list[Group]
    configs: list[list[RunConfig]]


class Mark(NamedTuple):
    """How something is drawn, and what it is called."""

    label: str
    colour: str
    style: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Kind:
    """What a figure shows: `draw` puts lines into a panel, `marks` are those of theory in all panels, `title` says what
    is seen in them, `scale` sets their common vertical axis. `evaluated`: whether a single run has an error; `joined`:
    whether lines join the points.
    """

    quantity: str
    draw: Callable[[Axes, Sequence[Line]], None]
    marks: Callable[[Sequence[Sequence[Line]]], list[Mark]]
    title: Callable[[Sequence[Line], str], str]
    logarithmic: bool = False
    evaluated: bool = True
    joined: bool = True

    def scale(self, panels: Sequence[Axes]) -> None:
        """The same vertical axis for all panels, logarithmic where asked for or where the range is large."""
        low, high = (f(axes.dataLim.intervaly[k] for axes in panels) for k, f in ((0, min), (1, max)))
        positive = min(axes.dataLim.minposy for axes in panels)
        if not math.isfinite(low):
            return  # there is nothing to be seen, which the title says
        if low > 0 and (self.logarithmic or high / low > _LOG_LOSS):
            margin = (high / positive) ** 0.06
            for axes in panels:
                axes.set_yscale("log")
                axes.set_ylim(positive / margin, high * margin)
                axes.yaxis.set_major_locator(FixedLocator(round_numbers(positive / margin, high * margin, 9)))
                axes.yaxis.set_major_formatter(plainly)
                axes.yaxis.set_minor_locator(NullLocator())
            return
        margin = 0.06 * (high - low or abs(high) or 1.0)
        for axes in panels:
            axes.set_ylim(low - margin, high + margin)


LIMIT = Mark("balanced flow's limit, leading order", BLUE, {"ls": (0, (5, 3)), "lw": 1.2})
FIRST_ORDER = Mark("balanced flow's limit, 1st order", ORANGE, {"ls": "", "marker": "_", "ms": 14, "mew": 1.6})
SINGLE = Mark("single head, leading order", PURPLE, {"ls": (0, (1, 2)), "lw": 1.4})
MULTI = Mark("best multi-head (infimum)", GREEN, {"ls": (0, (6, 2, 1, 2)), "lw": 1.2})
PREDICTED = Mark("predicted from the start", BLUE, {"ls": (0, (5, 3)), "lw": 1.2})
RECIPROCAL = Mark("slope −1", FAINT, {"ls": "-", "lw": 0.6, "alpha": 0.6, "zorder": 0})
_THEORY = {"limit": LIMIT, "limit_first_order": FIRST_ORDER, "single_head": SINGLE, "best_multi_head": MULTI}


def kind_of(key: str) -> Kind:
    """What is shown over an axis."""
    return {"n_heads": _HEADS, "context_length": _LENGTHS, "start_size": _EMERGENCE}.get(key, _LOSSES)


def _draw_measured(axes: Axes, line: Line, column: str, *, joined: bool = True) -> None:
    """The mean over the seeds with its standard error, and each seed where there are several."""
    colour = INK if line.colour is None else line.colour
    known = [(at, group, mean) for at, group in zip(line.at, line.groups) if (mean := group.mean(column)) is not None]
    for at, group, _ in known:
        if len(group.rows) > 1:
            numbers = group.known(column)
            axes.plot([at] * len(numbers), numbers, ls="", marker=".", ms=5, color=colour, alpha=0.5, zorder=3)
    axes.errorbar(
        [at for at, _, _ in known],
        [mean for _, _, (mean, _) in known],
        [0.0 if math.isnan(error) else error for _, _, (_, error) in known],
        color=colour,
        ls="-" if joined else "",
        lw=1.2,
        marker="o",
        ms=5,
        capsize=3,
        zorder=4,
    )


def _draw_mark(axes: Axes, mark: Mark, colour: Any, at: Sequence[float], values: Sequence[float]) -> None:
    style: dict[str, Any] = {"marker": "D", "ms": 4, "mfc": "none"} if len(at) == 1 else {}  # no line to be seen
    axes.plot(at, values, **style | mark.style, color=mark.colour if colour is None else colour, zorder=2)


def _theory(line: Line, name: str, column: str) -> tuple[list[float], list[float]]:
    """Where theory has a value for a line, and the value: `column` the loss, or the excess above the target's noise."""
    at, values = [], []
    for place, group in zip(line.at, line.groups):
        row = group.rows[0]
        if row[name] is not None:
            at.append(place)
            values.append(row[name] - (row["eval_loss"] - row[column]))
    return at, values


def _told(line: Line, name: str) -> bool:
    """Whether a state of theory is worth drawing: known, and another than the limit."""
    rows = [group.rows[0] for group in line.groups]
    known = [row for row in rows if row[name] is not None]
    return bool(known) and (name != "single_head" or any(row["single_head"] != row["limit"] for row in known))


def _draw_theory(axes: Axes, drawn: Sequence[Line], column: str) -> None:
    for name, mark in _THEORY.items():
        for colour, at, values in _theory_curves(drawn, name, column):
            _draw_mark(axes, mark, colour, at, values)


def _theory_curves(drawn: Sequence[Line], name: str, column: str) -> list[tuple[Any, list[float], list[float]]]:
    """A state's values in the lines' colours, but once in that of ink where they are the same for all lines."""
    curves = [(line.colour, *_theory(line, name, column)) for line in drawn if _told(line, name)]
    if len(curves) > 1 and all(curve[1:] == curves[0][1:] for curve in curves):
        return [(INK, *curves[0][1:])]
    return curves


def _theory_marks(panels: Sequence[Sequence[Line]]) -> list[Mark]:
    lines = [line for drawn in panels for line in drawn]
    return _in_ink([mark for name, mark in _THEORY.items() if any(_told(line, name) for line in lines)], lines)


def _in_ink(marks: list[Mark], lines: Sequence[Line]) -> list[Mark]:
    """The marks as the legend has them: without a colour where they take those of the lines."""
    return [mark._replace(colour=INK) for mark in marks] if any(line.colour is not None for line in lines) else marks


def _draw_losses(axes: Axes, drawn: Sequence[Line]) -> None:
    _draw_theory(axes, drawn, "eval_loss")
    for line in drawn:
        _draw_measured(axes, line, "eval_loss")


def _heads_title(drawn: Sequence[Line], name: str) -> str:
    """What a single head costs, where one head and a head for each task were tried and have learnt their tasks."""
    ratios = []
    for line in drawn:
        n_tasks = line.configs[0][0].n_tasks
        means = {
            at: mean[0] for at, group in zip(line.at, line.groups) if (mean := group.mean("eval_loss")) is not None
        }
        enough = [at for at in means if at >= n_tasks > 1]
        learnt = all(group.mean("emergence_end") is not None for group in line.groups)
        if 1 in means and enough and learnt:
            ratios.append(means[1] / means[min(enough)])
    if not ratios:
        return _losses_title(drawn, name)
    return f"A single head has {_span(ratios)} times the loss of one head per task"


def _losses_title(drawn: Sequence[Line], name: str) -> str:
    if len(drawn) > 1:
        return f"Loss against {name}"
    means = [(f"{mean[0]:.3g}") for group in drawn[0].groups if (mean := group.mean("eval_loss")) is not None]
    return f"Loss against {name}: from {means[0]} to {means[-1]}"


def _draw_lengths(axes: Axes, drawn: Sequence[Line]) -> None:
    _draw_theory(axes, drawn, "excess")
    for line in drawn:
        _draw_measured(axes, line, "excess")
    lengths = np.geomspace(*axes.get_xlim())
    for height in 4.0 ** np.arange(-10, 30):  # guides all over the panel, of which its limits take no notice
        axes.add_artist(Line2D(lengths, height / lengths, color=RECIPROCAL.colour, **RECIPROCAL.style))


def _lengths_title(drawn: Sequence[Line], name: str) -> str:
    fits = [exponent(line.at, [float(np.mean(group.known("excess"))) for group in line.groups]) for line in drawn]
    powers = [power for power in fits if power is not None]
    if not powers:
        return f"Excess loss against {name}"
    return f"The excess loss goes like L to the power {_span(powers)}"


def _draw_emergence(axes: Axes, drawn: Sequence[Line]) -> None:
    for line in drawn:
        _draw_mark(axes, PREDICTED, line.colour, *_predicted_curve(line))
        _draw_measured(axes, line, "half_learnt", joined=False)


def _predicted_marks(panels: Sequence[Sequence[Line]]) -> list[Mark]:
    lines = [line for drawn in panels for line in drawn]
    rows = [row for line in lines for group in line.groups for row in group.rows]
    return _in_ink([PREDICTED] if any(row["predicted_time"] is not None for row in rows) else [], lines)


def _predicted_curve(line: Line) -> tuple[list[float], list[float]]:
    """The predicted time of the last task over the size of the start, the mean over the seeds of the line's runs; only
    at the runs' own sizes where other keys vary with the size."""
    if len({replace(config, start_size=1.0, seed=0) for configs in line.configs for config in configs}) > 1:
        known = [(at, mean[0]) for at, g in zip(line.at, line.groups) if (mean := g.mean("predicted_time")) is not None]
        return [at for at, _ in known], [mean for _, mean in known]
    seeds = {config.seed: config for configs in line.configs for config in configs}
    sizes = np.geomspace(line.at[0], line.at[-1], _CURVE if len(line.at) > 1 else 1).tolist()
    curve = []
    for size in sizes:
        times = [_predicted_time(replace(config, start_size=size)) for config in seeds.values()]
        curve.append(float(np.mean([time for time in times if time is not None] or [math.nan])))
    return sizes, curve


def _predicted_time(config: RunConfig) -> float | None:
    times = prediction(config)["predicted_times"]
    return None if times is None or None in times else max(times)


def _emergence_title(drawn: Sequence[Line], name: str) -> str:
    rows = [row for line in drawn for group in line.groups for row in group.rows]
    ratios = [
        row["half_learnt"] / row["predicted_time"] for row in rows if row["half_learnt"] and row["predicted_time"]
    ]
    if all(row["half_learnt"] is None for row in rows):
        return "No run has learnt half of every task"
    if not ratios:
        return f"Emergence against {name}"
    return f"Emergence comes at {_span(ratios)} times the predicted time"


def _span(numbers: Sequence[float]) -> str:
    """One number for equal ones, least to most in size otherwise."""
    least, most = (f"{value:.2f}".replace("-", "−") for value in (min(numbers, key=abs), max(numbers, key=abs)))
    return least if least == most else f"{least} to {most}"


_LOSSES = Kind("evaluated loss", _draw_losses, _theory_marks, _losses_title)
_HEADS = replace(_LOSSES, title=_heads_title)
_LENGTHS = Kind(
    "excess loss", _draw_lengths, lambda panels: [*_theory_marks(panels), RECIPROCAL], _lengths_title, logarithmic=True
)
_EMERGENCE = Kind(
    "flow time, last task half learnt",
    _draw_emergence,
    _predicted_marks,
    _emergence_title,
    logarithmic=True,
    evaluated=False,
    joined=False,
)
