"""Routing `torch.nn.functional.scaled_dot_product_attention` to this package's kernels, inside a block.

A `TorchFunctionMode` sees the calls of the thread that entered it, also through references taken before, as by
`from torch.nn.functional import …`, which replacing the attribute would miss.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, redispatch_function

from mhicl_fast import attention

from .._extension import why_no_kernels
from ..ops.derivatives import autocasts
from ..validation import NUMBERS

_sdpa = F.scaled_dot_product_attention
# A mode is off inside what it sees called. These call scaled_dot_product_attention in turn, the last three where they
# compute a checkpointed forward pass anew.
_CALLERS = (F.multi_head_attention_forward, Tensor.backward, torch.autograd.backward, torch.autograd.grad)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class route_sdpa(TorchFunctionMode):
    """Context manager: calls of `scaled_dot_product_attention` in the block run on this package's kernels.

        with nn.route_sdpa() as report:
            loss = model(batch).sum()
            loss.backward()
        print(report)

    What the kernels cannot take goes on to PyTorch, with one warning for each reason and block, or is an error:
    dropout, devices without kernels, dtypes that are not floating-point, additive masks of another dtype than query's,
    scales that are tensors, batch dimensions that broadcast, attn_mask together with is_causal, and
    `nn.MultiheadAttention` inside `torch.compile` (use `replace_attention` there). The block counts both kinds of
    calls, in `routed` and, by reason, in `passed_on`.

    Blocks may be nested, the innermost decides, and a block routes only the calls of the thread that entered it.
    Leaving it, by exceptions too, restores what was before. A function compiled by `torch.compile` is compiled once for
    inside and once for outside. Code that does not call `scaled_dot_product_attention` is not affected. Where
    activation checkpointing computes a forward pass anew, its backward pass must run in the block too; else PyTorch
    raises a CheckpointError.

    Args:
        strict: whether what the kernels cannot take raises ValueError instead of going on to PyTorch.
    """

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict
        self.routed = 0
        self.passed_on: dict[str, int] = {}

    def __repr__(self) -> str:
        passed_on = ", ".join(f"{count} ({reason})" for reason, count in self.passed_on.items())
        return f"route_sdpa: {self.routed} calls routed, {passed_on or 'none'} passed on to PyTorch"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _sdpa:
            return self._call(*args, **kwargs)
        if func in _CALLERS:
            if not torch.compiler.is_compiling():
                with self:
                    return redispatch_function(func, types, args, kwargs)
            self._pass_on(f"{func.__name__} inside torch.compile")
        return func(*args, **kwargs)

    def _call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        reason = _why_not(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if reason is None:
            self.routed += 1
            return attention(query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale)
        self._pass_on(reason)
        with torch._C.DisableTorchFunction():  # the innermost block has decided
            return _sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    def _pass_on(self, reason: str) -> None:
        if self.strict:
            raise ValueError(f"scaled_dot_product_attention cannot be routed: {reason}")
        if reason not in self.passed_on and not torch.compiler.is_compiling():  # no warnings can be traced
            warnings.warn(f"scaled_dot_product_attention goes on to PyTorch: {reason}", stacklevel=4)
        self.passed_on[reason] = self.passed_on.get(reason, 0) + 1


def _why_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: Any,
    gqa: bool,
) -> str | None:
    """What keeps the kernels from computing this call, or None."""
    if dropout_p > 0:
        return "dropout_p is not 0"
    tensors = [x for x in (query, key, value, attn_mask) if x is not None]
    if any(x.is_nested for x in tensors):
        return "nested tensors"
    if any(why_no_kernels("attention", x.device) for x in tensors):
        return f"there are no kernels for device {query.device.type}"
    if any(x.dtype not in _DTYPES for x in (query, key, value)):
        return f"dtype {query.dtype} is not floating-point"
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype) and not autocasts(query.device.type):
        return f"attn_mask is {attn_mask.dtype} where query is {query.dtype}"
    if scale is not None and not isinstance(scale, NUMBERS):
        return f"scale is a {type(scale).__name__}"
    if attn_mask is not None and is_causal:
        return "attn_mask together with is_causal, which PyTorch does not define"
    if query.dim() < 2 or not query.dim() == key.dim() == value.dim():
        return "numbers of dimensions differ"
    if query.shape[-1] == 0:
        return "rows of no numbers"
    heads_fit = key.shape[-3:-2] == query.shape[-3:-2] or (gqa and query.dim() > 3)
    if key.shape[:-3] != query.shape[:-3] or key.shape[:-2] != value.shape[:-2] or not heads_fit:
        return "batch dimensions that broadcast"
    return None
