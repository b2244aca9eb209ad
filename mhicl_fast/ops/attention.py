"""Attention of any query rows over any keys: scaled_dot_product_attention's interface."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..validation import check_attention_inputs, check_attention_options, check_length_values
from .derivatives import (
    Grads,
    as_int64,
    autocast,
    compute_dtype,
    differentiate_backward,
    in_compute_dtype,
    needs_definition,
    register_derivative,
    where_needed,
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = True,
    return_lse: bool = False,
    return_weights: bool = False,
    activation: str = "softmax",
) -> Tensor | tuple[Tensor, ...]:
    """Attention of query rows over keys, as by `torch.nn.functional.scaled_dot_product_attention`.

    out = W v with W = softmax(scale · q kᵀ + mask) over the keys that a row sees. What other keys hold, NaN included,
    never shows in a row; a row that sees no key gives 0, and a log-sum-exp of −∞. (Derivatives beyond the first,
    forward mode and `torch.func` transforms keep that for keys that no row sees, and for rows that see none.)

    Args:
        query: (..., Hq, Lq, E), of any strides; float64, float32, bfloat16 or float16. 16-bit types are computed in
            float32. Under autocast query, key, value and a floating-point mask are cast to its dtype, float64 excepted.
            Three dimensions (B, Lq, E) are a batch with one head, two are one problem.
        key: (..., Hk, L, E), of query's leading dimensions but the heads: Hq must be a multiple of Hk, and consecutive
            Hq/Hk query heads share a key head.
        value: (..., Hk, L, Ev).
        attn_mask: broadcastable to (..., Hq, Lq, L), or to (B, Lq, L) or (Lq, L) where the inputs have fewer
            dimensions. Boolean, True where a row may see a key, or of query's dtype, added to the logits: there −∞
            hides a key.
        key_lengths: integers in [0, L], of the shape of the leading dimensions without the heads, (B,) for three and
            four dimensions: only the first key_lengths[b] keys are seen. On a GPU their values are not checked, since
            the host would have to wait for them: they are clamped to [0, L].
        dropout_p: must be 0; there is no dropout.
        is_causal: whether row i sees keys 0 … i only, counted from the start also where Lq ≠ L. Masks, causality and
            lengths apply together.
        scale: E^(−1/2) unless given.
        enable_gqa: whether Hq may differ from Hk.
        return_lse: also return the log-sum-exp of the logits over the keys seen, (..., Hq, Lq), in float32 for 16-bit
            types.
        return_weights: also return W, (..., Hq, Lq, L).
        activation: "softmax", or "linear" or "relu" for the attention without normalisation of the papers on in-context
            learning: W = a(scale · q kᵀ + mask) with a(x) = x or max(x, 0), and 0 for hidden keys. Their factor 1/L is
            scale=1/L.

    Returns:
        out, (..., Hq, Lq, Ev), in query's dtype; with more to return a tuple (out, lse), (out, weights) or
        (out, lse, weights). All are differentiable.

    Raises:
        TypeError: an argument is no floating-point tensor, dtypes differ, or the mask's or lengths' dtype does not fit.
        ValueError: a shape does not fit, devices differ or have no kernels, a length on the CPU lies outside [0, L],
            dropout_p is not 0, the activation is none of the three, or return_lse is asked of one that is not the
            softmax.
    """
    query, key, value, attn_mask = autocast(query, key, value, attn_mask)
    check_attention_inputs(query, key, value, attn_mask, key_lengths, enable_gqa)
    check_attention_options(dropout_p, scale, activation, return_lse)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    leading = query.shape[:-2]
    if len(leading) != 2:
        query, key, value, attn_mask, key_lengths = _as_batch(query, key, value, attn_mask, key_lengths)
    elif attn_mask is not None and attn_mask.dim() != 4:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    if needs_definition(query, key, value, attn_mask):
        check_length_values("key_lengths", key_lengths, key.shape[2], "batch")
        definition = _definition(attn_mask, key_lengths, scale, is_causal, activation)
        out, lse, weights = definition(query, key, value, _additive(attn_mask))
    else:
        out, lse, weights, _ = torch.ops.mhicl.attention(
            query, key, value, attn_mask, as_int64(key_lengths), scale=scale, is_causal=is_causal,
            activation=activation, want_lse=return_lse, want_weights=return_weights,
        )  # fmt: skip
    if len(leading) != 2:
        out = out.reshape(*leading, *out.shape[-2:])
        lse = lse.reshape(*leading, lse.shape[-1]) if return_lse else lse
        weights = weights.reshape(*leading, *weights.shape[-2:]) if return_weights else weights
    if not return_lse and not return_weights:
        return out
    return (out, *([lse] if return_lse else []), *([weights] if return_weights else []))


def _as_batch(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, key_lengths: Tensor | None
) -> tuple[Any, ...]:
    """All in the shapes that the operator takes, from any number of leading dimensions but two."""
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (query.dim() - attn_mask.dim())]
        if any(size != 1 for size in attn_mask.shape[:-3]):
            attn_mask = attn_mask.expand(*query.shape[:-3], *attn_mask.shape[-3:])
    lengths = None if key_lengths is None else key_lengths.reshape(-1)
    return *(None if x is None else _four_dims(x) for x in (query, key, value, attn_mask)), lengths


def _four_dims(x: Tensor) -> Tensor:
    if x.dim() > 4:
        return x.flatten(0, -4)
    return x[:, None] if x.dim() == 3 else x[None, None]


def _additive(attn_mask: Tensor | None) -> Tensor | None:
    return attn_mask if attn_mask is not None and attn_mask.is_floating_point() else None


def _definition(
    attn_mask: Tensor | None, key_lengths: Tensor | None, scale: float, is_causal: bool, activation: str
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`reference.attention` of query, key, value and the mask where it is additive, rounded like the operator."""

    def compute(query: Tensor, key: Tensor, value: Tensor, additive: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        mask = attn_mask if additive is None else additive
        return reference.attention(
            query, key, value, mask, key_lengths, scale=scale, is_causal=is_causal, activation=activation
        )

    exact = in_compute_dtype(compute)

    def rounded(query: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        out, lse, weights = exact(query, *others)
        return out.to(query.dtype), lse, weights.to(query.dtype)

    return rounded


@torch.library.register_fake("mhicl::attention")
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    *,
    scale: float,
    is_causal: bool,
    activation: str,
    want_lse: bool,
    want_weights: bool,
) -> tuple[Tensor, ...]:
    rows, compute = query.shape[:3], compute_dtype(query.dtype)
    return (
        _empty_as(query, value.shape[3]),
        query.new_empty(rows if want_lse else (0,), dtype=compute),
        query.new_empty((*rows, key.shape[2]) if want_weights else (0,)),
        query.new_empty((2, *rows) if activation == "softmax" else (0,), dtype=compute),
    )


@torch.library.register_fake("mhicl::attention_backward")
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    grad_weights: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    stats: Tensor,
    *,
    scale: float,
    is_causal: bool,
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    of_inputs = [_empty_as(x, x.shape[3]) if need else x.new_empty(0) for x, need in zip((query, key, value), needs)]
    return *of_inputs, query.new_empty(0 if attn_mask is None or not needs[3] else attn_mask.shape)


def _empty_as(like: Tensor, columns: int) -> Tensor:
    """With the sizes of `like` but for the last, and its order in memory: heads may stand inside rows."""
    batch, heads, rows, _ = like.shape
    if like.stride(1) < like.stride(2):
        return like.new_empty(batch, rows, heads, columns).transpose(1, 2)
    return like.new_empty(batch, heads, rows, columns)


def _of_the_definition(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("scale", "is_causal", "activation")}


def _setup(ctx: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
    query, key, value, attn_mask, key_lengths = inputs
    stats = output[3]
    ctx.options = _of_the_definition(options)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(query, key, value, attn_mask, key_lengths, stats)


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, grad_weights: Tensor | None, of_stats: None
) -> Grads:
    needs = ctx.needs_input_grad[:4]
    query, _, value, *_ = tensors = ctx.saved_tensors
    if grad_out is None:
        grad_out = query.new_zeros(*query.shape[:3], value.shape[3])
    # One that was not asked for is empty, and its gradient, if any, is too.
    grads = torch.ops.mhicl.attention_backward(
        grad_out, grad_lse if grad_lse is not None and grad_lse.dim() == 3 else None,
        grad_weights if grad_weights is not None and grad_weights.dim() == 4 else None,
        *tensors, **ctx.options, needs=needs,
    )  # fmt: skip
    return *where_needed(grads, needs), None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
    ctx.options = _of_the_definition(options)
    ctx.needs = options["needs"]
    ctx.save_for_backward(*inputs[:8])


def _double_backward(ctx: Any, *grads: Tensor | None) -> Grads:
    *tensors, attn_mask, key_lengths = ctx.saved_tensors
    cotangents, inputs = tensors[:3], [*tensors[3:], _additive(attn_mask)]
    definition = _definition(attn_mask, key_lengths, **ctx.options)
    second = differentiate_backward(definition, cotangents, inputs, ctx.needs, ctx.needs_input_grad[:7], grads)
    return *second, None, None


register_derivative("attention", _backward, _setup)
register_derivative("attention_backward", _double_backward, _backward_setup)
