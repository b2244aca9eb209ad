"""Shares learnt, the three phases, who learnt what, and the plateau of the one-head-per-task state.

The share of task i is Σ_h μ_i^h ω_i^h, with ω averaged over the covariates the task reads: 0 at a small start, 1 when
the prediction has no bias. Warm-up ends where a task's share first reaches 5 % of its final value, emergence at 95 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import brentq

from ._inputs import Floats, as_float64, check_heads, check_mu, check_positive
from .atoms import resolve_omega

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression

WARMUP_END, EMERGENCE_END = 0.05, 0.95
LEARNT_SHARE = 0.05


class Phases(NamedTuple):
    """End of warm-up and of emergence, in the units of the given times; nan where not reached.

    warmup_end is the first learnt task's, emergence_end the last learnt task's; task_* (I,) are each task's, nan for a
    task never learnt. learnt (I,) says which tasks count; levels (2, I) are the shares that mark the two crossings.
    """

    warmup_end: float
    emergence_end: float
    task_warmup_end: Floats
    task_emergence_end: Floats
    learnt: NDArray[np.bool_]
    levels: Floats


class Plateau(NamedTuple):
    """A stretch of time near a reference loss: its first and last time, and the mean loss over it."""

    start: float
    end: float
    loss: float


class Escape(NamedTuple):
    """The loss leaving a plateau downwards: the time it crosses the margin, and the loss at the end."""

    time: float
    final_loss: float


def head_shares(task: MultiTaskRegression, mu: Any, omega: Any) -> Floats:
    """μ_i^h ω_i^h with ω averaged over the task's support, (..., H, I); mu (..., H, I), omega (..., H, I or d)."""
    mu = check_mu(task, mu)
    omega, partition = resolve_omega(task, omega)
    check_heads(mu, omega)
    weights = partition.reads * partition.count  # (I, M)
    return mu * (omega @ (weights / weights.sum(1, keepdims=True)).T)


def shares(task: MultiTaskRegression, mu: Any, omega: Any) -> Floats:
    """Share learnt of each task, Σ_h μ_i^h ω_i^h, (..., I); shapes as in `head_shares`."""
    return head_shares(task, mu, omega).sum(-2)


def phases(t: Any, shares: Any) -> Phases:
    """Phases from shares (T, I) at increasing times (T,), interpolating linearly between them.

    The final value is the last share; a task whose last share is below 0.05 counts as never learnt. A share at or above
    a level from the start crosses it at t[0].
    """
    t, shares = check_series(t, as_float64("shares", shares), 2)
    final = shares[-1]
    learnt = final >= LEARNT_SHARE
    levels = np.where(learnt, np.outer([WARMUP_END, EMERGENCE_END], final), np.nan)
    times = np.stack([first_crossing(t, shares, level) for level in levels])
    return _summarise(times, learnt, levels)


def refine_crossings(coarse: Phases, t: Floats, shares_at: Callable[[Floats], Floats]) -> Phases:
    """The same phases with each crossing found on a continuous curve t -> shares (I,) rather than between samples."""
    times = np.stack([coarse.task_warmup_end, coarse.task_emergence_end])
    for (k, i), time in np.ndenumerate(times):
        if not t[0] < time:  # nan, or met at the start
            continue
        after = int(np.searchsorted(t, time))
        bracket = (t[after - 1], t[after])
        times[k, i] = locate(lambda s, i=i: shares_at(s)[i], coarse.levels[k, i], bracket)  # type: ignore[misc]
    return _summarise(times, coarse.learnt, coarse.levels)


def half_learnt(t: Any, shares: Any) -> Floats:
    """First time each task's share reaches ½, (I,), inf where it never does; what allocation predictions predict."""
    t, shares = check_series(t, as_float64("shares", shares), 2)
    crossing = first_crossing(t, shares, np.full(shares.shape[1], 0.5))
    return np.where(np.isnan(crossing), np.inf, crossing)


