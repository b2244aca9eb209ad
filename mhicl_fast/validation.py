"""Checks of the operators' arguments, before any kernel runs: what was expected and what came."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "meta")


def check_attention_inputs(
    context: Tensor, query: Tensor, kq: Tensor, ov: Tensor | None, context_lengths: Tensor | None
) -> None:
    """Raise TypeError or ValueError unless what `prompt_attention` takes (`prompt_moments`: ov None) fits."""
    named = {"context": context, "query": query, "kq": kq}
    if ov is not None:
        named["ov"] = ov
    for name, tensor in named.items():
        _check_tensor(name, tensor, context)
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
        _check_lengths(context_lengths, n, context.device)


def _check_tensor(name: str, tensor: Tensor, context: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.device.type not in _DEVICES:
        raise ValueError(f"{name} must be on the CPU, for which there are kernels, got device {tensor.device}")
    if tensor.device != context.device:
        raise ValueError(
            f"all tensors must be on one device, got context on {context.device} and {name} on {tensor.device}"
        )
    if tensor.dtype != context.dtype:
        raise TypeError(f"all tensors must have one dtype, got context {context.dtype} and {name} {tensor.dtype}")


def _check_lengths(lengths: Tensor, n: int, device: torch.device) -> None:
    if (
        not isinstance(lengths, Tensor)
        or lengths.is_floating_point()
        or lengths.is_complex()
        or lengths.dtype == torch.bool
    ):
        came = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"context_lengths must be an integer tensor, got {came}")
    if tuple(lengths.shape) != (n,):
        raise ValueError(f"context_lengths must be (prompts,) = ({n},), got shape {_shape(lengths)}")
    if lengths.device != device:
        raise ValueError(f"context_lengths must be on {device} like the context, got {lengths.device}")


def check_length_values(lengths: Tensor | None, context_length: int) -> None:
    """Raise ValueError for a length outside [0, L], where the values can be seen: not in traced or transformed tensors.

    The kernels check theirs themselves.
    """
    if torch.compiler.is_compiling() or type(lengths) is not Tensor or lengths.device.type == "meta":
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        return
    outside = ((lengths < 0) | (lengths > context_length)).nonzero().flatten().tolist()
    if outside:
        came = f"{int(lengths[outside[0]])} for prompt {outside[0]}"
        raise ValueError(f"context_lengths must lie in [0, {context_length}], got {came}")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
