"""Where the run differs from theory: every comparison of the page, with its size and where it likely comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..train.wording import STATES, number, several, signed, uncertain
from .content import Block, Paragraph, Points, Section, Table
from .findings import Findings
from .heads import CAUSES
from .reasons import AGREES, SAME, approximation, of_the_loss, scatter

_NEAR = 0.2  # relative distance of the run's loss from a state's up to which it may be said to be near it
_SMALL = 0.1  # of the norm: a departure up to this is little
_ON_TIME = 5.0  # percent within which a predicted time agrees


class Comparison(NamedTuple):
    """A row of the table."""

    what: str
    run: str
    theory: str
    difference: str
    reason: str


def differences(found: Findings) -> Section:
    """The comparisons as a table, and what could not be compared with the reason."""
    rows = [comparison for compare in _COMPARISONS for comparison in compare(found)]
    blocks: list[Block] = [
        Paragraph(
            "All comparisons in one place. The reasons are those that are likely from the setting and from the sizes; "
            "they were not tested one by one."
        ),
    ]
    if rows:
        header = ("Comparison", "Run", "Theory", "Difference", "Likely reason")
        blocks.append(Table("Run against theory; ± is one standard error.", header, rows))
    silent = list(dict.fromkeys(_silent(found)))
    if silent:
        blocks += [Paragraph("Not compared, or to be read with care:"), Points(silent)]
    return Section("differences", "Where the run differs from theory", blocks)


def _along_the_ode(found: Findings) -> Iterator[Comparison]:
    """The loss curve, after alignment at half of its fall."""
    distance = found.summary["ode_distance"]
    if distance is None or found.ode is None:
        return
    noise = scatter(found) / float(np.ptp(found.ode[1].loss))
    reasons = []
    if found.config.n_tasks > 1:
        reasons.append(
            "tasks emerge one by one, and where the loss falls steeply a small shift of one task in time is a large gap"
        )
    if noise > 0.1 * distance["loss_gap"]:
        reasons.append(f"recorded losses are estimates that scatter by {number(100 * noise, 2)} % of the range")
    if found.config.estimator != "asymptotic":
        reasons.append(f"gradients of {found.config.n_prompts} prompts are noisy, which moves the tasks in time")
    reasons.append(approximation(distance["order"], found.config.context_length))
    yield Comparison(
        "Loss along the run",
        f"shifted by {number(distance['time_shift'], 3)} in flow time",
        f"{distance['order']}-order ODE",
        f"at most {number(100 * distance['loss_gap'], 3)} % of the range of losses",
        "; ".join(reasons),
    )


def _final_loss(found: Findings) -> Iterator[Comparison]:
    """The evaluated loss against the states that the flow comes to, and against the ODE's end where it is elsewhere."""
    theory = found.summary["theory"]
    heads, tasks = found.config.n_heads, found.config.n_tasks
    kind = "one_head_per_task" if heads >= tasks else "best_shared_heads" if heads > 1 else "single_head"
    for name, order in ((f"{kind}_first_order", "first"), (kind, "leading")):
        ode, state = found.summary["ode"][order], theory.get(name)
        if state is not None:
            yield _loss(found, f"Final loss, against {STATES[name]}", state["loss"], order, state=True)
        if ode is not None and (state is None or abs(ode["final_loss"] - state["loss"]) > SAME * state["loss"]):
            yield _loss(found, f"Final loss, against the {order}-order ODE at the same time", ode["final_loss"], order)
    sharing, best = found.sharing, theory.get(kind)
    if sharing is not None and (best is None or sharing.loss > (1 + SAME) * best["loss"]):
        yield _loss(found, "Final loss, against heads shared as in this run", sharing.loss, "leading", state=True)


def _loss(found: Findings, what: str, theory: float, order: str, *, state: bool = False) -> Comparison:
    loss, error = found.summary["eval_loss"], found.summary["eval_loss_se"]
    reason = of_the_loss(found, loss - theory, order, state=state)
    return Comparison(what, uncertain(loss, error), number(theory), found.against(theory), reason)


