"""The GPU's `attention` on CPU tensors, differentiable, with the arguments of `attentions.definition`."""

from __future__ import annotations

from typing import Any

import torch
from emulated import emulated
from torch import Tensor


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], wants: dict[str, bool], *tensors: Tensor | None) -> tuple[Any, ...]:
        out, lse, weights, stats = emulated().attention(*tensors, **options, **wants)
        ctx.options = options
        ctx.save_for_backward(*tensors, stats)
        ctx.set_materialize_grads(False)
        return out, lse, weights

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, *grads: Tensor | None) -> tuple[Any, ...]:
        *tensors, stats = ctx.saved_tensors
        query, _, value, *_ = tensors
        if grad_out is None:
            grad_out = query.new_zeros(*query.shape[:3], value.shape[3])
        grad_lse, grad_weights = (None if x is None or x.dim() < 3 else x for x in grads)
        needs = ctx.needs_input_grad[2:6]
        found = emulated().attention_backward(
            grad_out, grad_lse, grad_weights, *tensors, stats, **ctx.options, needs=needs
        )
        assert all(x.numel() == 0 for x, need in zip(found, needs, strict=True) if not need)
        return None, None, *(x if need else None for x, need in zip(found, needs, strict=True)), None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    activation: str = "softmax",
    return_lse: bool = False,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options = {"scale": scale, "is_causal": is_causal, "activation": activation}
    wants = {"want_lse": return_lse, "want_weights": return_weights}
    out, lse, weights = _Attention.apply(options, wants, query, key, value, attn_mask, key_lengths)
    more = (*([lse] if return_lse else []), *([weights] if return_weights else []))
    return (out, *more) if more else out
