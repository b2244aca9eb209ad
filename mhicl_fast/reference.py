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


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    *,
    scale: float,
    is_causal: bool = False,
    activation: str = "softmax",
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights a(scale · q kᵀ + mask) of each row over the keys it sees, and the weighted sums of their values.

    The activation a is the softmax over the seen keys, the identity ("linear") or max(·, 0) ("relu"). A hidden key has
    weight 0; a row that sees none gives 0 and a log-sum-exp of −∞.

    Shapes: query (B, Hq, Lq, E), key (B, Hk, L, E), value (B, Hk, L, Ev), Hq a multiple of Hk, attn_mask boolean or
    floating, broadcastable to (B, Hq, Lq, L), key_lengths (B,) -> out (B, Hq, Lq, Ev), log-sum-exp (B, Hq, Lq), which
    is empty unless the activation is the softmax, weights (B, Hq, Lq, L).
    """
    hidden = _hidden(query, key, attn_mask, key_lengths, is_causal)
    group = query.shape[1] // max(key.shape[1], 1)
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    if hidden is not None:
        # What a key that no row sees holds, or a row that sees none, NaN included, must reach neither a value nor a
        # gradient.
        unseen, empty = hidden.all(-2).unsqueeze(-1), hidden.all(-1, keepdim=True)
        query, key, value = query.masked_fill(empty, 0), key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
    logits = scale * (query @ key.transpose(-2, -1))
    if attn_mask is not None and attn_mask.is_floating_point():
        logits = logits + attn_mask
    if activation != "softmax":
        weights = logits.relu() if activation == "relu" else logits
        weights = weights if hidden is None else weights.masked_fill(hidden, 0)
        return weights @ value, logits.new_empty(0), weights
    if hidden is None:
        weights, lse = logits.softmax(-1), logits.logsumexp(-1)
        return weights @ value, lse, weights
    # An empty row's softmax over −∞ alone would be NaN, so it runs over zeros and is masked after.
    logits = logits.masked_fill(hidden, -torch.inf).masked_fill(empty, 0)
    weights = logits.softmax(-1).masked_fill(hidden, 0)
    return weights @ value, logits.logsumexp(-1).masked_fill(empty[..., 0], -torch.inf), weights


def _hidden(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, key_lengths: Tensor | None, is_causal: bool
) -> Tensor | None:
    """Which keys each row must not see, broadcastable to (B, Hq, Lq, L); None where all see all."""
    rows, keys = query.shape[-2], key.shape[-2]
    hidden = []
    if attn_mask is not None:
        hidden.append(attn_mask == -torch.inf if attn_mask.is_floating_point() else ~attn_mask)
    if is_causal:
        hidden.append(torch.ones(rows, keys, dtype=torch.bool, device=query.device).triu(1))
    if key_lengths is not None:
        hidden.append(torch.arange(keys, device=key.device) >= key_lengths[:, None, None, None])
    if not hidden:
        return None
    union = hidden[0]
    for other in hidden[1:]:
        union = union | other
    return union.expand(*union.shape[:-2], rows, keys) if union.dim() >= 2 else union.expand(rows, keys)
