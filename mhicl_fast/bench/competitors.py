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
    "flex",
)
COMPILED = ("compile", "compile-rows", "flex")


def attention_competitors(shape: AttentionShape, wanted: Container[str] = NAMES) -> dict[str, Model]:
    """The wanted functions by name, in the order of `NAMES`, those alone that make a difference at this shape."""
    causal, grouped = shape.causal, shape.heads != shape.key_heads
    made: dict[str, Callable[[], Model]] = {
        "mhicl_fast": lambda: _ours(causal),
        "eager": lambda: _eager(shape),
        "compile": lambda: torch.compile(_eager(shape), dynamic=False),
        "sdpa": lambda: _sdpa(causal, grouped),
        "sdpa-math": lambda: _on_backend(SDPBackend.MATH, _sdpa(causal, grouped)),
        "sdpa-flash": lambda: _on_backend(SDPBackend.FLASH_ATTENTION, _sdpa(causal, grouped)),
        "flex": lambda: _flex(shape),
    }
    if grouped:
        made |= {
            "eager-rows": lambda: _eager_rows(shape),
            "compile-rows": lambda: torch.compile(_eager_rows(shape), dynamic=False),
            "sdpa-rows": lambda: _sdpa_rows(shape),
        }
    return {name: made[name]() for name in NAMES if name in made and name in wanted}


def _ours(causal: bool) -> Model:
    return lambda query, key, value: cast(Tensor, mhicl_fast.attention(query, key, value, is_causal=causal))


def _hidden(shape: AttentionShape) -> Tensor | None:
    """(Lq, L): the keys that a causal row must not see; None where it sees all."""
    return torch.ones(shape.rows, shape.keys, dtype=torch.bool).triu(1) if shape.causal else None


def _eager(shape: AttentionShape) -> Model:
    """Keys are repeated for the heads that share them."""
    group, hidden = shape.heads // shape.key_heads, _hidden(shape)

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


def _eager_rows(shape: AttentionShape) -> Model:
    hidden = _hidden_rows(shape)
    return _with_heads_as_rows(shape, lambda query, key, value: _softmax_attention(query, key, value, hidden))


def _sdpa_rows(shape: AttentionShape) -> Model:
    hidden = _hidden_rows(shape)
    seen = None if hidden is None else ~hidden
    return _with_heads_as_rows(
        shape, lambda query, key, value: F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    )


def _hidden_rows(shape: AttentionShape) -> Tensor | None:
    """As `_hidden`, for the rows of the heads that share a key head."""
    hidden = _hidden(shape)
    return None if hidden is None else hidden.repeat(shape.heads // shape.key_heads, 1)


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


def _flex(shape: AttentionShape) -> Model:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # loads the compiler: seconds

    block_mask = None
    if shape.causal:
        block_mask = create_block_mask(
            lambda _batch, _head, row, key: row >= key, None, None, shape.rows, shape.keys, device="cpu"
        )
    compiled = torch.compile(flex_attention, dynamic=False)
    grouped = shape.heads != shape.key_heads
    return lambda query, key, value: compiled(query, key, value, block_mask=block_mask, enable_gqa=grouped)
