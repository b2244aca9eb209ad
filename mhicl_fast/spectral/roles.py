"""Who serves what at a state: winners, shared heads, superposition, ± pairs, zero-sum outputs, unused heads.

A head's part of a task is μ_i^h ω_i^h, its contribution to the share learnt. In the state with one head per task every
task has one part of about 1. Flows that escape it end near the best multi-head models instead: several heads serve each
task, with Σ_h μ_i^h = 0, so that what their attention adds to each prediction besides the task cancels; two heads do it
as a pair (μ, ω), (−μ, −ω), whose parts are equal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._inputs import Floats, check_heads, check_mu
from .atoms import resolve_omega
from .loss import spectral_loss
from .optima.states import one_head_per_task, shared_heads_state
from .phases import LEARNT_SHARE, head_shares, observed_allocation

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression

MATERIAL = 0.05  # of Σ_h |part|: smaller parts do not count
OPPOSITE = 0.1  # largest |μ + μ'| / (|μ| + |μ'|), and of ω, in a ± pair
ZERO_SUM = 0.1  # largest |Σ_h μ_i^h| / Σ_h |μ_i^h| of a zero-sum task
UNUSED = 0.01  # least rise of the loss, relative to the excess loss, when a head that is in use is silenced


@dataclass(frozen=True, eq=False)
class HeadRoles:
    """What the heads do at a state; tasks and heads are counted from 0.

    parts: (H, I), μ_i^h ω_i^h with ω averaged over the task's covariates. winner: for each task the head with the
    largest part, −1 where `observed_allocation` sees none. serving: for each task the heads with a material part, those
    of at least 5 % of Σ_h |part|, largest first; none for a task not learnt (share below 0.05). shared: the heads that
    won several tasks, with these. superposed: the heads with a material part of several tasks, with these.
    pairs: heads (h, g) that serve tasks, with (μ, ω)_g ≈ −(μ, ω)_h: |μ_h + μ_g| and |ω_h + ω_g| are at most a tenth of
    the summed norms. zero_sum: the tasks learnt by several heads whose |Σ_h μ_i^h| is at most a tenth of Σ_h |μ_i^h|;
    balance: that ratio for each task. removal: (H,) by how much the loss rises when a head's μ is set to 0. unused: the
    heads for which that is at most 1 % of the excess loss. cost: the loss above the state with one head per task (as if
    there were heads enough); negative where heads together do better than one each. expected_cost: what it is in theory
    when every task is served by its winner alone, 0 unless heads are shared; None where a task has no winner.
    """

    parts: Floats
    winner: list[int]
    serving: list[list[int]]
    shared: dict[int, list[int]]
    superposed: dict[int, list[int]]
    pairs: list[tuple[int, int]]
    zero_sum: list[int]
    balance: Floats
    removal: Floats
    unused: list[int]
    cost: float
    expected_cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts with string keys, as JSON takes them."""
        plain = asdict(self)
        for name in ("parts", "balance", "removal"):
            plain[name] = plain[name].tolist()
        for name in ("shared", "superposed"):
            plain[name] = {str(head): tasks for head, tasks in plain[name].items()}
        return plain | {"pairs": [list(pair) for pair in self.pairs]}


def head_roles(task: MultiTaskRegression, mu: Any, omega: Any) -> HeadRoles:
    """What each head does at the state mu (H, I), omega (H, I) with disjoint supports or (H, d); see `HeadRoles`.

    Losses are of the leading order. Raises ValueError for wrong shapes, covariances other than the identity, and values
    whose loss overflows.
    """
    mu = check_mu(task, mu)
    omega, partition = resolve_omega(task, omega)
    if mu.ndim != 2 or omega.ndim != 2:
        raise ValueError(f"mu and omega must have two dimensions, got {list(mu.shape)} and {list(omega.shape)}")
    check_heads(mu, omega)
    parts = head_shares(task, mu, omega)
    learnt = parts.sum(0) >= LEARNT_SHARE
    material = learnt & (np.abs(parts) >= MATERIAL * np.abs(parts).sum(0)) & (parts != 0)
    winner = observed_allocation(task, mu, omega)
    balance = _ratio(np.abs(mu.sum(0)), np.abs(mu).sum(0))

    silenced = np.where(np.eye(len(mu), dtype=bool)[:, :, None], 0.0, mu)  # (H, H, I): row h without head h
    loss = float(spectral_loss(task, mu, omega))
    removal = spectral_loss(task, silenced, omega) - loss
    reference = one_head_per_task(task).loss
    groups = [np.flatnonzero(winner == h) for h in range(len(mu)) if (winner == h).any()]
    expected = None if (winner < 0).any() else shared_heads_state(task, groups).loss - reference
    return HeadRoles(
        parts=parts,
        winner=winner.tolist(),
        serving=[_by_size(material[:, i], parts[:, i]) for i in range(task.n_tasks)],
        shared=_several(winner == np.arange(len(mu))[:, None]),
        superposed=_several(material),
        pairs=_opposite_pairs(np.flatnonzero(material.any(1)), mu, omega * np.sqrt(partition.count)),
        zero_sum=np.flatnonzero((balance <= ZERO_SUM) & (material.sum(0) > 1)).tolist(),
        balance=balance,
        removal=removal,
        unused=np.flatnonzero(removal <= UNUSED * (loss - task.target_noise)).tolist(),
        cost=loss - reference,
        expected_cost=expected,
    )


def _by_size(chosen: NDArray[np.bool_], values: Floats) -> list[int]:
    """The chosen indices by falling |value|."""
    heads = np.flatnonzero(chosen)
    return heads[np.argsort(-np.abs(values[heads]), kind="stable")].tolist()


def _several(does: NDArray[np.bool_]) -> dict[int, list[int]]:
    """The rows of a mask (H, I) with more than one entry, with their columns."""
    return {int(h): np.flatnonzero(row).tolist() for h, row in enumerate(does) if row.sum() > 1}


def _opposite_pairs(heads: NDArray[np.intp], mu: Floats, omega: Floats) -> list[tuple[int, int]]:
    """Those of the heads whose μ and ω are both opposite within OPPOSITE; each head in one pair, the closest first."""
    distance = np.maximum(_distance_from_opposite(mu), _distance_from_opposite(omega))
    candidates = sorted((float(distance[h, g]), int(h), int(g)) for h, g in combinations(heads, 2))
    pairs: list[tuple[int, int]] = []
    for apart, h, g in candidates:
        if apart <= OPPOSITE and not any({h, g} & set(pair) for pair in pairs):
            pairs.append((h, g))
    return sorted(pairs)


def _distance_from_opposite(rows: Floats) -> Floats:
    """|x_h + x_g| / (|x_h| + |x_g|), (H, H); 1 where both are 0."""
    norms = np.linalg.norm(rows, axis=1)
    return _ratio(np.linalg.norm(rows[:, None] + rows, axis=-1), norms[:, None] + norms)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 1.0)
