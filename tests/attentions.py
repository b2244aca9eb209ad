"""Random inputs of `attention`, its float64 definition with the same arguments, and that definition row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhicl_fast import reference


class Case(NamedTuple):
    batch: int
    heads: int
    key_heads: int
    rows: int
    keys: int
    dim: int
    value_dim: int

    @property
    def logits(self) -> tuple[int, ...]:
        return self.batch, self.heads, self.rows, self.keys

    def __str__(self) -> str:
        return "-".join(map(str, self))


def make_inputs(case: Case, dtype: torch.dtype, seed: int, logit_scale: float = 1.0) -> list[Tensor]:
    """Query, key and value whose logits have standard deviation `logit_scale` at the default scale."""
    b, heads, key_heads, rows, keys, dim, value_dim = case
    generator = torch.Generator().manual_seed(seed)
    sizes = [(b, heads, rows, dim), (b, key_heads, keys, dim), (b, key_heads, keys, value_dim)]
    query, key, value = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return [x.to(dtype) for x in (query * logit_scale, key, value)]


def make_mask(size: tuple[int, ...], kind: str, dtype: torch.dtype, seed: int) -> Tensor:
    """A mask of the kind "boolean", "additive", or "hiding": additive with a third of the entries −∞."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(size, generator=generator) < 2 / 3
    if kind == "boolean":
        return seen
    numbers = torch.randn(size, generator=generator, dtype=torch.float64)
    return (numbers.masked_fill(~seen, -torch.inf) if kind == "hiding" else numbers).to(dtype)


def make_lengths(batch: int, keys: int, seed: int) -> Tensor:
    """Lengths from 0, for the first problem, to all of the keys."""
    lengths = torch.randint(0, keys + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    lengths[:1] = 0
    return lengths


def wanted(function: Callable[..., tuple[Tensor, ...]], **options: Any) -> Callable[..., tuple[Tensor, ...]]:
    """`attention` or `definition` with its options and everything returned, −∞ in the log-sum-exp replaced by 0."""
    softmax = options.get("activation", "softmax") == "softmax"

    def compute(query: Tensor, key: Tensor, value: Tensor, *attn_mask: Tensor) -> tuple[Tensor, ...]:
        given = options | ({"attn_mask": attn_mask[0]} if attn_mask else {})
        outputs = function(query, key, value, return_lse=softmax, return_weights=True, **given)
        return tuple(x.masked_fill(x == -torch.inf, 0) for x in outputs)

    return compute


def definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
    compute: Callable[..., tuple[Tensor, Tensor, Tensor]] = reference.attention,
    **options: Any,
) -> Tensor | tuple[Tensor, ...]:
    """What `attention` must return, for four dimensions."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, lse, weights = compute(query, key, value, attn_mask, key_lengths, scale=scale, **options)
    more = (*([lse] if return_lse else []), *([weights] if return_weights else []))
    return (out, *more) if more else out


def by_rows(
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
    """The same as `reference.attention`, for each row from the keys alone that it sees."""
    (b, heads, rows, _), (_, key_heads, keys, _) = query.shape, key.shape
    mask = torch.ones(b, heads, rows, keys, dtype=torch.bool) if attn_mask is None else attn_mask
    mask = mask.expand(b, heads, rows, keys)
    out = query.new_zeros(b, heads, rows, value.shape[-1])
    lse = query.new_full((b, heads, rows), -math.inf)
    weights = query.new_zeros(b, heads, rows, keys)
    for n, h, i in ((n, h, i) for n in range(b) for h in range(heads) for i in range(rows)):
        last = min(keys if key_lengths is None else int(key_lengths[n]), i + 1 if is_causal else keys)
        row = mask[n, h, i]
        seen = [j for j in range(last) if (bool(row[j]) if row.dtype == torch.bool else float(row[j]) != -math.inf)]
        if not seen:
            continue
        group = h * key_heads // heads
        logits = scale * (key[n, group, seen] @ query[n, h, i])
        logits = logits if row.dtype == torch.bool else logits + row[seen]
        a = {"softmax": lambda x: x.softmax(-1), "linear": lambda x: x, "relu": torch.relu}[activation](logits)
        out[n, h, i] = a @ value[n, group, seen]
        lse[n, h, i] = logits.logsumexp(-1)
        weights[n, h, i, seen] = a
    return out, lse if activation == "softmax" else lse.new_empty(0), weights
