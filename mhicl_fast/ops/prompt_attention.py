"""Attention of one query per prompt over its own raw context: the operators for values, and for moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..validation import check_length_values, check_prompt_inputs
from .chunks import Tensors, over_prompts, prompts_at_a_time
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


def prompt_attention(
    context: Tensor, query: Tensor, kq: Tensor, ov: Tensor, *, context_lengths: Tensor | None = None
) -> Tensor:
    """Multi-head softmax attention of one query per prompt over its own context.

    ŷ = Σ_h OV_h Σ_l p_lh z_l with p_h = softmax_l(z_lᵀ KQ_h z_q): keys and values are the raw context, the projections
    stand on the query's side, and there is no hidden scale.

    Args:
        context: z, (N, L, D), of any strides; float64, float32, bfloat16 or float16. 16-bit types are computed in
            float32. Under autocast all arguments are cast to its dtype, float64 excepted.
        query: z_q, (N, D).
        kq: KQ, (H, D, D), or (M, H, D, D) for M models on the same prompts.
        ov: OV, (H, O, D), or (M, H, O, D).
        context_lengths: (N,) integers in [0, L]: prompt n attends to its first context_lengths[n] positions. What the
            others hold, NaN included, never shows. A prompt without positions gives 0. On a GPU the values are not
            checked, since the host would have to wait for them: they are clamped to [0, L].

    Returns:
        (N, O), or (M, N, O).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ.
        ValueError: a shape does not fit, devices differ or have no kernels, or a length on the CPU lies outside [0, L].
    """
    context, query, kq, ov = autocast(context, query, kq, ov)
    check_prompt_inputs(context, query, kq, ov, context_lengths)
    if needs_definition(context, query, kq, ov):
        check_length_values("context_lengths", context_lengths, context.shape[1], "prompt")
        return _definition(reference.prompt_attention, context_lengths)(context, query, kq, ov)
    one_model = kq.dim() == 3
    if one_model:
        kq, ov = kq[None], ov[None]
    graph = torch.is_grad_enabled()
    keep_moments = graph and ov.requires_grad
    differentiates_logits = (kq.requires_grad or query.requires_grad) and not context.requires_grad
    keep_jacobian = graph and differentiates_logits and _jacobian_pays(ov, context.shape[1])
    out, _, _ = torch.ops.mhicl.prompt_attention(
        context, query, kq, ov, as_int64(context_lengths), keep_moments, keep_jacobian
    )
    return out[0] if one_model else out


def prompt_moments(
    context: Tensor, query: Tensor, kq: Tensor, *, context_lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the heads' probabilities p_h = softmax_l(z_lᵀ KQ_h z_q) say of the context and of each other.

    Arguments and errors are those of `prompt_attention`.

    Returns:
        Moments c_h = Σ_l p_lh z_l, (N, H, D), and overlaps K_hg = Σ_l p_lh p_lg, (N, H, H); with a leading M for
        kq (M, H, D, D).
    """
    context, query, kq = autocast(context, query, kq)
    check_prompt_inputs(context, query, kq, None, context_lengths)
    if needs_definition(context, query, kq):
        check_length_values("context_lengths", context_lengths, context.shape[1], "prompt")
        return _definition(reference.prompt_moments, context_lengths)(context, query, kq)
    lengths = as_int64(context_lengths)
    if kq.dim() == 3:
        return torch.ops.mhicl.prompt_moments(context, query, kq, lengths, True)
    if kq.shape[0] == 0:  # nothing to compute, but shapes and a graph to return
        return _definition(reference.prompt_moments, lengths)(context, query, kq)
    models = [torch.ops.mhicl.prompt_moments(context, query, model, lengths, True) for model in kq.unbind()]
    return torch.stack([moments for moments, _ in models]), torch.stack([overlaps for _, overlaps in models])


@torch.library.register_fake("mhicl::prompt_attention")
def _(
    context: Tensor,
    query: Tensor,
    kq: Tensor,
    ov: Tensor,
    context_lengths: Tensor | None,
    keep_moments: bool,
    keep_jacobian: bool,
) -> tuple[Tensor, ...]:
    models, heads, outputs, dim = ov.shape
    compute = compute_dtype(context.dtype)
    n = query.shape[0]
    return (
        context.new_empty(models, n, outputs),
        context.new_empty((n, models * heads, dim) if keep_moments else (0,), dtype=compute),
        context.new_empty((n, outputs, models * heads, dim) if keep_jacobian else (0,), dtype=compute),
    )


