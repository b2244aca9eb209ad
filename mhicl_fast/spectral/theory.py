"""What theory says about a task: limits of the flow, optima, and the Bayes risk.

For one value of ω per task, the best μ_i = ω_i / (ω_i² + φ_i E/L) gives the task loss λ_i d_i r_i / (1 + r_i), where
r_i = φ_i E / (L ω_i²) and E = exp(Σ_j d_j ω_j²) runs over what the head attends by.

* One head per task: each head minimises e^{d_i ω²} / ω² at ω = 1/√d_i, so r_i = e d_i φ_i / L.
* Single head: with q_i = d_i ω_i², v = Σ q_i and ρ_i = d_i φ_i e^v / L the loss is Σ λ_i d_i ρ_i / (q_i + ρ_i). At a
  minimum −∂/∂q_j at fixed ρ, λ_j d_j ρ_j / (q_j + ρ_j)², is one κ wherever q_j > 0, and ∂/∂v is κ Σ q_j; they balance
  where Σ q_j = 1 exactly. So q_j = max(0, √(λ_j d_j ρ_j / κ) − ρ_j) with ρ at v = 1 and κ fixed by the sum. For fixed
  v the loss is convex in q, and it tends to Σ λ_i d_i at v → 0 and v → ∞: this is the minimum.
* Best multi-head model: E_hg = exp⟨ω^h, ω^g⟩ exceeds 1 + ⟨ω^h, ω^g⟩ by a positive semidefinite matrix, so that
  r_i ≥ d_i φ_i / L, and H ≥ I + 1 heads reach it as ω → 0 with Σ_h μ_i^h = 0 and Σ_h μ_i^h ω_j^h = 0 for j ≠ i. For
  equal tasks and 2 ≤ H ≤ I the H − 1 directions left are spread evenly over the tasks: r = (d φ / L) I / (H − 1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar

from ._inputs import SHORTEST_FIRST_ORDER_CONTEXT, Floats, has_identity_covariance
from .atoms import supports_overlap
from .bayes import BayesRisk, bayes_risk

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression


_TOO_FEW_HEADS = "there are fewer heads than tasks"


@dataclass(frozen=True, eq=False)
class PredictedState:
    """A state with one value per task; losses are population losses, and `loss` includes a noisy target's noise.

    omega, mu (I,): of the head that serves the task, None where the state is only approached (ω → 0, |μ| → ∞);
    task_loss (I,); excess: their sum; loss: excess plus σ² I with a noisy target.
    """

    omega: Floats | None
    mu: Floats | None
    task_loss: Floats
    excess: float
    loss: float


@dataclass(frozen=True, eq=False)
class Theory:
    """Theory's values for a task and a number of heads; what does not apply is None, with the reason in `notes`.

    one_head_per_task and one_head_per_task_first_order: the limit of balanced flows with positive values, at leading
    and first order in 1/L. single_head: the best one-head model. best_multi_head: the infimum over models with these
    heads, never attained. The latter two at leading order. bayes: no predictor does better. ratios: of excess losses.
    """

    n_heads: int
    one_head_per_task: PredictedState | None
    one_head_per_task_first_order: PredictedState | None
    single_head: PredictedState | None
    best_multi_head: PredictedState | None
    bayes: BayesRisk
    ratios: dict[str, float]
    notes: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, as JSON takes them."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def theory(task: MultiTaskRegression, n_heads: int) -> Theory:
    """Limits, optima and Bayes risk of `task` for models with `n_heads` heads; see `Theory`.

    The closed forms hold for disjoint supports and identity covariance; the Bayes risk for any task, by a seeded Monte
    Carlo average where no closed form is known.
    """
    if isinstance(n_heads, bool) or not isinstance(n_heads, (int, np.integer)) or n_heads < 1:
        raise ValueError(f"n_heads must be a positive integer, got {n_heads!r}")
    notes: dict[str, str] = {}
    states = {
        "one_head_per_task": _one_head_per_task,
        "one_head_per_task_first_order": _one_head_per_task_first_order,
        "single_head": _single_head,
        "best_multi_head": _best_multi_head,
    }
    found: dict[str, PredictedState | None] = {}
    for name, compute in states.items():
        outcome = _inapplicable(task) or compute(task, int(n_heads))
        found[name] = outcome if isinstance(outcome, PredictedState) else None
        if isinstance(outcome, str):
            notes[name] = outcome
    bayes = bayes_risk(task)
    if bayes.excess > 0:
        notes["one_head_per_task_over_bayes"] = "about e (1 + SNR) for long contexts: large where label noise is small"
    else:
        notes["one_head_per_task_over_bayes"] = "the Bayes risk is 0: noise-free tasks, contexts that determine them"
    return Theory(int(n_heads), **found, bayes=bayes, ratios=_ratios(found, bayes), notes=notes)


def _inapplicable(task: MultiTaskRegression) -> str | None:
    if not has_identity_covariance(task):
        return "known for covariates with identity covariance only"
    if supports_overlap(task):
        return "known for disjoint supports only"
    return None


def _constants(task: MultiTaskRegression) -> tuple[Floats, Floats, Floats]:
    """d_i, λ_i, φ_i."""
    return np.asarray(task.support_sizes), np.asarray(task.signal), np.asarray(task.noise_factor)


def _state(task: MultiTaskRegression, task_loss: Floats, omega: Floats | None, mu: Floats | None) -> PredictedState:
    excess = float(task_loss.sum())
    noise = task.noise_std**2 * task.n_tasks if task.noisy_target else 0.0
    return PredictedState(omega, mu, task_loss, excess, excess + noise)


def _at_best_mu(task: MultiTaskRegression, omega: Floats, attention: float) -> PredictedState:
    """The state with these ω (I,) and the best μ, where E = `attention`."""
    size, signal, factor = _constants(task)
    variance = factor * attention / task.context_length
    total = omega**2 + variance
    return _state(task, signal * size * variance / total, omega, omega / total)


def _one_head_per_task(task: MultiTaskRegression, n_heads: int) -> PredictedState | str:
    if n_heads < task.n_tasks:
        return _TOO_FEW_HEADS
    return _at_best_mu(task, 1 / np.sqrt(_constants(task)[0]), np.e)


def _one_head_per_task_first_order(task: MultiTaskRegression, n_heads: int) -> PredictedState | str:
    if n_heads < task.n_tasks:
        return _TOO_FEW_HEADS
    if task.context_length < SHORTEST_FIRST_ORDER_CONTEXT:
        return f"the first order is not accurate at L = {task.context_length} < {SHORTEST_FIRST_ORDER_CONTEXT}"
    columns = []
    for size, signal in zip(*_constants(task)[:2], strict=True):
        columns.append(_first_order_head(float(size), float(signal), task.noise_std**2, task.context_length))
    omega, mu, task_loss = np.array(columns).T
    return _state(task, task_loss, omega, mu)


def _first_order_head(size: float, signal: float, noise: float, length: int) -> tuple[float, float, float]:
    """(ω, μ, loss) of one head on one task at first order; the loss is a parabola in μ for each ω."""

    def best(scaled: float) -> tuple[float, float]:
        """(loss, μ) at ω = scaled / √d."""
        omega = scaled / np.sqrt(size)
        a = 1 - 2 * omega**2
        kernel = a ** (-size / 2) / length  # M / L
        power = signal * size
        linear = 2 * power * omega * (kernel / a - 1)
        square = power * omega**2 * (1 - 2 * kernel / a) + kernel * (power * (1 + omega**2 / a) + noise)
        return (power - linear**2 / (4 * square), -linear / (2 * square)) if square > 0 else (-np.inf, np.inf)

    # The first minimum from ω = 0 on, which a flow from a small start meets; near the domain's edge the expansion in
    # 1/L breaks down and the expression may fall without bound.
    grid = np.linspace(0, min(1.5, np.sqrt(size / 2)), 202)[1:-1]
    losses = np.array([best(s)[0] for s in grid])
    lowest = int(np.argmax(losses[1:] > losses[:-1]))
    bracket = (grid[lowest - 1], grid[lowest + 1])
    refined = minimize_scalar(lambda s: best(s)[0], bounds=bracket, method="bounded", options={"xatol": 1e-10})
    loss, mu = best(refined.x)
    return float(refined.x / np.sqrt(size)), float(mu), float(loss)


def _single_head(task: MultiTaskRegression, n_heads: int) -> PredictedState:
    size, signal, factor = _constants(task)
    rho = size * factor * np.e / task.context_length
    reach = np.sqrt(signal * size * rho)
    # Tasks enter as the level κ^−½ rises past their ρ / √(λ d ρ); with the first k in, it is (1 + Σ ρ) / Σ √(λ d ρ).
    order = np.argsort(rho / reach)
    levels = (1 + np.cumsum(rho[order])) / np.cumsum(reach[order])
    entered = np.flatnonzero(levels > (rho / reach)[order])[-1]
    budget = np.maximum(levels[entered] * reach - rho, 0.0)
    return _at_best_mu(task, np.sqrt(budget / size), np.e)


def _best_multi_head(task: MultiTaskRegression, n_heads: int) -> PredictedState | str:
    if n_heads == 1:
        return "one head only: see single_head"
    size, signal, factor = _constants(task)
    equal = np.ptp(size) == 0 and np.ptp(signal) == 0
    if n_heads <= task.n_tasks and not equal:
        return f"no closed form for unequal tasks with {n_heads} heads; with {task.n_tasks + 1} or more there is one"
    r = size * factor / task.context_length * max(1.0, task.n_tasks / (n_heads - 1))
    return _state(task, signal * size * r / (1 + r), None, None)


def _ratios(states: dict[str, PredictedState | None], bayes: BayesRisk) -> dict[str, float]:
    """Excess of the one-head-per-task limit, and of the single head, relative to what could be reached."""
    limit, single, best = (states[name] for name in ("one_head_per_task", "single_head", "best_multi_head"))
    ratios = {}
    if limit is not None and best is not None:
        ratios["one_head_per_task_over_best_multi_head"] = limit.excess / best.excess
    if limit is not None and bayes.excess > 0:
        ratios["one_head_per_task_over_bayes"] = limit.excess / bayes.excess
    if limit is not None and single is not None:
        ratios["single_head_over_one_head_per_task"] = single.excess / limit.excess
    return ratios


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
