"""What theory says about a task: limits of the flow, optima, and the Bayes risk; the states are derived in `states`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._inputs import has_identity_covariance
from .bayes import BayesRisk, bayes_risk
from .states import (
    PredictedState,
    best_multi_head,
    best_shared_heads,
    one_head_per_task,
    one_head_per_task_first_order,
    single_head,
    single_head_first_order,
)

if TYPE_CHECKING:
    from ...tasks import MultiTaskRegression

__all__ = ["PredictedState", "Theory", "theory"]


@dataclass(frozen=True, eq=False)
class Theory:
    """Theory's values for a task and a number of heads; what does not apply is None, with the reason in `notes`.

    one_head_per_task and one_head_per_task_first_order: the limit of balanced flows with positive values from starts in
    which tasks have different best heads, at leading and first order in 1/L. single_head and single_head_first_order:
    the best one-head model. best_shared_heads: with fewer heads than tasks, the best state in which each task is served
    by one head; flows with enough heads whose tasks share best heads at the start end in such states too.
    best_multi_head: the infimum over models with these heads, never attained; where it is numerical, the best found, an
    upper bound on the infimum. All but the ones at first order are of the leading order. bayes: no predictor does
    better. ratios: of excess losses.
    """

    n_heads: int
    one_head_per_task: PredictedState | None
    one_head_per_task_first_order: PredictedState | None
    single_head: PredictedState | None
    single_head_first_order: PredictedState | None
    best_shared_heads: PredictedState | None
    best_multi_head: PredictedState | None
    bayes: BayesRisk
    ratios: dict[str, float]
    notes: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, as JSON takes them."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def theory(task: MultiTaskRegression, n_heads: int) -> Theory:
    """Limits, optima and Bayes risk of `task` for models with `n_heads` heads; see `Theory`.

    States are known for identity covariance and any supports: in closed form where these are disjoint, by minimisation
    with a proven lower bound elsewhere (`PredictedState.source`). The Bayes risk is known for any task, by a seeded
    Monte Carlo average where no closed form is.

    Raises ValueError unless n_heads is a positive integer and the task has context examples.
    """
    if isinstance(n_heads, bool) or not isinstance(n_heads, (int, np.integer)) or n_heads < 1:
        raise ValueError(f"n_heads must be a positive integer, got {n_heads!r}")
    n_heads = int(n_heads)
    states: dict[str, Callable[[], PredictedState | str]] = {
        "one_head_per_task": lambda: _with_enough_heads(task, n_heads, one_head_per_task),
        "one_head_per_task_first_order": lambda: _with_enough_heads(task, n_heads, one_head_per_task_first_order),
        "single_head": lambda: single_head(task),
        "single_head_first_order": lambda: single_head_first_order(task),
        "best_shared_heads": lambda: best_shared_heads(task, n_heads),
        "best_multi_head": lambda: best_multi_head(task, n_heads),
    }
    notes: dict[str, str] = {}
    found: dict[str, PredictedState | None] = {}
    for name, compute in states.items():
        outcome = compute() if has_identity_covariance(task) else "known for covariates with identity covariance only"
        found[name] = outcome if isinstance(outcome, PredictedState) else None
        if isinstance(outcome, str):
            notes[name] = outcome
        elif outcome.lower_bound is not None:
            gap = (outcome.loss - outcome.lower_bound) / outcome.excess
            notes[name] = f"numerical, an upper bound; proven to be at most {gap:.1e} of its excess above the best"
    bayes = bayes_risk(task)
    if bayes.excess > 0:
        notes["one_head_per_task_over_bayes"] = "about e (1 + SNR) for long contexts: large where label noise is small"
    else:
        notes["one_head_per_task_over_bayes"] = "the Bayes risk is 0: noise-free tasks, contexts that determine them"
    return Theory(n_heads, **found, bayes=bayes, ratios=_ratios(found, bayes), notes=notes)


def _with_enough_heads(
    task: MultiTaskRegression, n_heads: int, state: Callable[[MultiTaskRegression], PredictedState | str]
) -> PredictedState | str:
    return state(task) if n_heads >= task.n_tasks else "there are fewer heads than tasks"


def _ratios(states: dict[str, PredictedState | None], bayes: BayesRisk) -> dict[str, float]:
    """Excess losses relative to each other, named "what_over_what", where both are known and positive."""
    excess = {name: state.excess for name, state in states.items() if state is not None} | {"bayes": bayes.excess}
    pairs = [
        ("one_head_per_task", "best_multi_head"),
        ("one_head_per_task", "bayes"),
        ("single_head", "one_head_per_task"),
        ("single_head", "best_multi_head"),
        ("single_head", "bayes"),
        ("best_shared_heads", "best_multi_head"),
        ("best_multi_head", "bayes"),
    ]
    return {
        f"{above}_over_{below}": excess[above] / excess[below]
        for above, below in pairs
        if above in excess and excess.get(below, 0.0) > 0
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        kept = [field.name for field in fields(value) if field.metadata.get("plain", True)]
        return {name: _plain(getattr(value, name)) for name in kept}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
