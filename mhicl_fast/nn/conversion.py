"""Conversion between `MultiHeadAttention` and `torch.nn.MultiheadAttention`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .core import Weights
from .multi_head import MultiHeadAttention


def from_torch(module: nn.MultiheadAttention, *, projection: str = "auto") -> MultiHeadAttention:
    """A `MultiHeadAttention` with copies of a PyTorch module's parameters, packed or separate.

    It is called as (N, Lq, D), (N, L, Dk), (N, L, Dv) whatever batch_first was.

    Raises:
        TypeError: it is no `torch.nn.MultiheadAttention`.
        ValueError: it has dropout, add_bias_kv or add_zero_attn.
    """
    check_supported(module)
    weights = torch_weights(module)
    converted = MultiHeadAttention(
        module.embed_dim, module.num_heads, kdim=module.kdim, vdim=module.vdim, bias=module.in_proj_bias is not None,
        out_bias=module.out_proj.bias is not None, projection=projection, device=weights.o.device,
        dtype=weights.o.dtype,
    )  # fmt: skip
    _copy(weights, converted.weights())
    return converted.train(module.training)


def to_torch(module: MultiHeadAttention, *, batch_first: bool = True) -> nn.MultiheadAttention:
    """A `torch.nn.MultiheadAttention` with copies of the module's parameters.

    Raises:
        TypeError: it is no `MultiHeadAttention`.
        ValueError: PyTorch's module has no such form: an output or heads of another width than D and D / H, another
            activation or scale, biases on only one side.
    """
    if not isinstance(module, MultiHeadAttention):
        raise TypeError(f"module must be a MultiHeadAttention, got {type(module).__name__}")
    _check_has_torch_form(module)
    weights = module.weights()
    converted = nn.MultiheadAttention(
        module.embed_dim, module.num_heads, bias=weights.q_bias is not None, kdim=module.kdim, vdim=module.vdim,
        batch_first=batch_first, device=weights.o.device, dtype=weights.o.dtype,
    )  # fmt: skip
    _copy(weights, torch_weights(converted))
    return converted.train(module.training)


def torch_weights(module: nn.MultiheadAttention) -> Weights:
    """The parameters as the projections take them: views of them where they are packed."""
    packed = cast("Tensor | None", module.in_proj_weight)
    separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    q, k, v = separate if packed is None else packed.chunk(3)
    bias = cast("Tensor | None", module.in_proj_bias)
    q_bias, k_bias, v_bias = (None, None, None) if bias is None else bias.chunk(3)
    return Weights(q, k, v, module.out_proj.weight, q_bias, k_bias, v_bias, module.out_proj.bias)


def check_supported(module: nn.MultiheadAttention) -> None:
    """Raise unless the kernels can compute what the module does."""
    if not isinstance(module, nn.MultiheadAttention):
        raise TypeError(f"module must be a torch.nn.MultiheadAttention, got {type(module).__name__}")
    if module.dropout > 0:
        raise ValueError(
            f"dropout on the attention weights must be 0, got {module.dropout}: there are no kernels with dropout. "
            "Set the module's .dropout = 0.0 first (in a TransformerEncoderLayer .self_attn.dropout = 0.0; its other "
            "dropouts stay)"
        )
    if module.bias_k is not None or module.bias_v is not None:
        raise ValueError("add_bias_kv must be False, got a module with bias_k and bias_v")
    if module.add_zero_attn:
        raise ValueError("add_zero_attn must be False, got True")


def _check_has_torch_form(module: MultiHeadAttention) -> None:
    width, inner = module.embed_dim, module.num_heads * module.head_dim
    if inner != width or module.out_dim != width:
        raise ValueError(
            f"torch.nn.MultiheadAttention has heads of width {width} / {module.num_heads} and an output of width "
            f"{width}, got head_dim {module.head_dim} and out_dim {module.out_dim}"
        )
    if module.activation != "softmax" or module.scale != module.head_dim**-0.5:
        raise ValueError(
            "torch.nn.MultiheadAttention has softmax attention of scale head_dim^-1/2, "
            f"got {module.activation} and scale {module.scale}"
        )
    if (module.q_proj.bias is None) != (module.o_proj.bias is None):
        raise ValueError("torch.nn.MultiheadAttention has biases on all projections or on none, got bias != out_bias")


@torch.no_grad()
def _copy(source: Weights, target: Weights) -> None:
    for old, new in zip(source, target):
        if old is not None and new is not None:
            new.copy_(old)
