"""The top of a report: what happened in a sentence, the key numbers, and what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ..plots.allocation import agreement, headline
from ..train.config import RunConfig
from ..train.optimisers import resolve_weight_decay
from ..train.wording import STATES, count, number, several, uncertain, whole
from .content import Block, Paragraph, Points, Section, Table
from .findings import Findings


def sentence(found: Findings) -> str:
    """What happened, in one sentence."""
    summary = found.summary
    what = headline(found.run) + agreement(summary["allocation"], summary["predicted_allocation"], found.config.n_heads)
    start = number(float(found.run.metrics["loss"][0]), 3)
    if summary["eval_loss"] > found.run.metrics["loss"][0]:
        fall = f"the loss rises from {start}"
    else:
        fall = f"the loss falls from {start}"
    ending = ""
    if found.reference is not None:
        name, state = found.reference
        ending = f"; theory has {number(state['loss'])} for {STATES[name]}"
    if summary["escape"] is not None:
        ending = f", past a plateau at {number(summary['plateau']['loss'], 3)} from which the run escapes"
    return f"{what}; {fall} to {uncertain(summary['eval_loss'], summary['eval_loss_se'])}{ending}."


def key_numbers(found: Findings) -> Section:
    """The table that a reader in a hurry needs."""
    summary, config, phases = found.summary, found.config, found.summary["phases"]
    loss, error = summary["eval_loss"], summary["eval_loss_se"]
    rows = [
        ("Loss", uncertain(loss, error), f"mean squared error summed over tasks ± standard error, on "
         f"{whole(summary['eval_prompts'])} prompts that no step trained on"),
        ("Excess loss", uncertain(loss - found.target_noise, error),
         "the loss without the noise of the targets, which no predictor can avoid"),
        *_reference(found),
        ("Warm-up ends", moment(phases["warmup_end"]), "the first task's learnt share reaches 5 % of its final value"),
        ("Emergence ends", moment(phases["emergence_end"]), "the last task's learnt share reaches 95 % of its value at "
         "the last record"),
        *_plateau(summary),
        ("Effective examples", several(summary["effective_examples"], 3),
         Markup("examples that each head attends to at the end, 1/Σ<sub>l</sub> p<sub>l</sub>², of "
                "{} in a context").format(config.context_length)),
        *_distance(summary),
        ("Training", f"{count(summary['steps'], 'step')}, flow time {number(summary['flow_time'])}",
         "flow time is the sum of the step sizes" if config.follows_flow else
         "flow time is the sum of Adam's step sizes, which is not the time of a gradient flow"),
        ("Prompts", whole(summary["prompts_seen"]), _prompts_meaning(config)),
        ("Wall time", f"{number(summary['wall_s'], 3)} s", _speed(summary)),
    ]  # fmt: skip
    caption = "± is one standard error throughout this page."
    return Section("numbers", "Key numbers", [Table(caption, ("Quantity", "Value", "What it is"), rows)])


def moment(entry: Mapping[str, Any] | None) -> str:
    """A time as a phase's end has it."""
    return "not reached" if entry is None else f"flow time {number(entry['flow_time'])}, step {whole(entry['steps'])}"


def _reference(found: Findings) -> list[tuple[str, str, str]]:
    """The state of theory that the run should reach, and the Bayes risk."""
    rows = []
    state = found.reference
    if state is not None:
        name, values = state
        rows.append(
            (f"Theory: {STATES[name]}", number(values["loss"]), f"the run ends {found.against(values['loss'])}")
        )
    bayes = found.summary["theory"]["bayes"]
    rows.append(("Bayes risk", uncertain(bayes["loss"], bayes["standard_error"]), "no predictor has a lower loss"))
    return rows


