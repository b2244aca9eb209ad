"""The page's sliders and choices, and the scenario they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from bokeh.models import CategoricalSlider, Column, CustomJS, Div, InlineStyleSheet, RadioButtonGroup, Select, Slider
from bokeh.models.widgets import Widget

from .scenario import MOST_COVARIATES, MOST_HEADS, MOST_SEEDS, MOST_TASKS, Scenario

_WHOLE = {
    "n_tasks": ("tasks I", 1, MOST_TASKS),
    "n_heads": ("heads H", 1, MOST_HEADS),
    "n_covariates": ("covariates per task d", 1, MOST_COVARIATES),
    "seed": ("seed", 0, MOST_SEEDS - 1),
}
_STEPS: dict[str, tuple[str, Sequence[float]]] = {
    "context_length": ("context length L", (10, 20, 50, 100, 200, 300, 400, 500, 700, 1000, 2000, 3000, 5000, 10_000)),
    "noise_std": ("label noise σ", (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3)),
    "start_size": ("size", (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)),
    "imbalance": ("imbalance of the factors", (1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)),
}
_CHOICES: dict[str, dict[str, str]] = {
    "flow": {"balanced": "balanced", "combined": "combined", "unbalanced": "unbalanced"},
    "order": {"leading": "leading order", "first": "first order"},  # in 1/L
}
_STARTS = {
    "random": "small random",
    "own": "one favoured head per task",
    "shared": "one favoured head for all tasks",
    "equal": "all heads equal",
}
EXAMPLES = {
    "one head per task": Scenario(),
    "escape from the plateau": Scenario(n_heads=4, flow="combined"),
    "a tiny imbalance": Scenario(flow="unbalanced", imbalance=1e-3),
    "fewer heads than tasks": Scenario(n_heads=2),
    "a bad start": Scenario(start="shared"),
    "first order": Scenario(order="first"),
}


class Controls:
    """Widgets by the name of the scenario's field that they set, and the layout that holds them."""

    def __init__(self, scenario: Scenario, changed: Callable[[], None]) -> None:
        self._changed = changed
        style = InlineStyleSheet(css=_CSS)  # of this session: models belong to one document

        def common(name: str) -> dict[str, Any]:
            return {"name": name, "sizing_mode": "stretch_width", "stylesheets": [style]}

        self.widgets: dict[str, Widget] = {}
        for name, (title, low, high) in _WHOLE.items():
            self.widgets[name] = Slider(
                title=title, start=low, end=high, step=1, value=getattr(scenario, name), **common(name)
            )
        for name, (title, steps) in _STEPS.items():
            categories = [f"{step:g}" for step in steps]
            value = f"{getattr(scenario, name):g}"
            self.widgets[name] = CategoricalSlider(title=title, categories=categories, value=value, **common(name))
        self.widgets["start"] = Select(options=list(_STARTS.items()), value=scenario.start, **common("start"))
        for name, labels in _CHOICES.items():
            index = list(labels).index(getattr(scenario, name))
            self.widgets[name] = RadioButtonGroup(labels=list(labels.values()), active=index, **common(name))
        self._example = Select(options=["choose …", *EXAMPLES], value="choose …", **common("example"))
        self._example.on_change("value", self._show_example)
        for name, widget in self.widgets.items():
            widget.on_change("active" if name in _CHOICES else "value", self._note_change)
        self._hide_unused()
        self.layout = self._lay_out()

    def on_move(self, code: CustomJS) -> None:
        """Run this in the browser when a control moves."""
        for name, widget in self.widgets.items():
            widget.js_on_change("active" if name in _CHOICES else "value", code)

    def scenario(self) -> Scenario:
        """The setting of the widgets."""
        values: dict[str, Any] = {name: int(self.widgets[name].value) for name in _WHOLE}
        for name, (_, steps) in _STEPS.items():
            values[name] = steps[self.widgets[name].categories.index(self.widgets[name].value)]
        for name, labels in _CHOICES.items():
            values[name] = list(labels)[self.widgets[name].active]
        return Scenario(start=self.widgets["start"].value, **values)

    def show(self, scenario: Scenario) -> None:
        """Set every widget to a scenario whose values they offer."""
        for name, value in asdict(scenario).items():
            if name in _CHOICES:
                self.widgets[name].active = list(_CHOICES[name]).index(value)
            else:
                self.widgets[name].value = f"{value:g}" if name in _STEPS else value

    def _note_change(self, _attribute: str, _old: Any, _new: Any) -> None:
        self._hide_unused()
        self._changed()

    def _show_example(self, _attribute: str, _old: str, new: str) -> None:
        if new in EXAMPLES:
            self.show(replace(EXAMPLES[new], seed=int(self.widgets["seed"].value)))

    def _hide_unused(self) -> None:
        self.widgets["imbalance"].visible = self.widgets["flow"].active == list(_CHOICES["flow"]).index("unbalanced")

    def _lay_out(self) -> Column:
        w = self.widgets
        return Column(
            _heading("task"),
            w["n_tasks"], w["n_covariates"], w["context_length"], w["noise_std"],
            _heading("model and flow"),
            w["n_heads"], w["flow"], w["order"], w["imbalance"],
            _heading("start"),
            w["start"], w["start_size"], w["seed"],
            _heading("examples"),
            self._example,
            name="controls",
            sizing_mode="stretch_width",
            spacing=2,
        )  # fmt: skip


_CSS = """
:host { font: 13px/1.25 system-ui, "DejaVu Sans", sans-serif; margin: 0 0 2px; }
.bk-slider-title, .bk-input-group > label { color: #333; }
.bk-slider-value { font-weight: 600; }
.noUi-connect, .noUi-handle:focus { background: #0072B2; }
.bk-btn-group .bk-btn { padding: 4px 0; font-size: 12px; }
.bk-btn-default.bk-active { background: #0072B2; border-color: #0072B2; color: white; }
.bk-input { height: 30px; padding: 2px 8px; font-size: 13px; }
"""


def _heading(text: str) -> Div:
    style = {"font": "600 12px system-ui, sans-serif", "color": "#666", "text-transform": "uppercase",
             "letter-spacing": "0.06em", "margin": "6px 0 0"}  # fmt: skip
    return Div(text=text, styles=style, sizing_mode="stretch_width")
