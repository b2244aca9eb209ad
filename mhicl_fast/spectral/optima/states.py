"""States of the loss that theory knows: limits of flows, optima, and what sharing heads costs.

In each of these states a task is read by one head: the other heads' μ_i is 0. With the attention E = exp |ω^h|² of that
head and ρ_i = d_i φ_i / L the best μ_i = Σ_S ω / (Σ_S ω² + ρ_i E), sums over the covariates the task reads, and leaves
the loss λ_i (d_i − (Σ_S ω)² / (Σ_S ω² + ρ_i E)).

* One head per task: e^{d_i ω²} / ω² is least at ω = 1/√d_i, so E = e, r_i = e ρ_i and loss_i = λ_i d_i r_i / (1 + r_i).
  Other heads' ω^h meet task i at −∂Loss/∂μ_i^h ∝ −(e^{x−1} − x) ≤ 0, x = |S_i ∩ S_h| / √(d_i d_h): stable under
  balanced flows for values ≥ 0, whether supports overlap or not. Flows can end elsewhere: starts in which tasks have
  the same best head end with shared heads.
* Shared heads: a head that serves several tasks has one attention budget |ω|² = 1 for them (`capture`): with disjoint
  supports r_i = e ρ_i / q_i, where the q_i = d_i ω_i² of its tasks sum to 1.
* Single head: shared by all tasks. No one-head model is better.
* Best multi-head: no state of the flow. Where it is in closed form it is the infimum over all models with H ≥ 2 heads,
  approached as ω → 0 and |μ| → ∞ and never attained. Where it is numerical (some supports overlap) it is the best found
  among limits ω → 0 and heads that meet elsewhere (`meeting_heads`): an upper bound on the infimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._inputs import SHORTEST_FIRST_ORDER_CONTEXT, Floats, require_identity_covariance
from .capture import TOLERANCE, CaptureProblem, best_attention, finite_context_noise
from .first_order import first_order_head
from .meeting_heads import least_of_meeting_heads

if TYPE_CHECKING:
    from ...tasks import MultiTaskRegression

MOST_TASKS = {"disjoint": 8, "overlapping": 4}  # up to which groupings of unequal tasks are enumerated


class HeadValues(NamedTuple):
    """A state of all heads, as `spectral_loss` takes it: mu (H, I), omega (H, d)."""

    mu: Floats
    omega: Floats


@dataclass(frozen=True, eq=False)
class PredictedState:
    """A state with one head for each task; losses are population losses, and `loss` includes a noisy target's noise.

    omega, mu (I,): of the head that serves the task, ω averaged over the covariates it reads; head (I,): that head.
    All three are None for the best multi-head, a limit in which |μ| → ∞ (in closed form with ω → 0). task_loss (I,);
    excess: their sum; loss: excess plus σ² I with a noisy target. source: "closed form", or "numerical": found by
    minimisation, an upper bound on the best of its kind. lower_bound: a proven lower bound on that best loss where it
    is numerical and a bound is known (of shared heads: for the same groups), else None. values: the whole state, not
    part of `Theory.to_dict`.
    """

    omega: Floats | None
    mu: Floats | None
    task_loss: Floats
    excess: float
    loss: float
    source: str
    lower_bound: float | None
    head: NDArray[np.intp] | None
    values: HeadValues | None = field(default=None, repr=False, metadata={"plain": False})


def one_head_per_task(task: MultiTaskRegression) -> PredictedState:
    """The leading-order state with I heads, one for each task."""
    reads = np.asarray(task.support, dtype=np.float64)
    return _served(task, np.arange(task.n_tasks), reads / np.sqrt(reads.sum(1, keepdims=True)))


def one_head_per_task_first_order(task: MultiTaskRegression) -> PredictedState | str:
    """The same state at first order in 1/L, or why it is not known."""
    return _first_order(task, [[i] for i in range(task.n_tasks)])


def single_head(task: MultiTaskRegression) -> PredictedState:
    """The best one-head model at leading order: all tasks share its attention."""
    return shared_heads_state(task, [range(task.n_tasks)])


def single_head_first_order(task: MultiTaskRegression) -> PredictedState | str:
    """The state of `single_head` at first order in 1/L, or why it is not known."""
    return _first_order(task, [range(task.n_tasks)])


def shared_heads_state(task: MultiTaskRegression, groups: Sequence[Iterable[int]]) -> PredictedState:
    """The leading-order state in which head h serves the tasks in groups[h] and attends as is best for them alone.

    Its excess over that of `one_head_per_task` is what the sharing costs. Any supports; a group whose supports overlap
    is optimised numerically, unless they are all the same. Raises ValueError unless every task is in one group, and for
    covariances other than the identity.
    """
    require_identity_covariance(task, "the state with shared heads")
    members = [[int(i) for i in group] for group in groups]
    if sorted(i for group in members for i in group) != list(range(task.n_tasks)) or not all(members):
        raise ValueError(f"groups must hold each of the {task.n_tasks} tasks once and none be empty, got {members}")
    head = np.empty(task.n_tasks, dtype=np.intp)
    omega = np.zeros((len(members), task.dim_x))
    sources, bounds = [], []
    for h, group in enumerate(members):
        head[group] = h
        omega[h], source, bound = best_attention(task, group)
        sources.append(source)
        bounds.append(bound)
    if set(sources) == {"closed form"}:
        return _served(task, head, omega)
    return _served(task, head, omega, "numerical", sum(bounds))


def best_shared_heads(task: MultiTaskRegression, n_heads: int) -> PredictedState | str:
    """The best state of this kind with fewer heads than tasks, or why it is not known.

    Equal tasks with disjoint supports are spread evenly (a group's loss is convex in its size). Others: all groupings
    are tried for up to MOST_TASKS tasks.
    """
    if n_heads == 1:
        return "one head serves all tasks: see single_head"
    if n_heads >= task.n_tasks:
        return "there is a head for every task: see one_head_per_task"
    problem = CaptureProblem.of(task)
    if problem.disjoint and np.ptp(np.asarray(task.support_sizes)) == np.ptp(np.asarray(task.signal)) == 0:
        return shared_heads_state(task, np.array_split(np.arange(task.n_tasks), n_heads))
    most = MOST_TASKS["disjoint" if problem.disjoint else "overlapping"]
    if task.n_tasks > most:
        return f"the best of all groupings is looked for among at most {most} such tasks, there are {task.n_tasks}"
    return shared_heads_state(task, _best_grouping(task, n_heads))


def best_multi_head(task: MultiTaskRegression, n_heads: int) -> PredictedState | str:
    """The infimum of the leading-order loss over models with `n_heads` ≥ 2 heads, or why it does not apply.

    Where the source is "numerical", the best found: an upper bound on the infimum, which lies above lower_bound.
    """
    if n_heads == 1:
        return "one head only: see single_head"
    problem = CaptureProblem.of(task)
    limit = problem.minimise(n_heads - 1, 1.0)
    if limit.directions is None or limit.source == "closed form":
        return _state(task, limit.task_loss, limit.source, None)
    task_loss = limit.task_loss
    if limit.lower_bound < (1 - TOLERANCE) * task_loss.sum():
        task_loss = least_of_meeting_heads(problem, limit.directions)
    return _state(task, task_loss, limit.source, min(limit.lower_bound, float(task_loss.sum())))


def _best_grouping(task: MultiTaskRegression, n_heads: int) -> list[list[int]]:
    """The partition of the tasks into `n_heads` groups with the least sum of losses; sets of tasks are bit masks."""
    everything = (1 << task.n_tasks) - 1

    def members(mask: int) -> list[int]:
        return [i for i in range(task.n_tasks) if mask >> i & 1]

    @cache
    def loss(mask: int) -> float:
        return float(CaptureProblem.of(task, members(mask)).minimise(1, 1 / np.e).task_loss.sum())

    @cache
    def best(mask: int, heads: int) -> tuple[float, tuple[int, ...]]:
        if heads == 1:
            return loss(mask), (mask,)
        first, candidates = mask & -mask, []
        rest = others = mask ^ first
        while others:  # the first task's group leaves `others`, any non-empty part of the rest
            if others.bit_count() >= heads - 1:
                left = best(others, heads - 1)
                candidates.append((loss(mask ^ others) + left[0], (mask ^ others, *left[1])))
            others = (others - 1) & rest
        return min(candidates)

    return [members(mask) for mask in best(everything, n_heads)[1]]


def _first_order(task: MultiTaskRegression, groups: Sequence[Sequence[int]]) -> PredictedState | str:
    """The first-order state in which head h serves the tasks in groups[h]."""
    if task.context_length < SHORTEST_FIRST_ORDER_CONTEXT:
        return f"the first order is not accurate at L = {task.context_length} < {SHORTEST_FIRST_ORDER_CONTEXT}"
    head, task_loss = np.empty(task.n_tasks, dtype=np.intp), np.empty(task.n_tasks)
    values = HeadValues(np.zeros((len(groups), task.n_tasks)), np.zeros((len(groups), task.dim_x)))
    for h, group in enumerate(groups):
        found = first_order_head(task, group)
        if found is None:
            return f"the first-order loss has no minimum in ω for task {', '.join(map(str, group))}"
        head[group] = h
        values.mu[h, group], values.omega[h], task_loss[group] = found.mu, found.omega, found.task_loss
    return _state(task, task_loss, "numerical", None, head, values)


def _served(
    task: MultiTaskRegression,
    head: NDArray[np.intp],
    omega: Floats,
    source: str = "closed form",
    bound: float | None = None,
) -> PredictedState:
    """The state where task i is read by head[i] alone with the best μ_i, heads attending by omega (H, d)."""
    reads = np.asarray(task.support)
    own = omega[head] * reads  # (I, d)
    attention = np.exp(np.square(omega).sum(1))[head] * finite_context_noise(task)
    mu = own.sum(1) / (np.square(own).sum(1) + attention)
    task_loss = np.asarray(task.signal) * (np.sum(reads * np.square(1 - mu[:, None] * own), 1) + mu**2 * attention)
    values = HeadValues(np.zeros((len(omega), task.n_tasks)), omega)
    values.mu[head, np.arange(task.n_tasks)] = mu
    return _state(task, task_loss, source, bound, head, values)


def _state(
    task: MultiTaskRegression,
    task_loss: Floats,
    source: str,
    bound: float | None,
    head: NDArray[np.intp] | None = None,
    values: HeadValues | None = None,
) -> PredictedState:
    excess = float(task_loss.sum())
    lowest = None if bound is None else bound + task.target_noise
    omega = mu = None
    if head is not None and values is not None:
        reads, tasks = np.asarray(task.support), np.arange(task.n_tasks)
        omega = np.sum(values.omega[head] * reads, 1) / reads.sum(1)
        mu = values.mu[head, tasks]
    return PredictedState(omega, mu, task_loss, excess, excess + task.target_noise, source, lowest, head, values)