def _plateau(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    plateau, escape = summary["plateau"], summary["escape"]
    rows = []
    if plateau is not None:
        where = f"from flow time {number(plateau['start'])} to {number(plateau['end'])}"
        rows.append(
            ("Plateau", f"loss {number(plateau['loss'])}", f"the loss stays near that of one head per task, {where}")
        )
    if escape is not None:
        rows.append(
            (
                "Escape",
                f"flow time {number(escape['time'])}",
                f"the loss falls 20 % below the plateau's state and ends at {number(escape['final_loss'])}",
            )
        )
    return rows


def _distance(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    distance = summary["ode_distance"]
    if distance is None:
        return []
    meaning = (
        f"largest gap to the loss of the {distance['order']}-order ODE, relative to its range, once the run is shifted "
        f"by {number(distance['time_shift'], 3)} in flow time so that both have half of the fall at the same time"
    )
    return [("Distance to the ODE", f"{number(100 * distance['loss_gap'], 3)} %", meaning)]


def _prompts_meaning(config: RunConfig) -> str:
    if config.estimator == "asymptotic":
        return "none: the loss trained on is a closed form in 1/L"
    chosen = (
        ""
        if config.gradient_error is None
        else f", for a relative error of {config.gradient_error:g} in the gradient at the start"
    )
    return f"drawn anew for every step, {whole(config.n_prompts)} each{chosen}"


def _speed(summary: Mapping[str, Any]) -> str:
    steps = f"{number(summary['steps_per_second'], 3)} steps"
    if summary["prompts_seen"]:
        steps += f" and {number(summary['prompts_seen'] / summary['wall_s'], 3)} prompts"
    return f"{steps} a second, evaluation and figures included"


def trained(found: Findings) -> Section:
    """The task, the model and the training, with the symbols that the page uses."""
    config, task = found.config, found.task
    sizes = task.support.sum(1).tolist()
    noise = f" The labels carry noise of standard deviation σ = {config.noise_std:.4g}" if config.noise_std else ""
    if noise:
        noise += ", and so does the target." if config.noisy_target else "; the target carries none."
    else:
        noise = " There is no noise."
    setting = (
        f"A prompt is a context of L = {config.context_length} examples (x, y) and a query x, whose y is to be "
        f"predicted. x holds d = {config.dim_x} Gaussian covariates, y one output for each of "
        f"{count(config.n_tasks, 'task')} (I = {config.n_tasks}). In every prompt, task i has a fresh random linear "
        f"map from the covariates that it reads, here {_sizes(sizes)}, with coefficients of variance "
        f"λ = {_signals(task.signal.tolist())}.{noise}"
    )
    model = Markup(
        "The model is one layer of softmax attention with {heads}. Head h weighs the examples by the softmax of "
        "z<sub>l</sub>ᵀ KQ<sub>h</sub> z, where z = (x, y), and adds OV<sub>h</sub> times their weighted mean to the "
        "prediction. {factored}"
    ).format(
        heads=f"{count(config.n_heads, 'head')} (H = {config.n_heads})",
        factored=Markup(
            "KQ = scale · W<sub>K</sub>ᵀ W<sub>Q</sub> and OV = W<sub>O</sub> W<sub>V</sub> are trained through their "
            "factors."
        )
        if config.parameters == "factored"
        else "KQ and OV themselves are trained.",
    )
    points = [
        Markup("<b>μ</b> and <b>ω</b>, the <i>semi-singular values</i>: in a basis shared by the heads, the diagonal "
               "of OV's label block (one μ per head and task) and of KQ's covariate block (one ω per head and "
               "covariate; where one per task is given, the mean over the covariates that the task reads)."),
        Markup("<b>Share</b> of head h in task i: μ·ω. A task's learnt share is the sum over heads: 0 when nothing is "
               "learnt, near 1 when the prediction is without bias."),
        Markup("<b>Order</b>: theory expands the loss in 1/L. <i>Leading</i> order keeps the variance that averaging "
               "over finitely many examples leaves, <i>first</i> order every term in 1/L; it is meant for L of 400 "
               "and more."),
        Markup("<b>ODE</b>: the gradient flow of the expanded loss in μ and ω, from the start of this run."),
    ]  # fmt: skip
    blocks: list[Block] = [Paragraph(setting), Paragraph(model), Paragraph(_training(config)), Points(points)]
    return Section("trained", "What was trained", blocks)


def _training(config: RunConfig) -> str:
    """Start, objective and optimiser in two sentences."""
    starts = {
        "decomposable": "a decomposable start in which head h leans towards task h mod I",
        "small": "a small, balanced, decomposable start with random positive μ and ω",
        "random": "random projections, as a new linear layer has them",
    }
    n = whole(config.n_prompts)
    estimates = {
        "sampled": f"the mean squared error on {n} drawn prompts",
        "conditional": f"the mean squared error on {n} drawn sets of covariates, with the coefficients and the label "
        "noise integrated out exactly",
        "subspace": f"the mean squared error on {n} drawn queries and what the logits read of their contexts, with "
        "all else integrated out exactly",
        "asymptotic": f"a closed form of the population loss to {config.order} order in 1/L, without prompts",
    }
    cap = (
        "" if config.step_cap is None else f", and shorter where a weight would change by more than {config.step_cap:g}"
    )
    updates = {
        "flow": f"explicit Euler steps of gradient flow, of length {config.learning_rate:g}{cap}",
        "sgd": f"gradient descent with step size {config.learning_rate:g} and momentum {config.momentum:g}",
        "adam": f"Adam with learning rate {config.learning_rate:g}",
        "adamw": f"AdamW with learning rate {config.learning_rate:g} and weight decay "
        f"{resolve_weight_decay(config.weight_decay):g}",
    }
    averaged = ", averaged over the symmetries of the task," if config.symmetric else ""
    return (
        f"Training starts from {starts[config.start]}. Every step estimates the loss by {estimates[config.estimator]}, "
        f"and follows its gradient{averaged} by {updates[config.optimizer]}."
    )


def _sizes(sizes: list[int]) -> str:
    if len(set(sizes)) == 1:
        return f"{sizes[0]} of them" + (" for each task" if len(sizes) > 1 else "")
    return ", ".join(map(str, sizes)) + " of them"


def _signals(values: list[float]) -> str:
    return f"{values[0]:.4g}" if len(set(values)) == 1 else ", ".join(f"{value:.4g}" for value in values)