def _winners(found: Findings) -> Iterator[Comparison]:
    predicted, observed = found.summary["predicted_allocation"], found.summary["allocation"]
    if predicted is None or max(predicted) < 0:
        return
    right = sum(p == o for p, o in zip(predicted, observed))
    reasons = []
    if min(observed) < 0:
        end = f"at flow time {number(found.summary['flow_time'])}"
        early = any(time and time > found.summary["flow_time"] for time in found.summary["predicted_times"])
        reasons.append(f"not learnt by the end, {end}" + (", before a predicted time" if early else ""))
    if any(0 <= o != p >= 0 for p, o in zip(predicted, observed)):
        noise = "" if found.config.estimator == "asymptotic" else "sampling noise, "
        reasons.append(f"{noise}finite L, and what a head learnt before decide between heads that start alike")
    reason = "; ".join(reasons) or "none needed: the start decides"
    run, theory = (", ".join(str(head) if head >= 0 else "–" for head in side) for side in (observed, predicted))
    yield Comparison("Winner of each task", run, theory, f"{right} of {len(observed)} as predicted", reason)


def _times(found: Findings) -> Iterator[Comparison]:
    predicted = found.summary["predicted_times"] or []
    pairs = [(p, o) for p, o in zip(predicted, found.half_learnt.tolist()) if p and np.isfinite(o)]
    if not pairs:
        return
    apart = max((100 * (o / p - 1) for p, o in pairs), key=abs)
    yield Comparison(
        "Flow time at which half of a task is learnt",
        several([o for _, o in pairs]),
        several([p for p, _ in pairs]),
        f"{signed(apart)} % at most",
        _why_apart(found, apart),
    )


def _why_apart(found: Findings, percent: float) -> str:
    """Why a task is learnt so many percent later than predicted."""
    reason = "the prediction takes each task alone and at leading order"
    if percent > _ON_TIME:
        noise = "" if found.config.estimator == "asymptotic" else " and sampling noise"
        tasks = "heads that have learnt another task, " if found.config.n_tasks > 1 else ""
        reason += f"; {tasks}steps of finite length, finite L{noise} delay the run"
    elif percent < -_ON_TIME:
        reason += "; what it leaves out hastens the run"
    return reason


def _final_values(found: Findings) -> Iterator[Comparison]:
    """ω√d and μ of the heads that took the tasks, against the state's, up to the sign that both share."""
    if found.reference is None or found.reference[1].get("omega") is None or not found.owners:
        return
    name, state = found.reference
    if found.summary["escape"] is not None:
        reason = "the run has left this state"
    elif abs(found.summary["eval_loss"] - state["loss"]) > _NEAR * state["loss"]:
        reason = f"the run is not at this state: its loss is {found.against(state['loss'])}"
    else:
        reason = "near the state the loss hardly changes while μ·ω stays, so values differ by more than losses do; "
        reason += approximation("first" if name.endswith("first_order") else "leading", found.config.context_length)
    tasks = [task for task, _ in found.owners]
    root = np.sqrt(found.task.support_sizes.numpy())
    for symbol, run, all_theory in (
        ("ω√dᵢ", found.owned_values[0], root * np.array(state["omega"])),
        ("μ", found.owned_values[1], np.array(state["mu"])),
    ):
        theory = all_theory[tasks]
        yield Comparison(
            f"{symbol} of each task's head, against {STATES[name]}",
            several(run, 3),
            several(theory, 3),
            f"{number(100 * np.abs(run / theory - 1).max(), 2)} % at most",
            reason,
        )