@torch.library.register_fake("mhicl::prompt_attention_backward")
def _(
    grad_out: Tensor,
    context: Tensor,
    query: Tensor,
    kq: Tensor,
    ov: Tensor,
    context_lengths: Tensor | None,
    moments: Tensor,
    jacobian: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    return tuple(context.new_empty(x.shape if need else (0,)) for x, need in zip((context, query, kq, ov), needs))


@torch.library.register_fake("mhicl::prompt_moments")
def _(
    context: Tensor, query: Tensor, kq: Tensor, context_lengths: Tensor | None, want_overlaps: bool
) -> tuple[Tensor, ...]:
    n, (heads, dim, _) = query.shape[0], kq.shape
    return context.new_empty(n, heads, dim), context.new_empty((n, heads, heads) if want_overlaps else (0,))


@torch.library.register_fake("mhicl::prompt_moments_backward")
def _(
    grad_moments: Tensor,
    grad_overlaps: Tensor | None,
    context: Tensor,
    query: Tensor,
    kq: Tensor,
    context_lengths: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    return tuple(context.new_empty(x.shape if need else (0,)) for x, need in zip((context, query, kq), needs))


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
    context, query, kq, ov, lengths, _, _ = inputs
    _, moments, jacobian = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(moments, jacobian)
    ctx.save_for_backward(context, query, kq, ov, lengths, moments, jacobian)


def _attention_backward(ctx: Any, grad_out: Tensor | None, *of_what_was_kept: None) -> Grads:
    needs = ctx.needs_input_grad[:4]
    if grad_out is None:
        return (None,) * 7
    grads = torch.ops.mhicl.prompt_attention_backward(grad_out, *ctx.saved_tensors, needs)
    return *where_needed(grads, needs), None, None, None


def _attention_backward_setup(ctx: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
    grad_out, context, query, kq, ov, lengths, _, _, needs = inputs
    ctx.save_for_backward(grad_out, context, query, kq, ov, lengths)
    ctx.needs = needs


def _attention_double_backward(ctx: Any, *grads: Tensor | None) -> Grads:
    def second(grad_out: Tensor, *others: Tensor | None) -> Tensors:
        *inputs, lengths = others[:5]
        attention = _definition(reference.prompt_attention, lengths)
        return differentiate_backward(
            lambda *x: (attention(*x),), [grad_out], inputs, ctx.needs, ctx.needs_input_grad[:5], others[5:]
        )

    dims = (1, 0, 0, None, None, 0, 0, 0, None, None)
    _, context, _, kq, *_ = ctx.saved_tensors
    return *_second_pass(ctx, second, grads, dims, context, kq), None, None, None, None


def _moments_setup(ctx: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
    context, query, kq, lengths, ctx.want_overlaps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(context, query, kq, lengths)


def _moments_backward(ctx: Any, grad_moments: Tensor | None, grad_overlaps: Tensor | None) -> Grads:
    needs = ctx.needs_input_grad[:3]
    context, query, kq, lengths = ctx.saved_tensors
    if grad_moments is None:
        grad_moments = query.new_zeros(query.shape[0], kq.shape[0], kq.shape[1])
    overlaps = grad_overlaps if ctx.want_overlaps else None
    grads = torch.ops.mhicl.prompt_moments_backward(grad_moments, overlaps, context, query, kq, lengths, needs)
    return *where_needed(grads, needs), None, None


def _moments_backward_setup(ctx: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
    grad_moments, grad_overlaps, context, query, kq, lengths, needs = inputs
    ctx.save_for_backward(grad_moments, grad_overlaps, context, query, kq, lengths)
    ctx.needs = needs


def _moments_double_backward(ctx: Any, *grads: Tensor | None) -> Grads:
    def second(grad_moments: Tensor, grad_overlaps: Tensor | None, *others: Tensor | None) -> Tensors:
        *inputs, lengths = others[:4]
        both = _definition(reference.prompt_moments, lengths)
        return differentiate_backward(
            both, [grad_moments, grad_overlaps], inputs, ctx.needs, ctx.needs_input_grad[:5], others[4:]
        )

    dims = (0, 0, 0, 0, None, 0, 0, 0, None)
    _, _, context, _, kq, _ = ctx.saved_tensors
    return *_second_pass(ctx, second, grads, dims, context, kq), None, None


def _second_pass(
    ctx: Any,
    second: Callable[..., Tensors],
    grads: Sequence[Tensor | None],
    dims: Sequence[int | None],
    context: Tensor,
    kq: Tensor,
) -> Tensors:
    """`second` of the saved tensors and the needed gradients; over chunks of prompts unless its graph is wanted."""
    inputs = [*ctx.saved_tensors, *(grad if need else None for grad, need in zip(grads, ctx.needs))]
    if torch.is_grad_enabled():
        return second(*inputs)
    return over_prompts(second, inputs, dims, prompts_at_a_time(context, kq.shape[:-2].numel()))


for _name, _backward, _setup in (
    ("prompt_attention", _attention_backward, _attention_setup),
    ("prompt_attention_backward", _attention_double_backward, _attention_backward_setup),
    ("prompt_moments", _moments_backward, _moments_setup),
    ("prompt_moments_backward", _moments_double_backward, _moments_backward_setup),
):
    register_derivative(_name, _backward, _setup)


def _definition(function: Callable[..., Any], context_lengths: Tensor | None) -> Callable[..., Any]:
    """A function of `reference` with its lengths given, rounded to the dtype of its arguments."""
    exact = in_compute_dtype(lambda *tensors: function(*tensors, context_lengths))

    def rounded(*tensors: Tensor) -> Any:
        outputs, dtype = exact(*tensors), tensors[0].dtype
        return outputs.to(dtype) if isinstance(outputs, Tensor) else tuple(y.to(dtype) for y in outputs)

    return rounded


def _jacobian_pays(ov: Tensor, context_length: int) -> bool:
    """Whether the forward pass should take each output's derivative along, so that the backward pass needs no context.

    It costs one column a head and output. That is less than a second pass with one output, and almost free while all
    columns fit beside the logits in one vector. What is kept must stay smaller than the context.
    """
    models, heads, outputs, _ = ov.shape
    bytes_kept_a_row = (1 + outputs) * models * heads * compute_dtype(ov.dtype).itemsize
    padded_heads = 1
    while padded_heads < heads:
        padded_heads *= 2
    in_one_vector = outputs == 1 or (1 + outputs) * padded_heads <= 16
    return in_one_vector and bytes_kept_a_row <= context_length * ov.dtype.itemsize
