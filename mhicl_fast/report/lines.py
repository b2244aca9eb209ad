"""An analysis as aligned lines for a person to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spectral._inputs import SHORTEST_FIRST_ORDER_CONTEXT
from ..train.summary import FAR_FROM_DECOMPOSABLE
from ..train.wording import STATES, align, count, number, several, state_label, uncertain
from .told import roles_told

if TYPE_CHECKING:
    from .analysis import Analysis


def analysis_lines(analysis: Analysis) -> str:
    """The measurements of an `Analysis` with the predictions next to them."""
    theory = analysis.theory.to_dict()
    rows = [
        ("task", repr(analysis.task)),
        ("heads", str(analysis.n_heads)),
        ("loss", f"{uncertain(*analysis.loss)} (s.e., {count(analysis.n_prompts, 'prompt')})"),
        *(
            (
                f"theory: {state_label(name, theory[name])}",
                uncertain(theory[name]["loss"], theory[name].get("standard_error", 0.0)),
            )
            for name in STATES
            if theory.get(name) is not None
        ),
        *_weights(analysis),
        *_roles(analysis),
        *_attention(analysis),
        *_lengths(analysis),
        *((f"left out: {name}", reason) for name, reason in analysis.notes.items()),
    ]
    return align(rows)


def _weights(analysis: Analysis) -> list[tuple[str, str]]:
    found = analysis.decomposition
    basis = "identifiable" if found.bases.identifiable else "determined up to columns of equal values"
    rows = [("distance from decomposable", f"{number(found.residual, 3)} of the norm; basis {basis}")]
    rows += [(f"  by {cause}", number(size, 3)) for cause, size in analysis.departures.items()]
    if found.residual > FAR_FROM_DECOMPOSABLE:
        rows.append(("  caution", "values, roles and predictions below are those of the nearest decomposable weights"))
    rows += [(f"head {head}: μ", several(mu)) for head, mu in enumerate(found.mu)]
    return rows + [(f"head {head}: ω", several(omega)) for head, omega in enumerate(found.omega)]


def _roles(analysis: Analysis) -> list[tuple[str, str]]:
    return [] if analysis.roles is None else [(f"tasks: {what}", text) for what, text in roles_told(analysis.roles)]


def _attention(analysis: Analysis) -> list[tuple[str, str]]:
    rows = []
    for head in range(analysis.n_heads):
        measured = uncertain(float(analysis.examples.mean[head]), float(analysis.examples.standard_error[head]))
        if analysis.attention is not None:
            measured += f", predicted {number(float(analysis.attention.examples[head]), 3)}"
        rows.append((f"head {head}: effective examples", f"{measured} of {analysis.task.context_length}"))
    return rows


def _lengths(analysis: Analysis) -> list[tuple[str, str]]:
    rows = []
    for k, length in enumerate(analysis.lengths.lengths):
        told = uncertain(float(analysis.lengths.loss[k]), float(analysis.lengths.standard_error[k]))
        for order, curve in analysis.predicted_lengths.items():
            if order == "leading" or length >= SHORTEST_FIRST_ORDER_CONTEXT:
                told += f", {order} order {number(float(curve.loss[k]))}"
        rows.append((f"loss at {count(int(length), 'example')}", told))
    return rows
