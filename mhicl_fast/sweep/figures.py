"""Figures of a sweep: one for each axis, with lines and panels for the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ..plots import save_png
from ..plots.style import INK, axes_at, head_colours, plainly, put_heading, styled
from ..train.wording import count
from .dimensions import SEED, Dimension, Group, dimensions, groups, is_number, lines, ordered
from .panels import Kind, Line, kind_of
from .results import LoadedSweep

MOST_PANELS = 6
_WIDTHS = (6.6, 5.2, 4.2)  # of a panel, by the number of panels, in inches
_HEIGHT, _GAP = 3.7, 0.6
_LEFT, _RIGHT, _TOP, _PANEL_TITLE, _BOTTOM, _LEGEND_ROW = 0.9, 0.3, 0.8, 0.25, 0.75, 0.24
_MOST_COLUMNS = 4  # of the legend
_TICK_SPACING, _LETTERS = 0.55, 9  # inches; letters to an inch
_LOG_RATIO = 8  # an axis whose values range over this factor is logarithmic
NAMES = {
    "n_heads": ("heads H", "H"),
    "n_tasks": ("tasks I", "I"),
    "context_length": ("context length L", "L"),
    "start_size": ("size of the start", "start"),
    "noise_std": ("label noise σ", "σ"),
    "dim_x": ("covariates d", "d"),
    "n_prompts": ("prompts per step N", "N"),
    "learning_rate": ("step size", "step size"),
}
_LOGARITHMIC = ("context_length", "start_size")
_LINEAR = ("n_heads", "n_tasks", SEED)


def save_sweep_figures(sweep: LoadedSweep) -> list[Path]:
    """Draw the figure of each axis into the sweep's folder `figures` as `<key>.png` and return the files' paths.

    The seed is an axis only where nothing else varies. Draws nothing where no run has finished. Raises StorageError
    where a file cannot be written.
    """
    if not any(row["status"] == "finished" for row in sweep.rows):
        return []
    keys = [dimension.key for dimension in dimensions(sweep.configs)]
    axes = [key for key in keys if key != SEED] or keys
    return [save_png(sweep_figure(sweep, key), sweep.path / "figures" / f"{key}.png") for key in axes]


@styled
def sweep_figure(sweep: LoadedSweep, key: str) -> Figure:
    """The results over the axis `key`; seeds as points with their mean ± s.e., the other axes as colours and panels.

    Over context_length the excess loss with its power of L, over start_size the time of emergence with its prediction,
    over any other key the evaluated loss; with theory's values. Where there are more than MOST_PANELS panels the title
    says that the others are left out.

    Raises ValueError unless `key` is an axis of the sweep (one that stands for others that vary with it), or where no
    run has finished.
    """
    picture = _arrange(sweep, key)
    width = _WIDTHS[min(len(picture.panels), len(_WIDTHS)) - 1]
    full_width = _LEFT + len(picture.panels) * (width + _GAP) - _GAP + _RIGHT
    entries = _legend(picture)
    columns = _columns(entries, full_width)
    below = _BOTTOM + _LEGEND_ROW * math.ceil(len(entries) / columns)
    titles = _PANEL_TITLE if len(picture.panels) > 1 else 0
    figure = Figure(figsize=(full_width, below + _HEIGHT + titles + _TOP))
    for place, (common, drawn) in enumerate(picture.panels):
        axes = axes_at(figure, _LEFT + place * (width + _GAP), below, width, _HEIGHT)
        _set_axis(axes, picture, width)
        picture.kind.draw(axes, drawn)
        axes.set_title(", ".join(_named(*pair) for pair in common.items()))
        axes.set_xlabel(_axis_name(picture.x))
    figure.axes[0].set_ylabel(picture.kind.quantity)
    picture.kind.scale(figure.axes)
    figure.legend(handles=entries, loc="lower center", ncols=columns, bbox_to_anchor=(0.5, 0.0))
    some = f" (first {MOST_PANELS} of {MOST_PANELS + picture.left_out} panels)" if picture.left_out else ""
    put_heading(figure, picture.kind.title(picture.lines(), _axis_name(picture.x)) + some, _subtitle(sweep))
    return figure


@dataclass(frozen=True, eq=False)
class _Picture:
    """What goes where: `values` on the axis `x`, a colour for each value of the key `colour`, and panels with what the
    runs in each have in common."""

    kind: Kind
    x: Dimension
    values: list[Any]
    colour: str | None
    colours: Mapping[Any, Any]
    panels: list[tuple[dict[str, Any], list[Line]]]
    left_out: int

    def lines(self) -> list[Line]:
        return [line for _, drawn in self.panels for line in drawn]


def _arrange(sweep: LoadedSweep, key: str) -> _Picture:
    found = {dimension.key: dimension for dimension in dimensions(sweep.configs)}
    if key not in found:
        raise ValueError(f"key must be an axis of the sweep ({', '.join(found) or 'it has none'}), got {key!r}")
    others = [name for name in found if name not in (key, SEED)]
    colour, split = others[0] if others else None, others[1:]
    by_seed = groups(sweep.rows, [key, *others])
    if not by_seed:
        raise ValueError(f"no run of the sweep in {sweep.path} has finished")
    values = ordered(group.values[key] for group in by_seed)
    names = ordered(group.values[colour] for group in by_seed) if colour else []
    colours = dict(zip(names, head_colours(len(names))))
    parts: dict[tuple[Any, ...], list[Group]] = {}
    for group in by_seed:
        parts.setdefault(tuple(group.values[name] for name in split), []).append(group)
    panels = []
    for common, part in list(parts.items())[:MOST_PANELS]:
        drawn = [
            _line(sweep, key, values, members, colours[shared[colour]] if colour else None)
            for shared, members in lines(part, key)
        ]
        panels.append((dict(zip(split, common)), drawn))
    return _Picture(kind_of(key), found[key], values, colour, colours, panels, max(0, len(parts) - MOST_PANELS))


def _line(sweep: LoadedSweep, key: str, values: Sequence[Any], members: list[Group], colour: Any) -> Line:
    """Groups at their numbers on the axis, or at their places among `values` that are no numbers."""
    numeric = all(map(is_number, values))
    at = [float(g.values[key]) if numeric else float(values.index(g.values[key])) for g in members]
    return Line(colour, at, members, [[sweep.configs[row["run"]] for row in group.rows] for group in members])


def _legend(picture: _Picture) -> list[Line2D]:
    """The lines' colours, then what the marks mean."""
    kind = picture.kind
    style: dict[str, Any] = {"ls": "-" if kind.joined else "", "lw": 1.2, "marker": "o", "ms": 5}
    entries = [
        Line2D([], [], color=colour, label=_named(str(picture.colour), value), **style)
        for value, colour in picture.colours.items()
    ]
    repeated = any(len(group.rows) > 1 for line in picture.lines() for group in line.groups)
    measured = "mean over seeds ± s.e." if repeated else ("evaluated ± s.e." if kind.evaluated else "observed")
    entries.append(Line2D([], [], color=INK, label=measured, **style))
    if repeated:
        entries.append(Line2D([], [], color=INK, ls="", marker=".", ms=5, alpha=0.5, label="one seed"))
    marks = kind.marks([drawn for _, drawn in picture.panels])
    return entries + [Line2D([], [], label=mark.label, color=mark.colour, **mark.style) for mark in marks]


