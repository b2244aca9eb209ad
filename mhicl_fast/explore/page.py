"""The page of one session: controls on one side, pictures and numbers on the other, redrawn when a control moves."""

from __future__ import annotations

from importlib import resources
from typing import Any

from bokeh.document import Document
from bokeh.models import Button, Column, CrosshairTool, CustomJS, Div, InlineStyleSheet, Span
from bokeh.themes import Theme
from jinja2 import Environment

from .. import spectral
from . import html
from .axes import THEME, TimeAxis
from .controls import Controls
from .loss_figure import LossFigure
from .panels import Panels
from .scenario import Scenario
from .solution import ScenarioError, Solution, solve_scenario
from .wording import code

COLLECT_MS = 30  # moves are drawn together: while a control is dragged they come faster than pictures can be drawn
POINTS = 400  # of a curve: every second pixel
_TITLE = "mhicl explore"
_FADED, _PLAIN = {"opacity": "0.3"}, {"opacity": "1"}  # the browser keeps a style that is merely left out


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


class Page:
    """What a session shows. `solution` is the last setting that has one; `redraw` draws the controls' setting."""

    def __init__(self, document: Document, scenario: Scenario | None = None) -> None:
        self.document = document
        self.solution: Solution | None = None
        self._waiting, self._drawn = False, 0
        style = InlineStyleSheet(css=_text("text.css"))
        self.controls = Controls(scenario or Scenario(), self._request)
        self._time = TimeAxis(document)
        crosshair = CrosshairTool(overlay=Span(dimension="height", line_color="#B5B5B5", line_width=1))
        self.loss = LossFigure(self._time, crosshair)
        self.panels = Panels(self._time, crosshair)
        self.status, self.numbers, self.legend, self.call = (
            Div(name=name, sizing_mode="stretch_width", stylesheets=[style], margin=0)
            for name in ("status", "numbers", "legend", "call")
        )
        self._pictures = Column(
            self.loss.layout, self.legend, self.panels.layout, name="pictures", sizing_mode="stretch_both", spacing=2
        )
        self._copy = CustomJS(args={"code": ""}, code=_COPY)
        button = Button(label="Copy the call", name="copy", width=130, height=30)
        button.js_on_click(self._copy)
        self.controls.on_move(CustomJS(code="document.body.classList.add('busy')"))
        self.status.js_on_change("tags", CustomJS(code="document.body.classList.remove('busy')"))
        document.theme = Theme(json=THEME)
        document.title = _TITLE
        document.template = Environment(autoescape=False).from_string(_text("page.html"))
        for root in (self.controls.layout, self.status, self._pictures, self.numbers, self.call, button):
            document.add_root(root)
        self.redraw()

    def _request(self) -> None:
        """Redraw soon; moves that come meanwhile are drawn with this one."""
        if not self._waiting:
            self._waiting = True
            self.document.add_timeout_callback(self.redraw, COLLECT_MS)

    def redraw(self) -> None:
        """Solve the controls' setting and show it; where it has no solution, say so and fade what is shown."""
        self._waiting = False
        try:
            self._show(solve_scenario(self.controls.scenario()))
        except ScenarioError as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(f"This is a defect of the page: {error!r}")
            raise  # for the server to log
        finally:
            self._drawn += 1
            self.status.tags = [self._drawn]  # tells the browser that it is done

    def _fail(self, message: str) -> None:
        self.status.text = html.failure(message)
        self._pictures.styles = self.numbers.styles = self.call.styles = _FADED

    def _show(self, solution: Solution) -> None:
        self.solution = solution
        self._draw(solution)
        self._pictures.styles = self.numbers.styles = self.call.styles = _PLAIN

    def _draw(self, solution: Solution) -> None:
        times = solution.times(POINTS)
        mu, omega, loss, _ = solution.trajectory(times)
        parts = spectral.head_shares(solution.trajectory.task, mu, omega)
        self.loss.draw(solution, times, loss)
        fewer = slice(None, None, 2)
        self.panels.draw(solution, times[fewer], {"share": parts[fewer], "mu": mu[fewer], "omega": omega[fewer]})
        self._time.set(solution.t_first, solution.t_last, solution.log_time)
        self.status.text = html.status(solution)
        self.numbers.text = html.numbers(solution)
        self.legend.text = html.legend(solution)
        self.call.text = html.call(solution)
        self._copy.args = {"code": code(solution)}


_COPY = """
const label = cb_obj.origin.label
navigator.clipboard.writeText(code).then(
    () => { cb_obj.origin.label = "Copied" },
    () => { cb_obj.origin.label = "Select it above, please" },
)
setTimeout(() => { cb_obj.origin.label = "Copy the call" }, 1500)
"""


def application(document: Document) -> Any:
    """Fill a session's document."""
    Page(document)
