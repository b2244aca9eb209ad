"""Attention over given prompts together with its derivatives along directions in KQ, in both passes.

Everything that depends on the weights comes as a stack, along the first dimension, of 1 + K: its value, then its
derivatives along K directions. With r_h = KQ_h z_q, logits s_lh = z_l·r_h and p_h = softmax(s_h), the derivative along
a direction (dots) takes

    forwards    ṗ_lh = p_lh (ṡ_lh − Σ_m p_mh ṡ_mh),  ċ_h = Σ_l ṗ_lh z_l
    backwards   t_lh = p_lh (a_lh − ā_h),  ā_h = Σ_m p_mh a_mh,  where a_lh is the loss's derivative in p_lh,
                ṫ_lh = ṗ_lh (a_lh − ā_h) + p_lh (ȧ_lh − Σ_m (p_mh ȧ_mh + ṗ_mh a_mh)),  ∂Loss/∂KQ_h = Σ_l t_lh z_l z_qᵀ

so a product of the Hessian with a vector costs, with the gradient, twice the products with the context that a gradient
alone does, and each further direction as many as one gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(equation: str, x: Tensor, y: Tensor) -> Tensor:
    """The stack of the einsum of two stacks, by the product rule; "k" is the first index in all three."""
    result = torch.einsum(equation, x, y[:1]) + torch.einsum(equation, x[:1], y)
    result[0] /= 2  # exactly the value, which is there twice
    return result


class AttentionTangents:
    """The heads' moments c_h over prompts, (1 + K, N, H, D), and what goes back from them.

    context (N, L, D), query (N, D), kq (1 + K, H, D, D): the weights, then the directions.
    """

    def __init__(self, context: Tensor, query: Tensor, kq: Tensor) -> None:
        self._context, self._query = context, query
        logits = self._on_context(torch.einsum("khed,nd->nkhe", kq, query))
        value, slopes = logits[:, :1].softmax(-1), logits[:, 1:]
        weighted = value * slopes
        tangents = torch.addcmul(weighted, value, weighted.sum(-1, keepdim=True), value=-1)
        self._probabilities = torch.cat([value, tangents], 1)  # (N, 1 + K, H, L)
        self.moments = (self._probabilities.flatten(1, 2) @ context).unflatten(1, kq.shape[:2]).transpose(0, 1)

    def overlaps(self) -> Tensor:
        """K_hg = Σ_l p_lh p_lg, summed over prompts, (1 + K, H, H)."""
        rows = self._probabilities.flatten(1, 2)
        with_values = (rows @ self._probabilities[:, 0].mT).sum(0).unflatten(0, self._probabilities.shape[1:3])
        overlaps = with_values + with_values.mT
        overlaps[0] /= 2
        return overlaps

    def pull_back(self, by_moments: Tensor, by_overlaps: Tensor | None = None) -> Tensor:
        """The gradient in KQ, summed over prompts, (1 + K, H, D, D).

        by_moments (1 + K, N, H, D): the loss's derivatives in the moments. by_overlaps (1 + K, H, H), symmetric: those
        in the overlaps, the same for all prompts.
        """
        scores = self._on_context(by_moments.transpose(0, 1))  # a, ȧ
        if by_overlaps is not None:
            own = product("khg,knhl->kngl", by_overlaps, self._probabilities.transpose(0, 1))
            scores = scores + 2 * own.transpose(0, 1)
        p, dp = self._probabilities[:, :1], self._probabilities[:, 1:]
        a, da = scores[:, :1], scores[:, 1:]
        centred = a - (p * a).sum(-1, keepdim=True)
        change = da - (p * da + dp * a).sum(-1, keepdim=True)
        by_logits = torch.cat([p * centred, torch.addcmul(dp * centred, p, change)], 1)
        by_projected = (by_logits.flatten(1, 2) @ self._context).unflatten(1, by_logits.shape[1:3])
        return torch.einsum("nkhe,nd->khed", by_projected, self._query)

    def _on_context(self, vectors: Tensor) -> Tensor:
        """Products of vectors (N, 1 + K, H, D) with each token, (N, 1 + K, H, L)."""
        return (vectors.flatten(1, 2) @ self._context.mT).unflatten(1, vectors.shape[1:3])
