"""Likely reasons for which a run's loss differs from theory's, from the setting and the sizes."""

from __future__ import annotations

import numpy as np

from ..spectral._inputs import SHORTEST_FIRST_ORDER_CONTEXT
from ..train.wording import number, shared_heads
from .findings import Findings
from .told import told_tasks

SAME = 0.005  # relative difference of two theoretical losses that are one as far as a run can tell
AGREES = 2.0  # standard errors within which a measured value agrees with a prediction
_STILL_FALLING = 0.003  # of the loss, between the last two tenths of a run


def of_the_loss(found: Findings, gap: float, order: str, *, state: bool) -> str:
    """Why the evaluated loss lies `gap` above a theoretical one of this order: a state's, or the ODE's."""
    summary = found.summary
    if abs(gap) <= AGREES * summary["eval_loss_se"]:
        return "within the error of the evaluation"
    if state and summary["escape"] is not None and gap < 0:
        return (
            "the run has left this state, a saddle unless flows are balanced and values positive: other heads' μ turn "
            "negative and cancel the bias"
        )
    if state and None in summary["phases"]["task_emergence_end"]:
        return "not all tasks are learnt"
    reasons = []
    theory = summary["eval_loss"] - gap
    if state and found.sharing is not None and gap > 0 and found.sharing.loss > (1 + SAME) * theory:
        shared = shared_heads(found.analysis.roles.winner).items() if found.analysis.roles else ()
        told = ", ".join(f"head {head} takes {told_tasks(tasks)}" for head, tasks in shared)
        reasons.append(f"heads are shared in another way, for which theory has {number(found.sharing.loss)}: {told}")
    if _overshoots(found):
        reasons.append("steps are too long: without sampling noise the loss of a gradient flow never rises")
    if not found.config.follows_flow:
        reasons.append("Adam from a random start is not the gradient flow of this theory, and may end in other states")
    if gap > 0 and _still_falls(found):
        reasons.append("the loss still falls at the end")
    reasons.append(approximation(order, found.config.context_length))
    if gap > 0 and found.config.estimator != "asymptotic" and found.config.follows_flow:
        reasons.append("sampling noise in the gradients raises the loss a little")
    return "; ".join(reasons)


def approximation(order: str, length: int) -> str:
    """What this order in 1/L leaves out."""
    if order == "leading":
        return f"leading order leaves out further terms in 1/L, at L = {length}"
    if length < SHORTEST_FIRST_ORDER_CONTEXT:
        return f"first order is not accurate at L = {length}, below {SHORTEST_FIRST_ORDER_CONTEXT}"
    return f"first order leaves out terms in 1/L² and higher, at L = {length}"


def scatter(found: Findings) -> float:
    """Standard deviation of the recorded losses about their trend in the last tenth of the run; 0 with few records."""
    loss = found.run.metrics["loss"]
    tail = loss[-max(4, len(loss) // 10) :]
    return float(np.diff(tail).std() / np.sqrt(2)) if len(tail) > 2 else 0.0


def _still_falls(found: Findings) -> bool:
    """Whether the last tenth of the run has a lower loss than the tenth before, by more than their scatter."""
    loss = found.run.metrics["loss"]
    tenth = len(loss) // 10
    if tenth < 2:
        return False
    late, before = loss[-tenth:], loss[-2 * tenth : -tenth]
    fall = float(before.mean() - late.mean())
    return fall > max(_STILL_FALLING * float(late.mean()), 3 * scatter(found) * np.sqrt(2 / tenth))


def _overshoots(found: Findings) -> bool:
    """Whether a loss without sampling noise rises somewhere, by more than rounding."""
    config, loss = found.config, found.run.metrics["loss"]
    exact = config.estimator == "asymptotic" and config.follows_flow and config.momentum == 0
    return exact and bool((np.diff(loss) > 1e-4 * loss[1:]).any())