def _attention(found: Findings) -> Iterator[Comparison]:
    measured, predicted = found.analysis.examples, found.analysis.attention
    if predicted is None:
        return
    gaps = measured.mean - predicted.examples
    worst = int(np.argmax(np.abs(gaps) / predicted.examples))
    gap, error = float(gaps[worst]), float(measured.standard_error[worst])
    apart = 100 * gap / float(predicted.examples[worst])
    if abs(gap) <= AGREES * error:
        reason = "within the error of the measurement"
    elif predicted.regime[worst] != "covers":
        reason = "attention is past ½ log L, where the prediction is a lower estimate"
    elif found.analysis.departures["kq_labels"] > 0:
        size = found.analysis.departures["kq_labels"]
        much = "a little" if size <= _SMALL else f"too, with {number(size, 3)} of the norm of KQ"
        reason = f"logits read labels {much}, which the prediction leaves out; a finite context makes it low"
    else:
        reason = "a finite context makes the prediction low"
    yield Comparison(
        f"Effective examples (head {worst}, the farthest)",
        uncertain(float(measured.mean[worst]), error),
        number(float(predicted.examples[worst]), 3),
        f"{signed(apart)} %",
        reason,
    )


def _lengths(found: Findings) -> Iterator[Comparison]:
    curve = found.analysis.lengths
    for order, predicted in found.analysis.predicted_lengths.items():
        apart = curve.loss / predicted.loss - 1
        worst = int(np.argmax(np.abs(apart)))
        length, error = int(curve.lengths[worst]), float(curve.standard_error[worst])
        gap = float(curve.loss[worst] - predicted.loss[worst])
        near = abs(gap) <= AGREES * error
        yield Comparison(
            f"Loss at other lengths, {order} order (L′ = {length}, the farthest)",
            uncertain(float(curve.loss[worst]), error),
            number(float(predicted.loss[worst])),
            f"{signed(100 * float(apart[worst]))} %",
            "within the error of the measurement" if near else approximation(order, length),
        )


def _decomposable(found: Findings) -> Iterator[Comparison]:
    departures = found.analysis.departures
    worst = max(departures, key=lambda cause: departures[cause])
    if departures[worst] == 0:
        return
    yield Comparison(
        "Distance from decomposable weights",
        f"{number(found.analysis.decomposition.residual, 3)} of the norm",
        "0",
        f"mostly {CAUSES[worst][0]}",
        _why_not_decomposable(found, worst),
    )


def _why_not_decomposable(found: Findings, cause: str) -> str:
    """Where the largest departure comes from: the setting, the start, or noise, by its size."""
    config = found.config
    if config.covariance != "identity":
        return "correlated covariates: the flow does not keep weights diagonal in one basis"
    if found.analysis.decomposition.residual > _SMALL:
        random = ": the start was random, and not every run becomes decomposable" if config.start == "random" else ""
        return f"too large for noise{random}{_ENDINGS.get(cause, '')}"
    if config.estimator == "asymptotic":
        noise = "rounding and steps of finite length"
    else:
        noise = "sampling noise of the gradients"
    if config.start == "random":
        return f"what is left of the random start, and {noise}"
    return noise


_ENDINGS = {
    "kq_antisymmetric": "; two heads of the same sign may end with opposite antisymmetric parts, which cancel",
    "kq_labels": "; some runs keep logits that read labels",
}


def _silent(found: Findings) -> Iterator[str]:
    """What theory does not say about this run."""
    summary = found.summary
    for note in summary["ode"]["notes"]:
        yield f"ODE: {note}."
    if summary["predicted_times"] is None and summary.get("prediction_note"):
        yield f"Winners and times: {summary['prediction_note']}."
    if found.config.n_heads < found.config.n_tasks:
        yield "One head per task: there are fewer heads than tasks, so some head has to serve several."
    for name, reason in found.analysis.notes.items():
        yield f"{name[0].upper()}{name[1:].replace('_', ' ')}: {reason}."


_COMPARISONS = (
    _along_the_ode,
    _final_loss,
    _winners,
    _times,
    _final_values,
    _attention,
    _lengths,
    _decomposable,
)
