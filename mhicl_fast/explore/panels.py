"""Small multiples: for each task (column) the share learnt, μ and ω of each head (rows) over flow time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import Column, ColumnDataSource, CrosshairTool, HoverTool, Range1d, Row
from numpy.typing import NDArray

from ..plots.style import EMERGENCE, FAINT, INK, head_colours
from .axes import TimeAxis, plain_figure, set_range
from .scenario import MOST_TASKS
from .solution import Solution

_ROWS = {"share": "share learnt", "mu": "μ", "omega": "ω"}
_FRAME, _TIME_AXIS, _TITLE, _VALUES = 84, 40, 20, 62  # pixels: the least height, and what axes and titles add
_HALF = 0.5
_NOBODY = "#6B6B6B"


class Panels:
    """Figures for as many tasks as the sliders allow, of which the scenario's are shown; `draw` fills them."""

    def __init__(self, time: TimeAxis, crosshair: CrosshairTool) -> None:
        self.curves: dict[tuple[str, int], ColumnDataSource] = {}
        self._marks: list[ColumnDataSource] = []
        self._bands: list[ColumnDataSource] = []
        self._limits = {row: ColumnDataSource({"y": []}) for row in _ROWS}
        self._y_ranges = {row: Range1d(0, 1) for row in _ROWS}
        self.figures: dict[tuple[str, int], Any] = {}
        for task in range(MOST_TASKS):
            self._marks.append(ColumnDataSource({"t": [], "y": [], "fill": [], "edge": [], "marker": [], "size": []}))
            self._bands.append(ColumnDataSource({"start": [], "end": []}))
            for row in _ROWS:
                self.figures[row, task] = self._build(row, task, time, crosshair)
        self.layout = Column(*map(self._lay_out, _ROWS), sizing_mode="stretch_both", spacing=4, name="panels")
        self.layout.styles = {"flex": f"3 1 {_TITLE + _TIME_AXIS}px"}

    def _build(self, row: str, task: int, time: TimeAxis, crosshair: CrosshairTool) -> Any:
        first, top, last = task == 0, row == "share", row == "omega"
        f = plain_figure(time.range, self._y_ranges[row], name=f"{row}_{task}")
        time.add(f)
        f.min_border_left, f.min_border_right = _VALUES if first else 4, 4
        f.min_border_top, f.min_border_bottom = (_TITLE if top else 2), (_TIME_AXIS if last else 2)
        # Columns share what the first one's axis leaves, which therefore gets the axis in addition.
        f.styles = {"flex": f"1 1 {_VALUES - 4 if first else 0}px", "min-width": "0"}
        f.yaxis.axis_label = _ROWS[row] if first else None
        f.yaxis.ticker.desired_num_ticks = 4
        f.xaxis.axis_label = "flow time" if last else None
        if not first:
            f.yaxis.visible = False
        if not last:
            f.xaxis.visible = False
        if top:
            f.title.update(text=f"task {task}", align="center", standoff=2)
        self._add_glyphs(f, row, task, crosshair)
        return f

    def _lay_out(self, row: str) -> Row:
        figures = [self.figures[row, task] for task in range(MOST_TASKS)]
        extra = {"share": _TITLE, "mu": 0, "omega": _TIME_AXIS}[row]
        # Frames share what title and axis leave of the height, too.
        styles = {"flex": f"1 1 {extra}px", "min-height": f"{_FRAME + extra}px"}
        return Row(*figures, sizing_mode="stretch_both", spacing=8, styles=styles)

    def _add_glyphs(self, f: Any, row: str, task: int, crosshair: CrosshairTool) -> None:
        source = ColumnDataSource(
            {"xs": [], "ys": [], "colour": [], "width": [], "name": []}, name=f"curves_{row}_{task}"
        )
        self.curves[row, task] = source
        f.vstrip(
            x0="start", x1="end", source=self._bands[task], fill_color=EMERGENCE, line_color=None, level="underlay"
        )
        f.hspan(y="y", source=self._limits[row], line_color=FAINT, line_dash=[2, 3])
        lines = f.multi_line("xs", "ys", source=source, line_color="colour", line_width="width", line_join="round")
        f.add_tools(HoverTool(renderers=[lines], tooltips=[("", "@name"), ("flow time", "$x{0.[000]}"),
                                                          (_ROWS[row], "$y{0.[0000]}")]), crosshair)  # fmt: skip
        if row == "share":
            f.scatter("t", "y", source=self._marks[task], marker="marker", size="size", fill_color="fill",
                      line_color="edge", line_width=2)  # fmt: skip

    def draw(self, solution: Solution, times: NDArray[np.float64], values: dict[str, NDArray[np.float64]]) -> None:
        """Fill in a solution whose parts of the shares, μ and ω at `times` (T,) are `values`, each (T, H, I)."""
        n_heads, n_tasks = solution.scenario.n_heads, solution.scenario.n_tasks
        colours, names = head_colours(n_heads), [f"head {head}" for head in range(n_heads)]
        limits = _limits_of_theory(solution)
        for row in _ROWS:
            self._limits[row].data = {"y": limits[row]}
            shown = values[row] if row != "share" else np.concatenate([values[row], values[row].sum(1)[:, None]], 1)
            seen = shown[times >= solution.t_first]
            set_range(self._y_ranges[row], *_in_view(seen, limits[row]))
            for task in range(n_tasks):
                ys = [np.ascontiguousarray(shown[:, k, task]) for k in range(shown.shape[1])]
                total = len(ys) - n_heads
                self.curves[row, task].data = {
                    "xs": [times] * len(ys),
                    "ys": ys,
                    "colour": colours + [INK] * total,
                    "width": [2.2 if not total else 4.0] * n_heads + [1.0] * total,
                    "name": names + ["all heads"] * total,
                }
        for (_, task), figure in self.figures.items():
            figure.visible = task < n_tasks
        for task in range(n_tasks):
            self._mark(solution, task, colours)

    def _mark(self, solution: Solution, task: int, colours: Sequence[str]) -> None:
        """The phase of emergence, and when and by whom half is learnt: predicted hollow, observed filled."""
        phases = solution.phases
        start, end = phases.task_warmup_end[task], phases.task_emergence_end[task]
        reached = bool(np.isfinite([start, end]).all())
        start = max(start, solution.t_first)  # 0 has no place on a logarithmic axis
        self._bands[task].data = {"start": [start] if reached else [], "end": [end] if reached else []}
        marks = []
        for outcome, marker, size in ((solution.predicted, "diamond", 17), (solution.observed, "circle", 7)):
            time, head = float(outcome.time[task]), int(outcome.head[task])
            if 0 < time < np.inf:
                colour = colours[head] if head >= 0 else _NOBODY
                marks.append((time, _HALF, colour if marker == "circle" else "white", colour, marker, size))
        columns = zip(*marks) if marks else [[]] * 6
        self._marks[task].data = dict(zip(("t", "y", "fill", "edge", "marker", "size"), map(list, columns)))


def _limits_of_theory(solution: Solution) -> dict[str, list[float]]:
    """The share, μ and ω of each task in theory's limit, where this is the same for all tasks: else none."""
    mu, omega = solution.reference.mu, solution.reference.omega
    if mu is None or omega is None or np.ptp(mu) > 1e-9 * mu.max():
        return {row: [] for row in _ROWS}
    return {"share": [float(mu[0] * omega[0])], "mu": [float(mu[0])], "omega": [float(omega[0])]}


def _in_view(values: NDArray[np.float64], limits: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()), *limits)
    margin = 0.06 * (high - low)
    return low - margin, high + margin
