"""The loss against flow time, its phases as bands, and theory's losses as labelled lines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import ColumnDataSource, CrosshairTool, FixedTicker, HoverTool, LinearScale, LogScale, Range1d, Row
from matplotlib.ticker import MaxNLocator

from ..plots.labels import spread
from ..plots.style import INK, PHASES, ROUND, round_numbers
from ..train.wording import number
from .axes import FONT, TimeAxis, plain_figure, set_range
from .solution import Solution
from .wording import theory_lines

_LABELS, _VALUES, _TIME_AXIS = 228, 62, 40  # pixels beside and below the frame
_FRAME = 180  # pixels, the least height of the frame
_LINE = 17  # of a label
_LOG_LOSS = 4.0  # the loss is drawn logarithmically where it falls by this factor
_OFF_SCALE = 4.0  # a Bayes risk this factor below everything else is named at the edge rather than drawn
_LETTER = 0.019  # of the width of a narrow frame
_TEXT = {"text_font": value(FONT), "text_font_size": "12px"}
_CURVE, _THEORY = INK, "#7A7A7A"


class LossFigure:
    """The figure, and beside it the names of theory's lines; `draw` fills both."""

    def __init__(self, time: TimeAxis, crosshair: CrosshairTool) -> None:
        y_range = Range1d(0, 1)
        self.curve = ColumnDataSource({"t": [], "loss": []}, name="loss")
        self.theory = ColumnDataSource({"loss": [], "drawn": [], "place": [], "label": []}, name="theory")
        self.phases = ColumnDataSource({"start": [], "end": [], "fill": []}, name="phases")
        self._names = ColumnDataSource({"x": [], "y": [], "text": [], "ink": []})
        self._events = ColumnDataSource({"t": [], "loss": [], "text": []}, name="events")
        self.figure = plain_figure(time.range, y_range, name="loss_figure", y_axis_label="loss")
        time.add(self.figure)
        self.figure.update(min_border_left=_VALUES, min_border_right=6, min_border_bottom=_TIME_AXIS)
        self.figure.xaxis.axis_label = "flow time"
        self._scales = {False: LinearScale(), True: LogScale()}
        self._ticker = FixedTicker(ticks=[])
        self.figure.yaxis.ticker = self.figure.ygrid.ticker = self._ticker
        self._build(crosshair)
        self._labels = self._build_labels(y_range)
        self.layout = Row(self.figure, self._labels, sizing_mode="stretch_both", spacing=0)
        self.layout.styles = {"flex": f"2 1 {_TIME_AXIS}px", "min-height": f"{_FRAME + _TIME_AXIS}px"}

    def _build(self, crosshair: CrosshairTool) -> None:
        f = self.figure
        f.vstrip(x0="start", x1="end", source=self.phases, fill_color="fill", line_color=None, level="underlay")
        f.hspan(y="drawn", source=self.theory, line_color=_THEORY, line_width=1, line_dash=[5, 4])
        line = f.line("t", "loss", source=self.curve, line_color=_CURVE, line_width=2.5)
        f.scatter("t", "loss", source=self._events, marker="inverted_triangle", size=10, color=INK)
        f.text("t", "loss", "text", source=self._events, text_color=INK, x_offset=9, text_baseline="middle", **_TEXT)
        f.text("x", "y", "text", source=self._names, text_color="ink", text_align="center", text_baseline="top",
               y_offset=4, **_TEXT)  # fmt: skip
        tooltips = [("flow time", "@t{0.[000]}"), ("loss", "@loss{0.[0000]}")]
        f.add_tools(HoverTool(renderers=[line], tooltips=tooltips, mode="vline", line_policy="nearest"), crosshair)

    def _build_labels(self, y_range: Range1d) -> Any:
        labels = plain_figure(Range1d(0, 1), y_range)
        labels.update(width=_LABELS, sizing_mode="stretch_height", min_border_bottom=_TIME_AXIS)
        labels.axis.visible = labels.grid.visible = False
        labels.segment(0, "drawn", 0.06, "place", source=self.theory, line_color=_THEORY)
        labels.text(0.08, "place", "label", source=self.theory, text_color=INK, text_baseline="middle",
                    **_TEXT)  # fmt: skip
        return labels

    def draw(self, solution: Solution, times: np.ndarray, losses: np.ndarray) -> None:
        """Fill in a solution, whose loss at `times` is `losses`."""
        lines = theory_lines(solution)
        low, high, logarithmic = _limits(losses, lines)
        self.figure.y_scale = self._labels.y_scale = self._scales[logarithmic]
        self._ticker.ticks = round_numbers(low, high, 8) if logarithmic else _round_steps(low, high)
        set_range(self.figure.y_range, low, high)
        self.curve.data = {"t": times, "loss": losses}
        self.theory.data = _place(lines, low, high, logarithmic)
        self._draw_phases(solution, high)
        escape = solution.escape
        shown = escape is not None and escape.time <= solution.t_last
        self._events.data = {
            "t": [escape.time] if escape and shown else [],
            "loss": [float(np.interp(escape.time, times, losses))] if escape and shown else [],
            "text": ["escape"] if shown else [],
        }

    def _draw_phases(self, solution: Solution, top: float) -> None:
        phases, first, last = solution.phases, solution.t_first, solution.t_last
        ends = [phases.warmup_end, phases.emergence_end]
        if not np.isfinite(ends).all():
            self.phases.data = {"start": [], "end": [], "fill": []}
            self._names.data = {"x": [], "y": [], "text": [], "ink": []}
            return
        left = first if solution.log_time else 0.0
        edges = np.clip([left, *ends, max(last, ends[1])], left, None)
        self.phases.data = {"start": edges[:-1], "end": edges[1:], "fill": [fill for _, fill, _ in PHASES]}
        scale = np.log if solution.log_time else np.asarray
        low, high = scale(first), scale(last)
        places = np.clip((scale(np.maximum(edges, first)) - low) / (high - low), 0, 1)
        seen = [k for k in range(3) if places[k + 1] > places[k]]
        sizes = [_LETTER * (len(PHASES[k][0]) + 2) for k in seen]
        centres = low + (high - low) * spread([places[k : k + 2].mean() for k in seen], sizes, 0.0, 1.0)
        self._names.data = {
            "x": np.exp(centres) if solution.log_time else centres,
            "y": np.full(len(seen), top),
            "text": [PHASES[k][0] for k in seen],
            "ink": [PHASES[k][2] for k in seen],
        }


