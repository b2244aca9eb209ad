"""Figures of one look, whose axes turn from linear to logarithmic and back without being built anew."""

from __future__ import annotations

from typing import Any, NamedTuple

from bokeh.document import Document
from bokeh.events import DoubleTap
from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    CustomJS,
    LinearScale,
    LogScale,
    LogTicker,
    LogTickFormatter,
    NoOverlap,
    Range1d,
    Scale,
    Ticker,
    TickFormatter,
)
from bokeh.plotting import figure

from ..plots.style import FAINT, INK

FONT = 'system-ui, "DejaVu Sans", sans-serif'
THEME = {
    "attrs": {
        "Plot": {"background_fill_color": "white", "border_fill_color": "white", "outline_line_color": None},
        "Axis": {
            "axis_line_color": FAINT,
            "major_tick_line_color": FAINT,
            "minor_tick_line_color": None,
            "major_label_text_font": FONT,
            "major_label_text_font_size": "12px",
            "major_label_text_color": INK,
            "axis_label_text_font": FONT,
            "axis_label_text_font_size": "13px",
            "axis_label_text_font_style": "normal",
            "axis_label_text_color": INK,
            "axis_label_standoff": 4,
            "major_tick_in": 0,
            "major_tick_out": 4,
        },
        "Grid": {"grid_line_color": "#EDEDED"},
        "Title": {"text_font": FONT, "text_font_size": "13px", "text_color": INK},
    }
}


_ZOOM_OUT = "time.setv({start: time.reset_start, end: time.reset_end})"


def plain_figure(x_range: Range1d, y_range: Range1d, **options: Any) -> Any:
    """An empty figure that fills its place, without a toolbar: dragging zooms in time, a double click zooms out."""
    drawn = figure(
        x_range=x_range,
        y_range=y_range,
        sizing_mode="stretch_both",
        tools="xbox_zoom",
        toolbar_location=None,
        min_border=0,
        **options,
    )
    drawn.js_on_event(DoubleTap, CustomJS(args={"time": x_range}, code=_ZOOM_OUT))
    drawn.ygrid.grid_line_color = drawn.xgrid.grid_line_color = "#EDEDED"
    return drawn


def set_range(axis_range: Range1d, low: float, high: float) -> None:
    """Limits now, and those that a reset returns to."""
    axis_range.update(start=low, end=high, reset_start=low, reset_end=high)


class TimeAxis:
    """The axis of flow time that a page's figures share: its range, and its scale, linear or logarithmic."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.range = Range1d(0, 1)
        # Made once and shared by all figures.
        self._linear = _Kind(LinearScale(), BasicTicker(desired_num_ticks=6), BasicTickFormatter())
        self._log = _Kind(LogScale(), LogTicker(desired_num_ticks=6), LogTickFormatter(min_exponent=4))
        self._apart = NoOverlap(min_distance=6)
        self._kind = self._linear
        self._figures: list[Any] = []

    def add(self, drawn: Any) -> None:
        """Let a figure, made with this range, follow the scale."""
        self._figures.append(drawn)
        drawn.xaxis[0].major_label_policy = self._apart
        self._kind.apply(drawn)

    def set(self, low: float, high: float, logarithmic: bool) -> None:
        """Limits and scale of all figures."""
        set_range(self.range, low, high)
        kind = self._log if logarithmic else self._linear
        if kind is self._kind:
            return
        self._kind = kind
        with self._document.models.freeze():  # it goes through all of its models when one is exchanged: once is enough
            for drawn in self._figures:
                kind.apply(drawn)


class _Kind(NamedTuple):
    scale: Scale
    ticker: Ticker
    formatter: TickFormatter

    def apply(self, drawn: Any) -> None:
        drawn.x_scale = self.scale
        drawn.xaxis[0].update(ticker=self.ticker, formatter=self.formatter)
        drawn.xgrid[0].ticker = self.ticker
