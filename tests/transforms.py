"""Ways to differentiate and to trace an operator, to compare it by value with its definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap


def as_function_of(operator: Callable[..., Tensor], inputs: Sequence[Tensor], which: int) -> Callable[[Tensor], Tensor]:
    return lambda x: operator(*inputs[:which], x, *inputs[which + 1 :])


def scalar(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *x: operator(*x).square().sum()


def _tangent(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)


def _dual(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, _tangent(x)))).tangent


def _third(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    first = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]
    return torch.autograd.grad(second.square().sum(), x)[0]


# Each takes a vector-valued function of one argument and the argument.
TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda f, x: grad(scalar(f))(x),
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x])),
    "vmap of grad": lambda f, x: vmap(grad(scalar(f)))(torch.stack([x, 2 * x])),
    "jvp": lambda f, x: jvp(f, (x,), (_tangent(x),))[1],
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "nested jacfwd": lambda f, x: jacfwd(jacfwd(scalar(f)))(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd of jacrev": lambda f, x: jacfwd(jacrev(scalar(f)))(x),
    "hessian": lambda f, x: hessian(scalar(f))(x),
    "jvp of grad": lambda f, x: jvp(grad(scalar(f)), (x,), (_tangent(x),))[1],
    "dual numbers": _dual,
    "double backward": lambda f, x: torch.autograd.functional.hessian(scalar(f), x),
    "third derivative": _third,
}


def compile_keeping_graphs(function: Callable, *, dynamic: bool) -> tuple[Callable, list[str]]:
    """The function compiled as one graph, and the code of the forward and backward graphs, once it has run."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[str] = []

    def keep_graph(module: torch.fx.GraphModule, example_inputs: object) -> Callable:
        graphs.append(module.code)
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    return torch.compile(
        function, fullgraph=True, dynamic=dynamic, backend=aot_autograd(fw_compiler=keep_graph)
    ), graphs
