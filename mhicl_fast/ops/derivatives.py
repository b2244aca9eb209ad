"""What all operators share on the way to their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Definition = Callable[..., Tensor | tuple[Tensor, ...]]
Grads = tuple[Tensor | None, ...]
Setup = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]

_LIBRARY = torch.library.Library("mhicl", "IMPL")


def register_derivative(name: str, backward: Callable[..., Grads], setup: Setup) -> None:
    """`torch.library.register_autograd` for schemas without defaults.

    That one looks for defaults at every call, which takes longer than a small problem: 40 µs for ten arguments.

    Args:
        name: of the operator.
        backward: of the context and the gradients of all outputs, to the gradients of all positional inputs.
        setup: of the context, the positional inputs, those by keyword, and the output.
    """
    operator = getattr(torch.ops.mhicl, name).default

    def below_autograd(inputs: tuple[Any, ...], keyset: Any, options: dict[str, Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *inputs, **options)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            *inputs, keyset, options = arguments
            output = below_autograd(tuple(inputs), keyset, options)
            setup(ctx, tuple(inputs), options, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Grads:
            return *backward(ctx, *grads), None, None

    def compute(keyset: Any, *inputs: Any, **options: Any) -> Any:
        if _any_tangent(*inputs):  # which would be dropped without a word
            raise NotImplementedError(
                f"mhicl::{name} got a tensor with a tangent, which only the public functions know: call them inside "
                "forward_ad.dual_level or torch.func.jvp, not before"
            )
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Differentiable.apply(*inputs, keyset, options)
        return below_autograd(inputs, keyset, options)

    Differentiable.__name__ = f"{name}_derivative"
    _LIBRARY.impl(name, compute, "Autograd", with_keyset=True)


def differentiate_backward(
    definition: Definition,
    cotangents: Sequence[Tensor | None],
    arguments: Sequence[Tensor | None],
    backward_needs: Sequence[bool],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradient of a backward operator in its cotangents and arguments, through the definition of the forward one.

    `definition` takes the arguments and returns a tuple with one output a cotangent; an output whose cotangent is None
    plays no part, and an argument that is None has no gradients. `backward_needs` says which arguments the backward
    operator differentiated by, `needs` which cotangents and arguments want a gradient now, and `grads` are the
    gradients of the backward operator's results.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if x is None else _alias(x, create_graph) for x in (*cotangents, *arguments)]
        inputs = aliases[len(cotangents) :]
        outputs = [(y, g) for y, g in zip(definition(*inputs), aliases) if g is not None]
        first_inputs = [x for x, need in zip(inputs, backward_needs) if need and x is not None]
        first = torch.autograd.grad(
            [y for y, _ in outputs], first_inputs, [g for _, g in outputs], create_graph=True
        )  # fmt: skip
    pairs = [
        (value, grad)
        for value, grad in zip(first, [g for g, need in zip(grads, backward_needs) if need])
        if grad is not None and value.requires_grad
    ]
    wanted = [x for x, need in zip(aliases, needs) if need and x is not None]
    values, cogradients = [value for value, _ in pairs], [grad for _, grad in pairs]
    second = iter(torch.autograd.grad(values, wanted, cogradients, create_graph=create_graph, allow_unused=True))
    return [next(second) if need and x is not None else None for x, need in zip(aliases, needs)]


def _alias(x: Tensor, create_graph: bool) -> Tensor:
    """A tensor to differentiate by in place of x, which may itself be a function of another saved tensor."""
    return x.view_as(x) if create_graph and x.requires_grad else x.detach().requires_grad_()


def in_compute_dtype(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, computed in float32 for 16-bit types, as by the kernels, whatever autocast says."""

    def compute(first: Tensor, *others: Tensor | None) -> Any:
        device = first.device.type
        if autocasts(device):
            with torch.autocast(device, enabled=False):
                return compute(first, *others)
        return function(*(None if x is None else x.to(compute_dtype(x.dtype)) for x in (first, *others)))

    return compute


def needs_definition(*tensors: Tensor | None) -> bool:
    """Whether a transform is active that only the plain-PyTorch definition gets right."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level >= 0 and torch.compiler.is_compiling():
        return True
    return _any_tangent(*tensors)


def _any_tangent(*arguments: Any) -> bool:
    return forward_ad._current_level >= 0 and any(
        isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in arguments
    )


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """The arguments as autocast wants them: floating-point tensors but float64 ones in its dtype, the rest as it is."""
    if not isinstance(tensors[0], Tensor) or not autocasts(tensors[0].device.type):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and _is_cast(x.dtype) else x for x in tensors)


def _is_cast(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype != torch.float64


def autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def where_needed(grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    return [grad if need else None for grad, need in zip(grads, needs)]


def as_int64(lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else lengths.to(torch.int64)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