def observed_allocation(task: MultiTaskRegression, mu: Any, omega: Any) -> NDArray[np.intp]:
    """Which head learnt each task, (..., I): the head with the largest μ_i^h ω_i^h, or −1.

    −1 where the task is not learnt (share below 0.05) or no head holds a majority: the largest must exceed half of
    Σ_h |μ_i^h ω_i^h|. Shapes as in `head_shares`; one head may appear for several tasks.
    """
    each = head_shares(task, mu, omega)
    decided = (each.sum(-2) >= LEARNT_SHARE) & (each.max(-2) > np.abs(each).sum(-2) / 2)
    return np.where(decided, each.argmax(-2), -1)


def plateau_and_escape(
    t: Any, loss: Any, plateau_loss: float, *, tolerance: float = 0.1, margin: float = 0.2
) -> tuple[Plateau | None, Escape | None]:
    """The stay near `plateau_loss`, and the fall below it, if any, on a curve of losses (T,) at times (T,).

    The plateau is the longest stretch within `tolerance` (relative) of `plateau_loss`, provided that it lasts longer
    than the fall towards it did (from 90 % to 10 % of the initial excess): otherwise the loss was only passing by, and
    both are None. The escape is the first later time with the loss below (1 − margin) `plateau_loss`, or None.
    """
    if not 0 < tolerance < margin < 1:
        raise ValueError(f"need 0 < tolerance < margin < 1, got tolerance {tolerance}, margin {margin}")
    plateau_loss = check_positive("plateau_loss", plateau_loss)
    t, loss = check_series(t, as_float64("loss", loss), 1)
    stretch = _longest_run(np.abs(loss / plateau_loss - 1) <= tolerance, t)
    if stretch is None:
        return None, None
    first, last = stretch
    excess = -(loss - plateau_loss)[:, None]
    fall = [float(first_crossing(t, excess, excess[0] * left)[0]) for left in (0.9, 0.1)]
    if not t[last] - t[first] > fall[1] - fall[0]:
        return None, None
    mean = trapezoid(loss[first : last + 1], t[first : last + 1]) / (t[last] - t[first])
    plateau = Plateau(float(t[first]), float(t[last]), float(mean))
    escape = first_crossing(t[last:], -loss[last:, None], np.array([-(1 - margin) * plateau_loss]))[0]
    return plateau, None if np.isnan(escape) else Escape(float(escape), float(loss[-1]))


def first_crossing(t: Floats, curves: Floats, levels: Floats) -> Floats:
    """First times at which the columns of (T, I) reach the levels (I,) from below, interpolated; nan where never."""
    times = np.full(curves.shape[1], np.nan)
    for i, level in enumerate(levels):
        above = np.flatnonzero(curves[:, i] >= level)
        if not above.size:
            continue
        k = above[0]
        times[i] = t[0] if k == 0 else np.interp(level, curves[k - 1 : k + 1, i], t[k - 1 : k + 1])
    return times


def locate(curve: Callable[[Floats], Floats], level: float, bracket: tuple[float, float]) -> float:
    """Where a continuous curve crosses the level inside a bracket whose ends lie on either side of it."""
    return float(brentq(lambda s: float(curve(np.asarray(s)) - level), *bracket, xtol=1e-12 * max(map(abs, bracket))))


def _summarise(times: Floats, learnt: NDArray[np.bool_], levels: Floats) -> Phases:
    overall = (times[0, learnt].min(), times[1, learnt].max()) if learnt.any() else (np.nan, np.nan)
    return Phases(float(overall[0]), float(overall[1]), times[0], times[1], learnt, levels)


def check_series(t: Any, values: Floats, ndim: int) -> tuple[Floats, Floats]:
    """Strictly increasing times (T,) and values (T,) or (T, I), checked."""
    t = as_float64("t", t)
    if t.ndim != 1 or not t.size or values.ndim != ndim or len(values) != len(t):
        shape = "(times,)" if ndim == 1 else "(times, tasks)"
        raise ValueError(f"need t (times,) and values {shape}, got {list(t.shape)} and {list(values.shape)}")
    if (np.diff(t) <= 0).any():
        raise ValueError("t must increase strictly")
    return t, values


def _longest_run(inside: NDArray[np.bool_], t: Floats) -> tuple[int, int] | None:
    """First and last index of the run of True that covers the most time."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
    runs = edges.reshape(-1, 2) - [0, 1]
    if not runs.size:
        return None
    first, last = runs[np.argmax(t[runs[:, 1]] - t[runs[:, 0]])]
    return int(first), int(last)
