"""The operators' definitions in plain PyTorch: what the kernels must compute.

Tests run these in float64. They also compute whatever a kernel does not: forward mode, `torch.func` transforms and
derivatives beyond the first, so every line here is differentiable any number of times.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prompt_moments(
    context: Tensor, query: Tensor, kq: Tensor, context_lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """First moments c_h = Σ_l p_lh z_l and overlaps K_hg = Σ_l p_lh p_lg of p_h = softmax_l(z_lᵀ KQ_h z_q).

    Positions at or past a prompt's length have probability 0; a prompt of length 0 has none anywhere.

    Shapes: context (N, L, D), query (N, D), kq (..., H, D, D), context_lengths (N,) or None
    -> (..., N, H, D), (..., N, H, H).
    """
    projected = torch.einsum("...hed,nd->...nhe", kq, query)
    if context_lengths is None:
        probabilities = (projected @ context.transpose(-2, -1)).softmax(-1)  # (..., N, H, L)
    else:
        valid = torch.arange(context.shape[1], device=context.device) < context_lengths[:, None]  # (N, L)
        # What a masked position holds, NaN included, must reach neither a value nor a gradient.
        context = context.masked_fill(~valid[:, :, None], 0)
        # An empty row's softmax over −∞ alone would be NaN, so it runs over zeros and is masked after.
        hidden = ~valid & valid.any(-1, keepdim=True)
        logits = (projected @ context.transpose(-2, -1)).masked_fill(hidden[:, None, :], -torch.inf)
        probabilities = logits.softmax(-1).masked_fill(~valid[:, None, :], 0)
    return probabilities @ context, probabilities @ probabilities.transpose(-2, -1)


def prompt_attention(
    context: Tensor, query: Tensor, kq: Tensor, ov: Tensor, context_lengths: Tensor | None = None
) -> Tensor:
    """ŷ = Σ_h OV_h c_h, with c_h as in `prompt_moments`.

    Shapes: kq (H, D, D), ov (H, O, D) -> (N, O); kq (M, H, D, D), ov (M, H, O, D) -> (M, N, O).
    """
    moments, _ = prompt_moments(context, query, kq, context_lengths)
    return torch.einsum("...nhd,...hod->...no", moments, ov)
