"""Sums and rows over prompts computed for some prompts at a time, so that tables in between stay small."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK_BYTES = 1 << 25  # what a chunk's second backward pass holds, about
_TABLES, _CONTEXTS = 16, 3  # tables of probabilities, and copies of the context, that are alive in it at a time

Tensors = list[Tensor | None]


def prompts_at_a_time(context: Tensor, rows: int) -> int:
    """Prompts of context (N, L, D) with so many rows of attention each that fill CHUNK_BYTES; at least one."""
    _, length, dim = context.shape
    return max(1, CHUNK_BYTES // (context.element_size() * max(length, 1) * (_CONTEXTS * dim + _TABLES * rows)))


def over_prompts(
    function: Callable[..., Tensors], inputs: Sequence[Tensor | None], dims: Sequence[int | None], size: int
) -> Tensors:
    """function(*inputs), for at most `size` prompts at a time.

    `dims` says for each input which of its dimensions runs over prompts, None for what all prompts share. The results
    go with the first inputs: rows are concatenated along the same dimension, and gradients of what is shared added.
    """
    n_prompts = next(x.shape[dim] for x, dim in zip(inputs, dims) if x is not None and dim is not None)
    if n_prompts <= size:
        return function(*inputs)
    rows: dict[int, list[Tensor]] = {}
    sums: dict[int, Tensor] = {}
    for first in range(0, n_prompts, size):
        count = min(size, n_prompts - first)
        of_chunk = [x if x is None or dim is None else x.narrow(dim, first, count) for x, dim in zip(inputs, dims)]
        results = function(*of_chunk)
        for number, (result, dim) in enumerate(zip(results, dims)):
            if result is not None and dim is None:
                sums[number] = sums[number] + result if number in sums else result
            elif result is not None:
                rows.setdefault(number, []).append(result)
    joined = {number: torch.cat(parts, dims[number] or 0) for number, parts in rows.items()} | sums
    return [joined.get(number) for number in range(len(results))]
