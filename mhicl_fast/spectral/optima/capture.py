"""The best readout of given heads, and the best heads: a small convex problem behind every optimum of `states`.

At leading order a task's loss has a meaning in the space of functions with kernel exp⟨x, y⟩, where ⟨·,·⟩ runs over the
covariates: f_i = Σ_h μ_i^h exp⟨ω^h, ·⟩ has ‖f_i‖² = Σ_hg μ_i^h μ_i^g E_hg and gradient Σ_h μ_i^h ω^h at 0, so the loss
is λ_i ‖1 − ∇f_i(0)‖² over S_i, plus (λ_i d_i φ_i / L) ‖f_i‖². With ρ_i = d_i φ_i / L, V the span of the heads'
functions and Γ (d, d) what the projection onto V leaves of the linear functions, the best μ_i gives

    loss_i = λ_i 1_iᵀ (Id + Γ_ii / ρ_i)⁻¹ 1_i ≥ λ_i d_i ρ_i / (ρ_i + g_i),   g_i = 1_iᵀ Γ 1_i / d_i,

where 1_i is the indicator of S_i, Γ_ii the block on it, and equality holds where Γ_ii 1_i = g_i 1_i. It is convex in Γ
and falls with it. Which Γ can heads have?

* One head: Γ = e^−v ω ωᵀ with v = |ω|², at best u uᵀ / e with |u| = 1, at v = 1.
* H ≥ 2 heads: 0 ⪯ Γ ⪯ Id and tr Γ ≤ H − 1. For two heads with Gram matrix (a c; c b) of ω, tr Γ ≤ 1 says
  ψ(a) ψ(b) − a b ≥ ψ(c)² − c², ψ(x) = eˣ − x: ψ has no negative coefficients, so ψ(a) ψ(b) ≥ ψ(√ab)², |c| ≤ √ab, and
  ψ(x)² − x² increases. Each further head adds one dimension to V, and at most 1 to the trace.
* As ω → 0 along directions a^h with Σ_h μ_i^h = 0, V tends to the constants and the linear functions ⟨a^h − a^1, ·⟩:
  any projection Γ of rank H − 1 is approached, with ω → 0 and |μ| → ∞.

So minimise over Γ = strength · (projection of some rank): (1/e, 1) for one head, (1, H − 1) for more. With disjoint
supports only the g_i matter, and a projection of rank k can have any diagonal in [0, 1] of sum k (Schur–Horn), so
min Σ_i λ_i d_i ρ_i / (ρ_i + g_i) over that simplex, water filling, is exact. A rank that spans all the 1_i gives
g_i = strength, exact too. Elsewhere the projection is found numerically, and linearising the convex problem on all Γ of
that trace with 0 ⪯ Γ ⪯ strength · Id gives a lower bound for every choice of heads. The Γ of one head is best of this
form. That of more heads need not be: heads that meet away from 0 can do better than any projection (`meeting_heads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize

from .._inputs import Floats
from ..atoms import atoms

if TYPE_CHECKING:
    from ...tasks import MultiTaskRegression

_STARTS = 6
_ITERATIONS = {"minimise": 300, "bound": 200}
TOLERANCE = 1e-9  # relative gap between a loss and its lower bound that counts as none


class Optimum(NamedTuple):
    """task_loss (I,), a projection of the least loss found as orthonormal columns (M, rank) or None where only its
    diagonal matters, its captures g (I,), where the value comes from, and a lower bound on the sum of the losses."""

    task_loss: Floats
    directions: Floats | None
    captures: Floats | None
    source: str
    lower_bound: float


@dataclass(frozen=True, eq=False)
class CaptureProblem:
    """Tasks of given λ (I,) and ρ (I,) on atoms of n covariates each; indicators (I, M) holds √n where a task reads.

    The coordinates are √n_m ω_m, in which ⟨·,·⟩ is the plain product.
    """

    indicators: Floats
    signal: Floats
    rho: Floats

    @classmethod
    def of(cls, task: MultiTaskRegression, members: Sequence[int] | None = None) -> CaptureProblem:
        """The problem of some of the task's outputs (all by default), on the atoms of their own supports."""
        chosen = np.arange(task.n_tasks) if members is None else np.asarray(members, dtype=np.intp)
        partition = atoms(np.asarray(task.support)[chosen])
        read = partition.reads.any(0)
        indicators = partition.reads[:, read].astype(np.float64) * np.sqrt(partition.count[read])
        return cls(indicators, np.asarray(task.signal)[chosen], finite_context_noise(task)[chosen])

    @property
    def disjoint(self) -> bool:
        """Whether no atom is read by two of the tasks."""
        return bool(((self.indicators > 0).sum(0) == 1).all())

    def minimise(self, rank: int, strength: float) -> Optimum:
        """The least loss over Γ = strength · (projection of this rank), exact where the source is "closed form"."""
        sizes = np.square(self.indicators).sum(1)
        weights = self.signal * sizes * self.rho
        basis = _row_space(self.indicators)
        if self.disjoint or rank >= basis.shape[1]:
            total = strength * min(rank, len(sizes)) if self.disjoint else strength * len(sizes)
            captures = water_filling(weights, self.rho, total, strength)
            task_loss = weights / (self.rho + captures)
            return Optimum(task_loss, None if self.disjoint else basis, captures, "closed form", float(task_loss.sum()))
        return self._search(rank, strength)

    def losses(self, gamma: Floats) -> tuple[Floats, Floats]:
        """The tasks' losses (I,) at Γ (M, M), and −∂(their sum)/∂Γ, (M, M)."""
        reads = self.indicators > 0
        blocks = reads[:, :, None] * gamma * reads[:, None, :] / self.rho[:, None, None]
        solved = np.linalg.solve(np.eye(len(gamma)) + blocks, self.indicators[..., None])[..., 0] * reads
        task_loss = self.signal * np.sum(self.indicators * solved, 1)
        return task_loss, np.einsum("i,im,in->mn", self.signal / self.rho, solved, solved)

    def lower_bound(self, gamma: Floats, rank: int, strength: float) -> float:
        """A number below the loss at every 0 ⪯ Γ' ⪯ strength · Id of trace ≤ strength · rank.

        The loss is convex, so loss(Γ) − ⟨slope, Γ' − Γ⟩ is below it, least at the slope's leading eigenvectors. Steps
        towards these (Frank and Wolfe's) raise the bound.
        """
        best = -np.inf
        for step in range(_ITERATIONS["bound"]):
            task_loss, slope = self.losses(gamma)
            values, vectors = np.linalg.eigh(slope)
            loss = float(task_loss.sum())
            best = max(best, loss - float(strength * values[-rank:].sum() - np.sum(slope * gamma)))
            if best > (1 - TOLERANCE) * loss:
                break
            leading = vectors[:, -rank:]
            gamma = gamma + 2 / (step + 3) * (strength * leading @ leading.T - gamma)
        return best

    def _search(self, rank: int, strength: float) -> Optimum:
        """Minimisation over the columns B (M, rank) that span the projection, from several starts."""
        n_atoms = self.indicators.shape[1]

        def value_and_gradient(flat: Floats) -> tuple[float, Floats]:
            # B = Q T: Γ = strength Q Qᵀ moves by the symmetric part of 2 strength (Id − Q Qᵀ) dB T⁻¹ Qᵀ.
            q, t = np.linalg.qr(flat.reshape(n_atoms, rank))
            task_loss, slope = self.losses(strength * q @ q.T)
            pulled = slope @ q - q @ (q.T @ slope @ q)
            return float(task_loss.sum()), (-2 * strength * np.linalg.solve(t, pulled.T).T).reshape(-1)

        _, slope = self.losses(strength * rank / n_atoms * np.eye(n_atoms))
        rng = np.random.default_rng(0)
        starts = [np.linalg.eigh(slope)[1][:, -rank:]]
        starts += [rng.normal(size=(n_atoms, rank)) for _ in range(_STARTS - 1)]
        options = {"maxiter": _ITERATIONS["minimise"], "ftol": 1e-14, "gtol": 1e-10}
        found = [
            minimize(value_and_gradient, start.reshape(-1), jac=True, method="L-BFGS-B", options=options)
            for start in starts
        ]
        best = min(found, key=lambda result: float(result.fun))
        directions = np.linalg.qr(best.x.reshape(n_atoms, rank))[0]
        gamma = strength * directions @ directions.T
        task_loss, _ = self.losses(gamma)
        bound = min(self.lower_bound(gamma, rank, strength), float(task_loss.sum()))
        return Optimum(task_loss, directions, None, "numerical", bound)


