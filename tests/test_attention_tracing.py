"""attention traced: compiled, exported, without data, and by PyTorch's own checks of operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attentions import Case, definition, make_inputs, make_mask
from torch import Tensor
from transforms import TRANSFORMS, as_function_of, compile_keeping_graphs, scalar

from mhicl_fast import attention

CASE = Case(2, 4, 2, 3, 5, 3, 2)
LENGTHS = torch.tensor([1, 4])
SEEN = make_mask((2, 1, 3, 5), "boolean", torch.float64, seed=0)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "key_lengths": LENGTHS},
    "boolean mask": {"attn_mask": SEEN},
    "additive mask": {"attn_mask": make_mask((1, 4, 1, 5), "additive", torch.float64, seed=1)},
    "relu": {"activation": "relu", "scale": 0.5},
}


def with_options(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Tensor]:
    return lambda *x: function(*x, **options)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_compile_is_one_graph_and_runs_the_kernels_both_ways(options: dict, dynamic: bool) -> None:
    compiled, graphs = compile_keeping_graphs(scalar(with_options(attention, options)), dynamic=dynamic)
    leaves = [x.requires_grad_() for x in make_inputs(CASE, torch.float64, seed=2)]
    got = torch.autograd.grad(compiled(*leaves), leaves)
    expected = torch.autograd.grad(scalar(with_options(definition, options))(*leaves), leaves)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(got, expected, strict=True))
    assert "mhicl.attention.default" in graphs[0]
    assert "mhicl.attention_backward.default" in graphs[1]


def by_length(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """The papers' linear attention, whose scale depends on a size that varies."""
    return lambda q, k, v: function(q, k, v, activation="linear", scale=1 / k.shape[2])


DYNAMIC = {"default scale": lambda function: with_options(function, {"is_causal": True}), "1/L": by_length}


@pytest.mark.parametrize("kind", DYNAMIC.values(), ids=DYNAMIC)
def test_dynamic_shapes_compile_once(kind: Callable[..., Callable[..., Tensor]]) -> None:
    compiled, graphs = compile_keeping_graphs(scalar(kind(attention)), dynamic=True)
    # Sizes that are equal at first are taken to be so always.
    for case in (Case(2, 8, 4, 3, 5, 7, 6), Case(3, 6, 2, 10, 11, 9, 4), Case(5, 12, 3, 8, 9, 13, 10)):
        leaves = [x.requires_grad_() for x in make_inputs(case, torch.float64, seed=3)]
        got = torch.autograd.grad(compiled(*leaves), leaves)
        expected = torch.autograd.grad(scalar(kind(definition))(*leaves), leaves)
        assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(got, expected, strict=True))
    assert len(graphs) == 2


@pytest.mark.parametrize(("leading", "dynamic"), [((), False), ((2,), True), ((2, 3, 4), True)], ids=str)
def test_compile_with_everything_returned(leading: tuple[int, ...], dynamic: bool) -> None:
    x = torch.randn(*leading, 5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64).requires_grad_()

    def total(x: Tensor) -> Tensor:
        out, lse, weights = attention(x, x, x, return_lse=True, return_weights=True, is_causal=True)
        return out.square().sum() + lse.square().sum() + weights.square().sum()

    compiled, _ = compile_keeping_graphs(total, dynamic=dynamic)
    got, expected = (torch.autograd.grad(f(x), x)[0] for f in (compiled, total))
    assert torch.allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["grad", "vmap", "jvp", "jacfwd", "hessian", "vmap of grad"])
def test_transforms_inside_compile(name: str) -> None:
    inputs = make_inputs(CASE, torch.float64, seed=5)
    options = OPTIONS["causal"]
    expected = TRANSFORMS[name](as_function_of(with_options(definition, options), inputs, 1), inputs[1])
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: TRANSFORMS[name](as_function_of(with_options(attention, options), inputs, 1), x),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.allclose(compiled(inputs[1]), expected, rtol=1e-9, atol=1e-10)


class Model(torch.nn.Module):
    def __init__(self, key: Tensor) -> None:
        super().__init__()
        self.key = torch.nn.Parameter(key)

    def forward(self, query: Tensor, value: Tensor) -> Tensor:
        return attention(query, self.key, value, is_causal=True)


