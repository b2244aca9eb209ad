"""Every way to differentiate, trace and compile the prompt operators, compared by value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from prompts import Shape, make_inputs
from torch import Tensor
from torch.func import vmap
from transforms import TRANSFORMS, as_function_of, compile_keeping_graphs, scalar

from mhicl_fast import ops, reference

SHAPES = [Shape(3, 4, 2, 1, 2), Shape(3, 4, 2, 2, 2)]
NAMES = ["context", "query", "kq", "ov"]


@pytest.mark.parametrize("which", range(4), ids=NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_have_the_values_of_the_definition(transform: Callable, shape: Shape, which: int) -> None:
    inputs = make_inputs(shape, torch.float64, seed=0)
    got = transform(as_function_of(ops.prompt_attention, inputs, which), inputs[which])
    expected = transform(as_function_of(reference.prompt_attention, inputs, which), inputs[which])
    # A hessian in ov and the third derivative in it are what they are; everything else must not vanish.
    assert expected.abs().max() > 0
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["grad", "vmap", "jacfwd", "hessian"])
def test_transforms_inside_compile(name: str) -> None:
    inputs = make_inputs(SHAPES[0], torch.float64, seed=1)
    expected = TRANSFORMS[name](as_function_of(reference.prompt_attention, inputs, 2), inputs[2])
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: TRANSFORMS[name](as_function_of(ops.prompt_attention, inputs, 2), x),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.allclose(compiled(inputs[2]), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 2, 4])], ids=["full", "ragged"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradcheck_and_gradgradcheck(shape: Shape, lengths: Tensor | None) -> None:
    inputs = [x.requires_grad_() for x in make_inputs(shape, torch.float64, seed=2)]

    def attention(*x: Tensor) -> Tensor:
        return ops.prompt_attention(*x, context_lengths=lengths)

    def moments(*x: Tensor) -> tuple[Tensor, Tensor]:
        return ops.prompt_moments(*x, context_lengths=lengths)

    assert torch.autograd.gradcheck(attention, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attention, inputs)
    fixed = [x.detach() for x in inputs[:2]]
    assert torch.autograd.gradgradcheck(lambda kq, ov: attention(*fixed, kq, ov), inputs[2:])
    assert torch.autograd.gradcheck(moments, inputs[:3], check_forward_ad=True)
    assert torch.autograd.gradgradcheck(moments, inputs[:3])


def test_moments_alone_without_overlaps() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(SHAPES[0], torch.float64, seed=3)[:3]]
    assert torch.autograd.gradgradcheck(lambda *x: ops.prompt_moments(*x)[0], inputs)
    assert torch.autograd.gradgradcheck(lambda *x: torch.ops.mhicl.prompt_moments(*x, None, False)[0], inputs)


@pytest.mark.parametrize("keep", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_opcheck(shape: Shape, keep: tuple[bool, bool]) -> None:
    context, query, kq, ov = make_inputs(shape, torch.float64, seed=4)
    keep_moments, keep_jacobian = keep
    inputs = [
        context.requires_grad_(keep_moments and not keep_jacobian),
        query.requires_grad_(keep_moments),
        kq[None].clone().requires_grad_(keep_moments),
        ov[None].clone().requires_grad_(keep_moments),
    ]
    torch.library.opcheck(torch.ops.mhicl.prompt_attention, (*inputs, torch.tensor([0, 2, 4]), *keep))
    moments_inputs = [inputs[0], inputs[1], kq.clone().requires_grad_(keep_moments)]
    torch.library.opcheck(torch.ops.mhicl.prompt_moments, (*moments_inputs, None, keep_jacobian))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compile_is_one_graph_and_runs_the_kernels_both_ways(shape: Shape, dynamic: bool) -> None:
    inputs = make_inputs(shape, torch.float64, seed=5)
    leaves = [x.requires_grad_(i >= 2) for i, x in enumerate(inputs)]
    compiled, graphs = compile_keeping_graphs(scalar(ops.prompt_attention), dynamic=dynamic)
    got = torch.autograd.grad(compiled(*leaves), leaves[2:])
    expected = torch.autograd.grad(scalar(reference.prompt_attention)(*leaves), leaves[2:])
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(got, expected, strict=True))
    assert "mhicl.prompt_attention.default" in graphs[0]
    assert "mhicl.prompt_attention_backward.default" in graphs[1]


def test_autocast_casts_to_its_dtype() -> None:
    context, query, kq, ov = make_inputs(Shape(5, 6, 4, 2, 3), torch.float32, seed=6)
    kq.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.prompt_attention(context.bfloat16(), query, kq, ov)
        float64 = ops.prompt_attention(*(x.detach().double() for x in (context, query, kq, ov)))
    assert out.dtype == torch.bfloat16
    assert float64.dtype == torch.float64
    expected = ops.prompt_attention(*(x.detach().bfloat16() for x in (context, query, kq, ov)))
    assert torch.equal(out, expected)
    assert torch.autograd.grad(out.sum(), kq)[0].dtype == torch.float32


def test_definition_computes_16_bit_types_in_float32() -> None:
    inputs = make_inputs(Shape(40, 50, 16, 2, 3), torch.bfloat16, seed=7)
    exact = reference.prompt_attention(*(x.double() for x in inputs))
    got = vmap(lambda kq: ops.prompt_attention(*inputs[:2], kq, inputs[3]))(inputs[2][None])[0]
    assert got.dtype == torch.bfloat16
    assert (got.double() - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        wide = [x.double() for x in inputs]
        assert torch.allclose(vmap(lambda kq: ops.prompt_attention(*wide[:2], kq, wide[3]))(wide[2][None])[0], exact)


def test_exported_without_gradients_and_differentiated_after() -> None:
    inputs = make_inputs(SHAPES[0], torch.float64, seed=8)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kq, self.ov = torch.nn.Parameter(inputs[2]), torch.nn.Parameter(inputs[3])

        def forward(self, context: Tensor, query: Tensor) -> Tensor:
            return ops.prompt_attention(context, query, self.kq, self.ov)

    with torch.no_grad():
        exported = torch.export.export(Model(), tuple(inputs[:2])).module()
    parameters = dict(exported.named_parameters())
    got = torch.autograd.grad(exported(*inputs[:2]).square().sum(), [parameters["kq"], parameters["ov"]])
    leaves = [x.requires_grad_() for x in inputs[2:]]
    expected = torch.autograd.grad(reference.prompt_attention(*inputs[:2], *leaves).square().sum(), leaves)
    assert all(torch.allclose(a, b) for a, b in zip(got, expected, strict=True))


def test_what_the_operator_keeps_is_not_differentiable() -> None:
    context, query, kq, ov = make_inputs(SHAPES[0], torch.float64, seed=9)
    leaves = [kq[None].clone().requires_grad_(), ov[None].clone().requires_grad_()]
    out, moments, jacobian = torch.ops.mhicl.prompt_attention(context, query, *leaves, None, True, True)
    assert [x.requires_grad for x in (out, moments, jacobian)] == [True, False, False]


def test_one_of_the_two_moments_alone() -> None:
    for which in (0, 1):
        inputs = [x.requires_grad_() for x in make_inputs(SHAPES[0], torch.float64, seed=10)[:3]]
        got = torch.autograd.grad(ops.prompt_moments(*inputs)[which].square().sum(), inputs)
        expected = torch.autograd.grad(reference.prompt_moments(*inputs)[which].square().sum(), inputs)
        assert all(torch.allclose(a, b) for a, b in zip(got, expected, strict=True))


def test_meta_tensors() -> None:
    inputs = [x.to("meta") for x in make_inputs(SHAPES[1], torch.float32, seed=11)]
    assert ops.prompt_attention(*inputs).shape == (3, 2)
    assert [x.shape for x in ops.prompt_moments(*inputs[:3])] == [(3, 2, 2), (3, 2, 2)]


def test_fake_tensors_have_shapes_and_dtypes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        inputs = [torch.empty(s, requires_grad=True) for s in [(3, 4, 5), (3, 5), (2, 5, 5), (2, 1, 5)]]
        out = ops.prompt_attention(*inputs)
        moments, overlaps = ops.prompt_moments(*inputs[:3])
        grads = torch.autograd.grad(out.sum() + moments.sum() + overlaps.sum(), inputs)
    assert out.shape == (3, 1)
    assert moments.shape == (3, 2, 5)
    assert overlaps.shape == (3, 2, 2)
    assert [g.shape for g in grads] == [x.shape for x in inputs]
