"""What `mhicl_fast.attention` competes with: softmax attention in PyTorch, as people write it and at its best.

Each is made for one shape and maps query (B, Hq, Lq, E), key (B, Hk, L, E), value (B, Hk, L, Ev) to (B, Hq, Lq, Ev).
Where heads share keys, the forms named -rows put the heads that share a key head beside each other as rows of one
problem, so that no key is copied; that is PyTorch's best case, which few write. Compiled ones are compiled for each
shape anew, PyTorch's best case too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mhicl_fast

from .shapes import AttentionShape

Model = Callable[..., Tensor]

NAMES = (
    "mhicl_fast",
    "eager",
    "eager-rows",
    "compile",
    "compile-rows",
    "sdpa",
    "sdpa-rows",
    "sdpa-math",
    "sdpa-flash",
    "sdpa-efficient",
    "sdpa-cudnn",
    "flex",
)
COMPILED = ("compile", "compile-rows", "flex")
ON_GPUS = ("sdpa-efficient", "sdpa-cudnn")  # backends that no other device has


def attention_competitors(
    shape: AttentionShape, wanted: Container[str] = NAMES, device: torch.device | None = None
) -> dict[str, Model]:
    """The wanted functions by name, in the order of `NAMES`, those alone that make a difference at this shape.

    device: where the tensors will be; None is the CPU.
    """
    causal, grouped = shape.causal, shape.heads != shape.key_heads
    hidden = _hidden(shape, device)
    made: dict[str, Callable[[], Model]] = {
        "mhicl_fast": lambda: _ours(causal),
        "eager": lambda: _eager(shape, hidden),
        "compile": lambda: torch.compile(_eager(shape, hidden), dynamic=False),
        "sdpa": lambda: _sdpa(causal, grouped),
        "sdpa-math": lambda: _on_backend(SDPBackend.MATH, _sdpa(causal, grouped)),
        "sdpa-flash": lambda: _on_backend(SDPBackend.FLASH_ATTENTION, _sdpa(causal, grouped)),
        "flex": lambda: _flex(shape, device),
    }
    if device is not None and device.type == "cuda":
        made |= {
            "sdpa-efficient": lambda: _on_backend(SDPBackend.EFFICIENT_ATTENTION, _sdpa(causal, grouped)),
            "sdpa-cudnn": lambda: _on_backend(SDPBackend.CUDNN_ATTENTION, _sdpa(causal, grouped)),
        }
    if grouped:
        in_rows = None if hidden is None else hidden.repeat(shape.heads // shape.key_heads, 1)
        made |= {
            "eager-rows": lambda: _eager_rows(shape, in_rows),
            "compile-rows": lambda: torch.compile(_eager_rows(shape, in_rows), dynamic=False),
            "sdpa-rows": lambda: _sdpa_rows(shape, in_rows),
        }
    return {name: made[name]() for name in NAMES if name in made and name in wanted}


def _ours(causal: bool) -> Model:
    return lambda query, key, value: cast(Tensor, mhicl_fast.attention(query, key, value, is_causal=causal))


def _hidden(shape: AttentionShape, device: torch.device | None) -> Tensor | None:
    """(Lq, L): the keys that a causal row must not see; None where it sees all."""
    return torch.ones(shape.rows, shape.keys, dtype=torch.bool, device=device).triu(1) if shape.causal else None


def _eager(shape: AttentionShape, hidden: Tensor | None) -> Model:
    """Keys are repeated for the heads that share them."""
    group = shape.heads // shape.key_heads

    def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if group > 1:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        return _softmax_attention(query, key, value, hidden)

    return eager


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
    """Scores, softmax, sum, with a mask made once."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value


def _eager_rows(shape: AttentionShape, hidden: Tensor | None) -> Model:
    return _with_heads_as_rows(shape, lambda query, key, value: _softmax_attention(query, key, value, hidden))


def _sdpa_rows(shape: AttentionShape, hidden: Tensor | None) -> Model:
    seen = None if hidden is None else ~hidden
    return _with_heads_as_rows(
        shape, lambda query, key, value: F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    )


def _with_heads_as_rows(shape: AttentionShape, model: Model) -> Model:
    """The model on (B, Hk, Hq / Hk · Lq, E) queries."""

    def rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = model(query.reshape(shape.batch, shape.key_heads, -1, shape.dim), key, value)
        return out.reshape(shape.batch, shape.heads, shape.rows, shape.value_dim)

    return rows


def _sdpa(causal: bool, grouped: bool) -> Model:
    return lambda query, key, value: F.scaled_dot_product_attention(
        query, key, value, is_causal=causal, enable_gqa=grouped
    )


def _on_backend(backend: SDPBackend, model: Model) -> Model:
    def chosen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return model(query, key, value)

    return chosen


def _flex(shape: AttentionShape, device: torch.device | None) -> Model:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # loads the compiler: seconds

    block_mask = None
    if shape.causal:
        block_mask = create_block_mask(
            lambda _batch, _head, row, key: row >= key, None, None, shape.rows, shape.keys, device=device or "cpu"
        )
    compiled = torch.compile(flex_attention, dynamic=False)
    grouped = shape.heads != shape.key_heads
    return lambda query, key, value: compiled(query, key, value, block_mask=block_mask, enable_gqa=grouped)