def _columns(entries: Sequence[Line2D], width: float) -> int:
    """The most columns of the legend that fit into so many inches."""
    for columns in range(min(_MOST_COLUMNS, len(entries)), 1, -1):
        figure = Figure(figsize=(width, 1))
        legend = figure.legend(handles=entries, ncols=columns)
        if legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width < figure.bbox.width:
            return columns
    return 1


def _set_axis(axes: Axes, picture: _Picture, width: float) -> None:
    """Scale, limits and ticks of the horizontal axis of a panel that is so many inches wide."""
    key, values = picture.x.key, picture.values
    if not all(map(is_number, values)):
        letters = max(3, int(_LETTERS * width / len(values)))
        axes.set_xticks(range(len(values)), [_shortened(str(value), letters) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        return
    low, high = min(values), max(values)
    spread = low > 0 and high / low >= (1 if key in _LOGARITHMIC else _LOG_RATIO)
    if low < high and spread and key not in _LINEAR:
        axes.set_xscale("log")
        margin = (high / low) ** 0.06
        axes.set_xlim(low / margin, high * margin)
    elif low < high:
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    else:
        axes.set_xlim(low - 0.5, high + 0.5)
    ticks = values[:1]
    for value in values[1:]:  # those too close to the one before are left out
        places = axes.transAxes.inverted().transform(axes.transData.transform([(ticks[-1], 1), (value, 1)]))[:, 0]
        if width * (places[1] - places[0]) > _TICK_SPACING:
            ticks.append(value)
    axes.set_xticks(ticks, [plainly(value, 0) for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _axis_name(x: Dimension) -> str:
    tied = [NAMES.get(key, (key, key))[0] for key in x.tied if key != SEED]
    name = NAMES.get(x.key, (x.key, x.key))[0]
    return f"{name} (with {', '.join(tied)})" if tied else name


def _named(key: str, value: Any) -> str:
    return (
        f"{NAMES.get(key, (key, key))[1]} = {value:g}" if is_number(value) else f"{key} = {_shortened(str(value), 24)}"
    )


def _subtitle(sweep: LoadedSweep) -> str:
    """What the runs have in common, and how many there are."""
    c = sweep.configs[0]
    varied = {key for dimension in dimensions(sweep.configs) for key in (dimension.key, *dimension.tied)}
    facts = {
        "dim_x": count(c.dim_x, "covariate"),
        "n_tasks": count(c.n_tasks, "task"),
        "context_length": count(c.context_length, "example"),
        "n_heads": count(c.n_heads, "head"),
        "parameters": c.parameters,
        "optimizer": c.optimizer,
    }
    finished = sum(row["status"] == "finished" for row in sweep.rows)
    runs = count(finished, "run") if finished == len(sweep.rows) else f"{finished} of {len(sweep.rows)} runs"
    return f"{c.preset}, {runs}:  " + ", ".join(fact for key, fact in facts.items() if key not in varied)
