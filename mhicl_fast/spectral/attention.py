"""How many context examples a head attends to, predicted from its weights.

Given the query x_q the logits s_l = x_l · r, r = W_h x_q, are independent N(0, |r|²), and for long contexts averages
over the examples are means: Σ_l p_l² = Σ e^{2s} / (Σ e^s)² → e^{2|r|²} / (L e^{|r|²}), so a prompt has
N_eff = 1/Σ p² → L e^{−|r|²}. Over queries |r|² has mean v = ‖W_h‖²_F = Σ_j d_j ω_j², and

    E N_eff → L E e^{−|r|²} = L det(Id + 2 W_hᵀ W_h)^{−½} = L Π_j (1 + 2 ω_j²)^{−d_j/2},   L e^{−v} for many covariates.

The averages are means while no single example dominates them. Of L normal logits of variance v the largest is about
√(2 v log L): Σ e^{2s} is typical while v < ½ log L (the head covers the context), Σ e^s while v < 2 log L; past that a
few examples hold all the weight (it condenses). Contexts are finite, so both are gradual, and the prediction is low.

Against simulation (one ω, d from 5 to 30, within ± 1 %, ± 3 % at L = 4000) it is low by 1 % or less at v = ½ and 5 % or
less at v = 1 for L ≥ 400; at v = 2 by 0 to 12 % for L = 4000 and 11 to 25 % for L = 400; at L = 40 by 5 % at v = ½ and
15 to 19 % at v = 1. Past v = ½ log L it is a lower estimate, too low by a factor of several well before 2 log L.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._inputs import Floats, as_float64, require_identity_covariance
from .atoms import resolve_omega

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression

REGIMES = ("covers", "between", "condenses")


class AttentionSpread(NamedTuple):
    """What heads attend to, each (..., H).

    attention: v; examples: the predicted mean of 1/Σ_l p_l² over queries; leading: L e^−v, its value for many
    covariates; regime: "covers" up to v = ½ log L, "condenses" from 2 log L on, or "between".
    """

    attention: Floats
    examples: Floats
    leading: Floats
    regime: NDArray[np.str_]


def effective_examples(task: MultiTaskRegression, omega: Any) -> AttentionSpread:
    """How many context examples each head attends to; omega (..., H, I) with disjoint supports or (..., H, d).

    Leading dimensions may be the times of a trajectory. Raises ValueError for wrong shapes and for covariances other
    than the identity (see `effective_examples_of_weights`).
    """
    require_identity_covariance(task, "the attention of semi-singular values")
    omega, partition = resolve_omega(task, omega)
    squares = np.square(omega)
    return _spread(task, squares @ partition.count, np.log1p(2 * squares) @ partition.count)


def effective_examples_of_weights(task: MultiTaskRegression, kq: Any) -> AttentionSpread:
    """The same for full weights kq (..., H, D, D), a tensor or an array, and any covariance Σ = A Aᵀ: W_h → Aᵀ W_h A.

    Raises ValueError for wrong shapes and for logits that read labels, KQ[:, d:, :d] ≠ 0.
    """
    kq = as_float64("kq", kq)
    d = task.dim_x
    if kq.ndim < 3 or kq.shape[-2:] != (task.dim, task.dim):
        raise ValueError(f"kq must be (..., heads, {task.dim}, {task.dim}), got shape {list(kq.shape)}")
    if kq[..., d:, :d].any():
        raise ValueError(
            f"the prediction needs logits that do not read labels, KQ[:, {d}:, :{d}] = 0, got an entry of size "
            f"{np.abs(kq[..., d:, :d]).max():.3g}"
        )
    weights = kq[..., :d, :d]
    if task.covariance_factor is not None:
        factor = np.asarray(task.covariance_factor)
        weights = factor.T @ weights @ factor
    squares = np.square(np.linalg.svd(weights, compute_uv=False))
    return _spread(task, squares.sum(-1), np.log1p(2 * squares).sum(-1))


def _spread(task: MultiTaskRegression, attention: Floats, log_determinant: Floats) -> AttentionSpread:
    if task.context_length < 1:
        raise ValueError(f"attention needs a context of at least 1 example, got {task.context_length}")
    # 1/Σ p² is never below 1, to which the formula would fall far outside of its domain.
    examples = np.maximum(task.context_length * np.exp(-log_determinant / 2), 1.0)
    leading = np.maximum(task.context_length * np.exp(-attention), 1.0)
    log_length = np.log(task.context_length)
    regime = np.where(attention <= log_length / 2, REGIMES[0], REGIMES[1])
    return AttentionSpread(attention, examples, leading, np.where(attention >= 2 * log_length, REGIMES[2], regime))