def best_attention(task: MultiTaskRegression, group: Sequence[int]) -> tuple[Floats, str, float]:
    """The best ω (d,) of one head for these tasks, its source, and a lower bound on their loss."""
    optimum = CaptureProblem.of(task, group).minimise(1, 1 / np.e)
    reads = np.asarray(task.support)[list(group)]
    if optimum.directions is None:  # Γ = u uᵀ / e, so that d_i ω_i² = e g_i
        omega = np.sqrt(np.e * optimum.captures / reads.sum(1)) @ reads  # type: ignore[operator]
        return omega, optimum.source, optimum.lower_bound
    partition = atoms(reads)
    read = partition.reads.any(0)
    values = np.zeros(partition.count.shape)
    values[read] = optimum.directions[:, 0] / np.sqrt(partition.count[read])
    omega = partition.expand(values)
    return omega * np.copysign(1.0, omega.sum()), optimum.source, optimum.lower_bound


def finite_context_noise(task: MultiTaskRegression) -> Floats:
    """ρ_i = d_i φ_i / L, (I,); ValueError without context examples."""
    if task.context_length < 1:
        raise ValueError(f"theory needs a context of at least 1 example, got {task.context_length}")
    return np.asarray(task.support_sizes) * np.asarray(task.noise_factor) / task.context_length


def water_filling(weights: Floats, rho: Floats, total: float, cap: float) -> Floats:
    """The g (I,) in [0, cap] of the given sum that minimise Σ_i weights_i / (ρ_i + g_i).

    Where 0 < g_i < cap all −∂/∂g_i are one 1/t², so g_i = clip(t √weights_i − ρ_i, 0, cap): the sum is piecewise linear
    in t, with corners where a g_i leaves 0 or meets its cap.
    """
    root = np.sqrt(weights)

    def at(t: Floats) -> Floats:
        return np.clip(t[..., None] * root - rho, 0.0, cap)

    corners = np.sort(np.concatenate([rho / root, (rho + cap) / root]))
    return at(np.interp(total, at(corners).sum(-1), corners))


def _row_space(rows: Floats) -> Floats:
    """Orthonormal columns that span the rows, (M, rank)."""
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    return vectors[values > 1e-10 * values[0]].T