@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_without_gradients_and_differentiated_after(dynamic: bool) -> None:
    query, key, value = make_inputs(CASE, torch.float64, seed=6)
    rows = {2: torch.export.Dim("rows")}
    with torch.no_grad():
        exported = torch.export.export(
            Model(key), (query, value), dynamic_shapes={"query": rows, "value": None} if dynamic else None
        ).module()
    if dynamic:
        query = make_inputs(CASE._replace(rows=9), torch.float64, seed=7)[0]
    parameter = dict(exported.named_parameters())["key"]
    (got,) = torch.autograd.grad(exported(query, value).square().sum(), parameter)
    leaf = key.requires_grad_()
    (expected,) = torch.autograd.grad(definition(query, leaf, value, is_causal=True).square().sum(), leaf)
    assert torch.allclose(got, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_a_scale_that_depends_on_a_size(strict: bool) -> None:
    class Linear(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return by_length(attention)(query, key, value)

    keys = {2: torch.export.Dim("keys", min=2)}
    inputs = tuple(make_inputs(CASE, torch.float64, seed=6))
    exported = torch.export.export(Linear(), inputs, dynamic_shapes=(None, keys, keys), strict=strict).module()
    inputs = tuple(make_inputs(CASE._replace(keys=9), torch.float64, seed=7))
    assert torch.allclose(exported(*inputs), by_length(definition)(*inputs))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("wants", [(False, False), (True, True)])
@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
def test_opcheck(mask: str | None, wants: tuple[bool, bool], requires_grad: bool) -> None:
    inputs = [x.requires_grad_(requires_grad) for x in make_inputs(CASE, torch.float64, seed=8)]
    attn_mask = None if mask is None else make_mask((1, 4, 3, 5), mask, torch.float64, seed=9)
    if mask == "additive":
        attn_mask.requires_grad_(requires_grad)
    options = {"scale": 0.7, "is_causal": True, "activation": "softmax"}
    arguments = (*inputs, attn_mask, LENGTHS)
    torch.library.opcheck(
        torch.ops.mhicl.attention, arguments, options | {"want_lse": wants[0], "want_weights": wants[1]}
    )


@pytest.mark.parametrize(
    ("needs", "activation"), [((True, True, True, True), "softmax"), ((False, True, False, False), "linear")]
)
def test_opcheck_of_the_backward_operator(needs: tuple[bool, ...], activation: str) -> None:
    softmax = activation == "softmax"
    inputs = [*make_inputs(CASE, torch.float64, seed=10), make_mask((1, 4, 3, 5), "additive", torch.float64, seed=11)]
    options = {"scale": 0.7, "is_causal": False, "activation": activation}
    out, lse, weights, stats = torch.ops.mhicl.attention(
        *inputs, LENGTHS, **options, want_lse=softmax, want_weights=True
    )
    grads = [torch.randn_like(out), torch.randn_like(lse) if softmax else None, torch.randn_like(weights)]
    for requires_grad in (False, True):
        differentiable = [x if x is None else x.requires_grad_(requires_grad) for x in (*grads, *inputs)]
        torch.library.opcheck(
            torch.ops.mhicl.attention_backward,
            (*differentiable, LENGTHS, stats),
            options | {"needs": list(needs)},
        )


def test_meta_tensors() -> None:
    inputs = [x.to("meta") for x in make_inputs(CASE, torch.bfloat16, seed=12)]
    out, lse, weights = attention(*inputs, return_lse=True, return_weights=True)
    assert [tuple(x.shape) for x in (out, lse, weights)] == [(2, 4, 3, 2), (2, 4, 3), (2, 4, 3, 5)]
    assert [x.dtype for x in (out, lse, weights)] == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_fake_tensors_have_shapes_and_dtypes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        inputs = [torch.empty(s, requires_grad=True) for s in [(2, 4, 3, 5), (2, 2, 7, 5), (2, 2, 7, 6), (4, 1, 7)]]
        out, lse = attention(*inputs[:3], attn_mask=inputs[3], key_lengths=torch.tensor([1, 2]), return_lse=True)
        grads = torch.autograd.grad(out.sum() + lse.sum(), inputs)
    assert out.shape == (2, 4, 3, 6)
    assert lse.shape == (2, 4, 3)
    assert [g.shape for g in grads] == [x.shape for x in inputs]
