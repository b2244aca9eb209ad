"""How good the trained model is: theory's states and optima, the Bayes risk, and other context lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ..plots import lengths_figure
from ..train.wording import (
    STATES,
    capitalised,
    missing_states,
    number,
    ratio_label,
    remarks,
    state_label,
    state_source,
    uncertain,
    whole,
)
from .content import Block, Paragraph, Picture, Points, Section, Table
from .drawing import inline_svg
from .findings import Findings

_STATE_MEANINGS = {
    "one_head_per_task_first_order": "each task has a head of its own; stable for balanced flows with positive values, "
    "while starts whose tasks' best heads coincide end in shared states; with every term of first order in 1/L",
    "one_head_per_task": "the same state with the leading order in 1/L alone",
    "single_head_first_order": "one head serves all tasks, with every term of first order in 1/L",
    "single_head": "the best model with one head, whose attention all tasks share",
    "best_shared_heads": "the best state in which every task has one head and heads are fewer than tasks",
    "best_multi_head": "no model with these heads is better at leading order; approached as ω → 0 and |μ| → ∞, with "
    "heads of opposite sign that cancel each other's bias, and never attained",
    "bayes": "the best predictor of all, which knows the distribution of prompts",
}
_NUMERICAL_MULTI_HEAD = (
    "the best of the limits |μ| → ∞ that a search finds at leading order; supports overlap, and the infimum over "
    "models with these heads may be lower"
)


def optimality(found: Findings) -> Section:
    """Theory's states next to the run, with what is known to be out of reach."""
    theory = found.summary["theory"]
    rows = [("This run, evaluated", *_losses(found.summary, found.target_noise), "–", "measured")]
    rows += [
        (
            capitalised(state_label(name, theory[name])),
            *_losses_of_state(theory[name]),
            found.against(theory[name]["loss"]),
            state_source(theory[name]),
        )
        for name in STATES
        if theory.get(name) is not None
    ]
    caption = (
        "Losses that theory knows for this task, next to the run's. Excess: loss without the noise of the targets. "
        "The last but one column says where the run's evaluated loss lies, in percent and standard errors."
    )
    header = ("State", "Loss", "Excess", "This run is", "Found by")
    states = [
        Markup("<b>{}</b>: {}.").format(state_label(name, theory[name]), _meaning(name, theory[name]))
        for name in STATES
        if theory.get(name) is not None
    ]
    blocks: list[Block] = [Table(caption, header, rows), Points(states)]
    if theory["ratios"]:
        blocks.append(_ratios(found))
    if remarks(theory):
        blocks.append(Points([f"{what}: {text}." for what, text in remarks(theory)]))
    left_out = missing_states(theory)
    if left_out:
        caption = "States that theory does not give here, and why."
        blocks.append(Table(caption, ("State", "Reason"), left_out))
    return Section("optimality", "How good it is", blocks)


def _meaning(name: str, state: Mapping[str, Any]) -> str:
    if name == "best_multi_head" and state["source"] == "numerical":
        return _NUMERICAL_MULTI_HEAD
    return _STATE_MEANINGS[name]


def _losses(summary: Mapping[str, Any], noise: float) -> tuple[str, str]:
    loss, error = summary["eval_loss"], summary["eval_loss_se"]
    return uncertain(loss, error), uncertain(loss - noise, error)


def _losses_of_state(state: Mapping[str, Any]) -> tuple[str, str]:
    error = state.get("standard_error", 0.0)
    return uncertain(state["loss"], error), uncertain(state["excess"], error)


def _ratios(found: Findings) -> Table:
    theory = found.summary["theory"]
    excess = found.summary["eval_loss"] - found.target_noise
    rows = [(ratio_label(name), number(value)) for name, value in theory["ratios"].items()]
    for name in ("best_multi_head", "bayes"):
        state = theory.get(name)
        if state is not None and state["excess"] > 0:
            rows.append((f"this run / {state_label(name, state)}", number(excess / state["excess"])))
    return Table("Ratios of excess losses; 1 is as good.", ("Ratio", "Value"), rows, numeric=True)


def lengths(found: Findings) -> Section:
    """The trained weights at other context lengths."""
    curve, predicted = found.analysis.lengths, found.analysis.predicted_lengths
    picture = Picture(
        inline_svg(
            lengths_figure(found.run, curve, {order: prediction.loss for order, prediction in predicted.items()}),
            "lengths",
            "Loss of the trained weights against context length",
        ),
        "Loss of the trained weights, unchanged, on prompts with other numbers of context examples.",
    )
    text = (
        "Nothing in the model fixes the length of a context, so the trained weights can be used at any. To leading "
        "order the loss is affine in 1/L′: what depends on L′ is the variance of averaging over finitely many "
        "examples. What stays is the bias, tuned to the length of the training, a floor that longer contexts cannot "
        "pass."
    )
    blocks: list[Block] = [Paragraph(text), picture, _length_table(found)]
    blocks += [
        Paragraph(f"{what}: {why}.") for what, why in found.analysis.notes.items() if what.startswith("predicted")
    ]
    return Section("lengths", "Other context lengths", blocks)


def _length_table(found: Findings) -> Table:
    analysis = found.analysis
    curve, predicted = analysis.lengths, analysis.predicted_lengths
    header = ("Context examples", "Measured loss", *(f"Predicted, {order} order" for order in predicted))
    rows = [
        (
            f"{length}" + (" (training)" if length == found.config.context_length else ""),
            uncertain(float(curve.loss[k]), float(curve.standard_error[k])),
            *(number(float(prediction.loss[k])) for prediction in predicted.values()),
        )
        for k, length in enumerate(curve.lengths)
    ]
    caption = (
        f"Loss ± standard error on {whole(analysis.length_prompts)} prompts at each length, and as predicted "
        f"from {analysis.length_source}."
    )
    return Table(caption, header, rows, numeric=True)
