"""Checks of the operators' arguments, before any kernel runs: what was expected and what came."""

from __future__ import annotations

import torch
from torch import Tensor

from ._extension import why_no_kernels

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NUMBERS = (float, int, torch.SymFloat, torch.SymInt)
_ACTIVATIONS = ("softmax", "linear", "relu")


def check_prompt_inputs(
    context: Tensor, query: Tensor, kq: Tensor, ov: Tensor | None, context_lengths: Tensor | None
) -> None:
    """Raise TypeError or ValueError unless what `prompt_attention` takes (`prompt_moments`: ov None) fits."""
    named = {"context": context, "query": query, "kq": kq}
    if ov is not None:
        named["ov"] = ov
    for name, tensor in named.items():
        _check_tensor(name, tensor, "context", context, "prompt_moments" if ov is None else "prompt_attention")
    if context.dim() != 3:
        raise ValueError(f"context must be (prompts, positions, dim), got shape {_shape(context)}")
    n, _, dim = context.shape
    if dim == 0:
        raise ValueError(f"context must have at least one dim, got shape {_shape(context)}")
    if tuple(query.shape) != (n, dim):
        raise ValueError(f"query must be (prompts, dim) = ({n}, {dim}), got shape {_shape(query)}")
    if kq.dim() not in (3, 4) or tuple(kq.shape[-2:]) != (dim, dim):
        raise ValueError(
            f"kq must be (heads, dim, dim) or (models, heads, dim, dim) with dim = {dim}, got shape {_shape(kq)}"
        )
    if ov is not None and (ov.dim() != kq.dim() or ov.shape[:-2] != kq.shape[:-2] or ov.shape[-1] != dim):
        leading = ", ".join(str(size) for size in kq.shape[:-2])
        raise ValueError(f"ov must be ({leading}, outputs, {dim}) to go with kq {_shape(kq)}, got shape {_shape(ov)}")
    if context_lengths is not None:
        _check_lengths("context_lengths", context_lengths, "(prompts,)", (n,), context.device)


def check_attention_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    enable_gqa: bool,
) -> None:
    """Raise TypeError or ValueError unless the tensors that `attention` takes fit."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_tensor(name, tensor, "query", query, "attention")
    dims = query.dim()
    if dims < 2 or query.shape[-1] == 0:
        raise ValueError(f"query must be (..., heads, rows, dim) with at least one dim, got shape {_shape(query)}")
    batch = query.shape[: max(dims - 3, 1)] if dims > 2 else ()
    if key.dim() != dims or key.shape[: len(batch)] != batch or key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key must be {_sizes(*batch, *_heads(dims), 'keys', query.shape[-1])} to go with query {_shape(query)}, "
            f"got shape {_shape(key)}"
        )
    if value.dim() != dims or value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value must be {_sizes(*key.shape[:-1], 'value_dim')} to go with key {_shape(key)}, "
            f"got shape {_shape(value)}"
        )
    if dims > 3:
        _check_heads(query.shape[-3], key.shape[-3], enable_gqa)
    if attn_mask is not None:
        _check_mask(attn_mask, (*query.shape[:-1], key.shape[-2]), query)
    if key_lengths is not None:
        _check_lengths("key_lengths", key_lengths, "query's leading dimensions without heads", batch, query.device)


def check_attention_options(dropout_p: float, scale: float | None, activation: str, return_lse: bool) -> None:
    """Raise TypeError or ValueError unless the options of `attention` are ones it has."""
    if dropout_p != 0:
        raise ValueError(f"dropout_p must be 0, since there is no dropout, got {dropout_p}")
    if scale is not None and not isinstance(scale, NUMBERS):
        raise TypeError(f"scale must be a float or None, got {type(scale).__name__}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    if return_lse and activation != "softmax":
        raise ValueError(f"return_lse needs the activation softmax, got {activation!r}, which has no normalisation")


def _heads(dims: int) -> tuple[str, ...]:
    return ("heads",) if dims > 3 else ()


def _check_heads(query_heads: int, key_heads: int, enable_gqa: bool) -> None:
    if query_heads == key_heads:
        return
    if not enable_gqa:
        raise ValueError(
            f"query and key must have as many heads with enable_gqa=False, got {query_heads} and {key_heads}"
        )
    if key_heads == 0 or query_heads % key_heads:
        raise ValueError(f"query's heads must be a multiple of key's, got {query_heads} and {key_heads}")


def _check_mask(attn_mask: Tensor, logits: tuple[int, ...], query: Tensor) -> None:
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask must be a torch.Tensor, got {type(attn_mask).__name__}")
    if attn_mask.dtype not in (torch.bool, query.dtype):
        raise TypeError(f"attn_mask must be boolean or {query.dtype} like query, got {attn_mask.dtype}")
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask must be on {query.device} like query, got {attn_mask.device}")
    missing = len(logits) - attn_mask.dim()
    if missing < 0 or any(size not in (1, full) for size, full in zip(attn_mask.shape, logits[missing:])):
        raise ValueError(
            f"attn_mask must be broadcastable to the logits {_sizes(*logits)}, got shape {_shape(attn_mask)}"
        )


def _check_tensor(name: str, tensor: Tensor, first_name: str, first: Tensor, operator: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
    device = tensor.device
    missing = why_no_kernels(operator, device)
    if missing is not None:
        raise ValueError(f"{name} is on {device}, but {missing}")
    if device != first.device:
        raise ValueError(
            f"all tensors must be on one device, got {first_name} on {first.device} and {name} on {device}"
        )
    if tensor.dtype != first.dtype:
        raise TypeError(f"all tensors must have one dtype, got {first_name} {first.dtype} and {name} {tensor.dtype}")


def _check_lengths(name: str, lengths: Tensor, meaning: str, shape: tuple[int, ...], device: torch.device) -> None:
    if (
        not isinstance(lengths, Tensor)
        or lengths.is_floating_point()
        or lengths.is_complex()
        or lengths.dtype == torch.bool
    ):
        came = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"{name} must be an integer tensor, got {came}")
    if lengths.shape != shape:
        raise ValueError(f"{name} must be {meaning} = {_sizes(*shape)}, got shape {_shape(lengths)}")
    if lengths.device != device:
        raise ValueError(f"{name} must be on {device} like the other tensors, got {lengths.device}")


def check_length_values(name: str, lengths: Tensor | None, positions: int, entry: str) -> None:
    """Raise ValueError for a length outside [0, L], where the values can be seen and nothing waits for them: in tensors
    on the CPU that are neither traced nor transformed.

    The CPU's kernels check theirs themselves; those of GPUs, for which the host would have to wait, clamp them.
    """
    if torch.compiler.is_compiling() or type(lengths) is not Tensor or lengths.device.type != "cpu":
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        return
    outside = ((lengths < 0) | (lengths > positions)).nonzero().flatten().tolist()
    if outside:
        came = f"{int(lengths[outside[0]])} for {entry} {outside[0]}"
        raise ValueError(f"{name} must lie in [0, {positions}], got {came}")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _sizes(*sizes: int | str) -> str:
    """A shape, with names for the sizes that are free, as a tuple is written."""
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"