def _limits(losses: np.ndarray, lines: dict[str, tuple[str, float]]) -> tuple[float, float, bool]:
    """Lowest and highest loss in view, with room for the phases' names, and whether the axis is logarithmic."""
    shown = np.concatenate([losses, [loss for name, (_, loss) in lines.items() if name != "bayes"]])
    low, high = float(shown.min()), float(shown.max())
    if low / _OFF_SCALE < lines["bayes"][1] < low:
        low = lines["bayes"][1]
    if low > 0 and high / low > _LOG_LOSS:
        span = high / low
        return low * span**-0.08, high * span**0.16, True
    span = (high - low) or abs(high) or 1.0
    return low - 0.08 * span, high + 0.16 * span, False


def _round_steps(low: float, high: float) -> list[float]:
    ticks = MaxNLocator(6, steps=ROUND).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def _place(lines: dict[str, tuple[str, float]], low: float, high: float, logarithmic: bool) -> dict[str, Any]:
    """Where lines and labels stand: labels apart from each other, those of lines below the view at its edge."""
    losses = np.array([loss for _, loss in lines.values()])
    drawn = np.maximum(losses, low)
    forward, back = (math.log, math.exp) if logarithmic else (float, float)
    bottom, top = forward(low), forward(high)
    heights = [(forward(float(loss)) - bottom) / (top - bottom) for loss in drawn]
    places = spread(heights, [_LINE / _FRAME] * len(heights), 0.0, 1.0)
    return {
        "loss": losses,
        "drawn": np.where(losses < low, np.nan, drawn),
        "place": [back(bottom + (top - bottom) * float(place)) for place in places],
        "label": [f"{number(loss, 3)}  {label}{'  ↓ below' if loss < low else ''}" for label, loss in lines.values()],
    }
