"""The Lasso for many prompts and any number of penalties at once, exactly, by following the path of solutions.

The minimiser of ½βᵀGβ − b·β + λ‖β‖₁, with G = XᵀX/n and b = Xᵀy/n, is piecewise linear in λ. It is 0 down to
λ = max |b|. From there on, with A the coefficients that are not 0 and s the signs of what their gradient is,

    g = b − Gβ,  g_A = λ s_A,  |g_j| ≤ λ elsewhere,   dβ_A/dλ = −G_AA⁻¹ s_A,  dg_j/dλ = G_jA G_AA⁻¹ s_A,

until a coefficient joins (|g_j| reaches λ) or leaves (β_j reaches 0). (Osborne, Presnell and Turlach, 2000; Efron,
Hastie, Johnstone and Tibshirani, 2004.) The tableau of G with A swept in, −G_AA⁻¹ and G_jA G_AA⁻¹, changes by one
matrix of rank one at each such event, so all prompts take their next event together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .eigenbasis import check_examples, moments

_MOST_EVENTS = 50  # per coefficient; paths have about two
_DEPENDENT = 1e-10  # the share of a column's square beyond which others span it


def lasso(x: Tensor, y: Tensor, penalties: Tensor | float) -> Tensor:
    """argmin (1/2n) Σ_i (y_i − β·x_i)² + λ‖β‖₁ for each penalty λ ≥ 0.

    Args:
        x: (N, n, d) covariates, float32 or float64; computed in float64.
        y: (N, n) labels.
        penalties: λ, a number, (P,) for all prompts, or (P, N). At 0 it is the end of the path: least squares, and of
            those where many coefficients fit the least ℓ₁ norm.

    Returns (N, d) for a number, else (P, N, d).

    Raises ValueError or TypeError for other shapes and types and for negative penalties; RuntimeError where a path has
    no end in sight.
    """
    check_examples(x, y)
    wanted = torch.as_tensor(penalties, dtype=torch.float64, device=x.device)
    if wanted.dim() > 2 or (wanted.dim() == 2 and wanted.shape[1] != len(x)) or not bool((wanted >= 0).all()):
        raise ValueError(f"penalties must be at least 0, a number, (P,) or (P, {len(x)}), got {penalties}")
    each = wanted if wanted.dim() == 2 else wanted.reshape(-1, 1).expand(-1, len(x))
    found = x.new_zeros((len(x), len(each), x.shape[2]), dtype=torch.float64)
    if found.numel():
        _follow(x.double(), y.double(), each.T, found)
    solutions = found.to(x.dtype).transpose(0, 1)
    return solutions[0] if wanted.dim() == 0 else solutions


class _State(NamedTuple):
    """Where prompts are on their paths; those that have arrived are left out."""

    prompt: Tensor  # (M,) which
    penalties: Tensor  # (M, P)
    squares: Tensor  # (M, d) G_jj
    tableau: Tensor  # (M, d, d)
    signs: Tensor  # (M, d) s, 0 where not active
    beta: Tensor  # (M, d)
    gradient: Tensor  # (M, d) g
    level: Tensor  # (M,) λ

    def only(self, chosen: Tensor) -> _State:
        """Those of the prompts that are chosen by a mask."""
        return self if bool(chosen.all()) else _State(*(part[chosen] for part in self))

    def toggled(self, which: Tensor) -> _State:
        """Coefficient `which` (M,) of each prompt becomes active, or stops being so."""
        row = torch.arange(len(which), device=which.device)
        joins = self.signs[row, which] == 0
        signs, beta = self.signs.clone(), self.beta.clone()
        signs[row, which] = torch.where(joins, self.gradient[row, which].sign(), 0.0)
        beta[row, which] = 0
        return self._replace(signs=signs, beta=beta, tableau=_swept(self.tableau, which, joins))


def _swept(tableau: Tensor, which: Tensor, joins: Tensor) -> Tensor:
    """Coefficient k swept into the tableau M where it joins, else out of it: with v its column and p = v_k,
    M − vvᵀ/p elsewhere, ±v/p in its row and column, −1/p at their crossing."""
    row = torch.arange(len(which), device=which.device)
    column = tableau[row, which]
    pivot = column[row, which]
    scaled = column / pivot[:, None]
    swept = tableau - column[:, :, None] * scaled[:, None, :]
    swept[row, which] = swept[row, :, which] = torch.where(joins[:, None], scaled, -scaled)
    swept[row, which, which] = -1 / pivot
    return swept


def _follow(x: Tensor, y: Tensor, penalties: Tensor, found: Tensor) -> None:
    """Fill in the solutions (N, P, d) for the penalties (N, P)."""
    gram, correlation = x.mT @ x / max(x.shape[1], 1), moments(x, y)
    squares, zeros = gram.diagonal(dim1=1, dim2=2), torch.zeros_like(correlation)
    level, first = correlation.abs().max(1)
    prompts = torch.arange(len(x), device=x.device)
    state = _State(prompts, penalties, squares, gram, zeros, zeros, correlation, level)
    on = level > penalties.amin(1)
    state = state.only(on).toggled(first[on])
    for _ in range(_MOST_EVENTS * x.shape[2]):
        if not len(state.prompt):
            return
        state = _advanced(state, found)
    raise RuntimeError(f"{len(state.prompt)} Lasso paths take more than {_MOST_EVENTS} events per coefficient")


def _advanced(state: _State, found: Tensor) -> _State:
    """The state after the next event of each prompt, with the solutions on the way there stored in `found`."""
    change = (state.tableau @ state.signs[..., None])[..., 0]
    active = state.signs != 0
    slope, pull = torch.where(active, -change, 0.0), torch.where(active, state.signs, change)
    joins = torch.where(active, torch.inf, _until_joining(state, pull))
    leaves = torch.where(state.beta * slope < 0, -state.beta / slope, torch.inf)
    until, which = torch.minimum(joins, leaves).min(1)
    ends = until >= state.level
    until = torch.where(ends, state.level, until)
    after = state.level - until
    passed = (state.penalties <= state.level[:, None]) & (ends[:, None] | (state.penalties > after[:, None]))
    row, column = passed.nonzero(as_tuple=True)
    fallen = state.level[row] - state.penalties[row, column]
    found[state.prompt[row], column] = state.beta[row] + fallen[:, None] * slope[row]
    moved = state._replace(
        beta=state.beta + until[:, None] * slope, gradient=state.gradient - until[:, None] * pull, level=after
    )
    on = ~ends & (after >= state.penalties.amin(1))
    return moved.only(on).toggled(which[on])


def _until_joining(state: _State, pull: Tensor) -> Tensor:
    """By how much λ falls until |g_j| = λ, infinite for columns that the active ones span."""
    level = state.level[:, None]
    above = torch.where(pull < 1, (level - state.gradient) / (1 - pull), torch.inf)
    below = torch.where(pull > -1, (level + state.gradient) / (1 + pull), torch.inf)
    spanned = state.tableau.diagonal(dim1=1, dim2=2) <= _DEPENDENT * state.squares
    return torch.where(spanned, torch.inf, torch.minimum(above, below)).clamp_min(0)
