"""The modules under torch.compile, autocast, torch.func and second derivatives, by value."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from multi_head_modules import PlainMultiHead
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap

from mhicl_fast.nn import MultiHeadAttention, from_torch, replace_attention

Model = Callable[[Tensor, Tensor], Tensor]
SIDES = ["tokens", "query"]
KINDS = ["separate", "shared"]  # key and value two objects, or one, which `prompt_attention` takes on the query side


def modules(side: str, *, bias: bool = False) -> tuple[MultiHeadAttention, PlainMultiHead]:
    torch.manual_seed(2)
    plain = PlainMultiHead((4, 4, 4), 2, 4, 1, bias).double()
    module = MultiHeadAttention(4, 2, head_dim=4, out_dim=1, bias=bias, projection=side, dtype=torch.float64)
    module.load_state_dict(plain.state_dict())
    return module, plain


def called(module: nn.Module, kind: str) -> Model:
    """The module as a function of queries and tokens."""
    return lambda query, tokens: module(query, tokens, tokens if kind == "shared" else tokens.clone())


def draw() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 1, 4).double(), torch.randn(5, 6, 4).double()


TRANSFORMS: dict[str, Callable[[Model, Tensor, Tensor], Tensor]] = {
    "grad": lambda f, q, t: grad(lambda x: f(q, x).square().sum())(t),
    "jvp": lambda f, q, t: jvp(lambda x: f(q, x), (t,), (t.cos(),))[1],
    "hessian": lambda f, q, t: hessian(lambda x: f(q[:1], x).square().sum())(t[:1]),
    "vmap": lambda f, q, t: vmap(f)(torch.stack([q, 2 * q]), torch.stack([t, 3 * t])),
    "vmap of grad": lambda f, q, t: vmap(grad(lambda x: f(q, x).square().sum()))(torch.stack([t, 2 * t])),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(transform: Callable[..., Tensor], side: str, bias: bool, kind: str) -> None:
    module, plain = modules(side, bias=bias)
    query, tokens = draw()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = transform(called(plain, kind), query, tokens)
    assert expected.abs().max() > 0
    torch.testing.assert_close(transform(called(module, kind), query, tokens), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("side", SIDES)
def test_models_in_a_batch(side: str) -> None:
    """vmap over the parameters of several models."""
    one, _ = modules(side)
    other = copy.deepcopy(one)
    nn.init.normal_(other.q_proj.weight)
    query, tokens = draw()
    stacked = {name: torch.stack([x, dict(other.named_parameters())[name]]) for name, x in one.named_parameters()}
    got = vmap(lambda p: functional_call(one, p, (query, tokens, tokens)))(stacked)
    torch.testing.assert_close(got, torch.stack([model(query, tokens, tokens) for model in (one, other)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
def test_second_derivatives_of_parameters(side: str, kind: str) -> None:
    """A product of the Hessian with a vector."""
    module, plain = modules(side)
    query, tokens = draw()
    products = []
    for model in (module, plain):
        parameters = list(model.parameters())
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            loss = called(model, kind)(query, tokens).square().sum()
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            along = sum((g * p.detach().cos()).sum() for g, p in zip(first, parameters))
            products.append(torch.autograd.grad(along, parameters))
    torch.testing.assert_close(products[0], products[1], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("side", "kind"), [("tokens", "separate"), ("query", "separate"), ("query", "shared")])
def test_compiled(side: str, kind: str) -> None:
    module, _ = modules(side, bias=kind == "separate")
    torch._dynamo.reset()
    compiled = torch.compile(called(module, kind), fullgraph=True, backend="aot_eager")
    for n in (5, 3):  # the second size makes the first dynamic
        query, tokens = (x[:n] for x in draw())
        expected, got = called(module, kind)(query, tokens), compiled(query, tokens)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
        parameters = list(module.parameters())
        grads = [torch.autograd.grad(out.square().sum(), parameters) for out in (got, expected)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-9)


def test_replaced_encoder_compiled() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True, dtype=torch.float64)
    model = nn.TransformerEncoder(layer, 2)
    x, padding = torch.randn(3, 5, 8).double(), torch.arange(5) >= torch.tensor([5, 2, 1])[:, None]
    expected = model(x, src_key_padding_mask=padding)
    replace_attention(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, src_key_padding_mask=padding), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
def test_autocast(side: str, kind: str) -> None:
    module, plain = (model.float() for model in modules(side, bias=kind == "separate"))
    query, tokens = (x.float() for x in draw())
    exact = plain(query, tokens, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = called(module, kind)(query, tokens)
        loss = got.float().square().sum()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), exact, rtol=0.05, atol=0.02)
    grads = torch.autograd.grad(loss, list(module.parameters()))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=dtype)
    x = torch.randn(3, 5, 8, dtype=dtype)
    got = from_torch(theirs)(x, x, x)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, theirs(x, x, x)[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("side", SIDES)
def test_problems_that_are_empty(side: str) -> None:
    module, _ = modules(side, bias=True)
    for n, rows, tokens in [(0, 1, 3), (2, 0, 3), (2, 1, 0)]:
        out = module(torch.randn(n, rows, 4).double(), *[torch.randn(n, tokens, 4).double()] * 2)
        assert out.shape == (n, rows, 1)
        if tokens == 0:
            torch.testing.assert_close(out, module.o_proj.bias.expand(n, rows, 1))
        grads = torch.autograd.grad(out.sum(), list(module.parameters()))
        assert all(g.isfinite().all() for g in grads)
