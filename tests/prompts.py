"""Random inputs of the prompt operators, and the comparison with their definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    n: int
    length: int
    dim: int
    outputs: int
    heads: int
    models: int | None = None


def make_inputs(shape: Shape, dtype: torch.dtype, seed: int, logit_scale: float = 1.0) -> list[Tensor]:
    """Context, query, kq, ov with logits of standard deviation `logit_scale`."""
    generator = torch.Generator().manual_seed(seed)
    leading = () if shape.models is None else (shape.models,)
    n, length, dim, outputs, heads, _ = shape
    sizes = [(n, length, dim), (n, dim), (*leading, heads, dim, dim), (*leading, heads, outputs, dim)]
    context, query, kq, ov = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return [x.to(dtype) for x in (context, query, kq * (logit_scale / dim), ov)]


def value_and_grads(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    needs: Sequence[bool],
    cotangent_dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """The outputs, and the gradients of a fixed random combination of them for the inputs that need one.

    The combination's weights are rounded to `cotangent_dtype`, so that runs in several dtypes can share them.
    """
    # clone() keeps the strides of tensors without gaps or repetitions only; an alias keeps all.
    inputs = [x.detach().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(cotangent_dtype) for y in outputs]
    cotangents = [weight.to(y.dtype) for weight, y in zip(weights, outputs, strict=True)]
    differentiable = [(y, cotangent) for y, cotangent in zip(outputs, cotangents, strict=True) if y.requires_grad]
    grads = torch.autograd.grad(
        [y for y, _ in differentiable], [x for x in inputs if x.requires_grad], [c for _, c in differentiable]
    )
    return [*(y.detach() for y in outputs), *grads]


def relative_errors(values: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """‖value − expected‖ / ‖expected‖ for each pair; absolute where the expectation vanishes."""
    errors = []
    for value, truth in zip(values, expected, strict=True):
        assert value.shape == truth.shape
        scale = truth.double().norm()
        errors.append(float((value.double() - truth.double()).norm() / (scale if scale > 0 else 1.0)))
    return errors
