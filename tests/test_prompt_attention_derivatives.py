"""Derivatives and traces of the prompt operators: of moments, for many models, on ragged prompts, over chunks."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from prompts import Shape, make_inputs
from torch import Tensor
from torch.func import hessian
from torch.utils.checkpoint import checkpoint
from transforms import TRANSFORMS, as_function_of, compile_keeping_graphs

from mhicl_fast import ops, reference
from mhicl_fast.ops import chunks

OPERATOR_MODULE = import_module("mhicl_fast.ops.prompt_attention")
RAGGED = torch.tensor([3, 0, 1])
ONE, MODELS = Shape(3, 3, 2, 2, 3), Shape(3, 3, 2, 1, 2, models=2)


def ragged_attention(*inputs: Tensor) -> Tensor:
    return ops.prompt_attention(*inputs, context_lengths=RAGGED)


def ragged_attention_definition(*inputs: Tensor) -> Tensor:
    return reference.prompt_attention(*inputs, RAGGED)


def both_moments(*inputs: Tensor) -> Tensor:
    return torch.cat([x.flatten() for x in ops.prompt_moments(*inputs, context_lengths=RAGGED)])


def both_moments_definition(*inputs: Tensor) -> Tensor:
    return torch.cat([x.flatten() for x in reference.prompt_moments(*inputs, RAGGED)])


def overlaps(*inputs: Tensor) -> Tensor:
    return ops.prompt_moments(*inputs)[1]


def overlaps_definition(*inputs: Tensor) -> Tensor:
    return reference.prompt_moments(*inputs)[1]


OPERATORS = {
    "ragged attention": (ragged_attention, ragged_attention_definition, 4),
    "both moments": (both_moments, both_moments_definition, 3),
    "overlaps": (overlaps, overlaps_definition, 3),
}


@pytest.mark.parametrize("shape", [ONE, MODELS], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_in_every_argument(transform: str, operator: str, shape: Shape) -> None:
    function, definition, n_arguments = OPERATORS[operator]
    inputs = make_inputs(shape, torch.float64, seed=20)[:n_arguments]
    for which in range(n_arguments):
        got = TRANSFORMS[transform](as_function_of(function, inputs, which), inputs[which])
        expected = TRANSFORMS[transform](as_function_of(definition, inputs, which), inputs[which])
        assert expected.abs().max() > 0
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [ONE, MODELS], ids=str)
def test_hessian_in_both_weights_has_its_mixed_blocks(shape: Shape) -> None:
    context, query, kq, ov = make_inputs(shape, torch.float64, seed=21)
    target = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]

    def loss(attention: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda kq, ov: (attention(context, query, kq, ov) - target).square().mean()

    expected = torch.autograd.functional.hessian(loss(reference.prompt_attention), (kq, ov))
    twice_backwards = torch.autograd.functional.hessian(loss(ops.prompt_attention), (kq, ov))
    forward_over_reverse = hessian(loss(ops.prompt_attention), argnums=(0, 1))(kq, ov)
    batched = torch.autograd.functional.hessian(loss(ops.prompt_attention), (kq, ov), vectorize=True)
    assert expected[0][1].abs().max() > 1e-3
    for got in (twice_backwards, forward_over_reverse, batched):
        for row, expected_row in zip(got, expected, strict=True):
            for block, expected_block in zip(row, expected_row, strict=True):
                torch.testing.assert_close(block, expected_block, rtol=1e-10, atol=1e-12)


def twice(function: Callable[..., Tensor], inputs: list[Tensor], needs: list[bool]) -> list[Tensor]:
    """Gradients of a combination of the gradients, in what `needs` names."""
    leaves = [x.clone().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
    wanted = [x for x in leaves if x.requires_grad]
    first = torch.autograd.grad(function(*leaves).square().sum(), wanted, create_graph=True)
    combination = sum((g * torch.linspace(-1, 2, g.numel(), dtype=g.dtype).view(g.shape)).sum() for g in first)
    return list(torch.autograd.grad(combination, wanted))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("needs", [[True] * 4, [False, False, True, True], [True, False, False, True]])
@pytest.mark.parametrize("shape", [Shape(7, 5, 3, 2, 2), Shape(7, 5, 3, 2, 2, models=2)], ids=str)
@pytest.mark.parametrize("operator", ["attention", "both moments"])
def test_second_backward_pass_over_chunks_of_prompts(
    monkeypatch: pytest.MonkeyPatch, operator: str, shape: Shape, needs: list[bool], size: int
) -> None:
    lengths = torch.tensor([5, 0, 2, 5, 1, 4, 3])
    inputs = make_inputs(shape, torch.float64, seed=22)

    def attention(*x: Tensor) -> Tensor:
        return ops.prompt_attention(*x, context_lengths=lengths)

    def moments(*x: Tensor) -> Tensor:
        return torch.cat([y.flatten() for y in ops.prompt_moments(*x, context_lengths=lengths)])

    function = attention if operator == "attention" else moments
    if operator != "attention":
        inputs, needs = inputs[:3], [*needs[:2], True]
    whole = twice(function, inputs, needs)
    pieces: list[int] = []
    monkeypatch.setattr(OPERATOR_MODULE, "prompts_at_a_time", lambda *_: pieces.append(size) or size)
    for one, other in zip(twice(function, inputs, needs), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert pieces


def test_chunks_of_the_second_backward_pass_bound_its_memory() -> None:
    context = torch.empty(100_000, 100, 51, device="meta")
    size = chunks.prompts_at_a_time(context, rows=8)
    assert 100 < size < 1000
    assert chunks.prompts_at_a_time(torch.empty(9, 10**7, 51, device="meta"), rows=8) == 1
    assert chunks.prompts_at_a_time(torch.empty(9, 0, 51, device="meta"), rows=0) > 9


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    inputs = make_inputs(Shape(9, 7, 5, 2, 3), torch.float64, seed=23)

    def block(*x: Tensor) -> Tensor:
        averages, common = ops.prompt_moments(*x[:3])
        return ops.prompt_attention(*x).sin().sum(-1) + averages.square().sum((1, 2)) + common.sum((1, 2))

    plain, kept = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    expected = torch.autograd.grad(block(*plain).square().sum(), plain)
    checkpoint(block, *kept, use_reentrant=reentrant).square().sum().backward()
    for leaf, grad in zip(kept, expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


def test_twice_differentiated_through_a_checkpoint() -> None:
    inputs = make_inputs(Shape(5, 4, 3, 2, 2), torch.float64, seed=24)

    def through(*x: Tensor) -> Tensor:
        return checkpoint(ops.prompt_attention, *x, use_reentrant=False)

    for one, other in zip(twice(through, inputs, [True] * 4), twice(ops.prompt_attention, inputs, [True] * 4)):
        torch.testing.assert_close(one, other)


def test_gradients_under_autocast_are_those_of_its_dtype() -> None:
    inputs = make_inputs(Shape(6, 8, 4, 2, 3), torch.float32, seed=25)
    leaves = [x.requires_grad_() for x in inputs]
    rounded = [x.detach().bfloat16().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        out, moments = ops.prompt_attention(*leaves), ops.prompt_moments(*leaves[:3])[0]
        got = torch.autograd.grad((out.float().sum() + moments.float().square().sum()), leaves)
    expected_out, expected_moments = ops.prompt_attention(*rounded), ops.prompt_moments(*rounded[:3])[0]
    expected = torch.autograd.grad(expected_out.float().sum() + expected_moments.float().square().sum(), rounded)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        # two bfloat16 gradients are added once in float32 and once in bfloat16
        torch.testing.assert_close(one, other.float(), rtol=2e-2, atol=1e-2 * float(other.abs().max()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_moments_of_ragged_prompts(dynamic: bool) -> None:
    def loss(context: Tensor, query: Tensor, kq: Tensor, lengths: Tensor) -> Tensor:
        averages, common = ops.prompt_moments(context, query, kq, context_lengths=lengths)
        return averages.square().sum() + common.sin().sum()

    compiled, graphs = compile_keeping_graphs(loss, dynamic=dynamic)
    for n, length in ((5, 4), (7, 6)) if dynamic else ((5, 4),):
        leaves = [x.requires_grad_() for x in make_inputs(Shape(n, length, 3, 1, 2), torch.float64, seed=26)[:3]]
        lengths = torch.arange(n) % (length + 1)
        averages, common = reference.prompt_moments(*leaves, lengths)
        expected = torch.autograd.grad(averages.square().sum() + common.sin().sum(), leaves)
        got = torch.autograd.grad(compiled(*leaves, lengths), leaves)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
    assert len(graphs) == 2  # compiled once
    assert "mhicl.prompt_moments.default" in graphs[0]
    assert "mhicl.prompt_moments_backward.default" in graphs[1]


def test_exported_for_any_number_of_prompts() -> None:
    class Both(torch.nn.Module):
        def forward(
            self, context: Tensor, query: Tensor, kq: Tensor, ov: Tensor, lengths: Tensor
        ) -> tuple[Tensor, ...]:
            out = ops.prompt_attention(context, query, kq, ov, context_lengths=lengths)
            return out, *ops.prompt_moments(context, query, kq, context_lengths=lengths)

    prompts, length = torch.export.Dim("prompts", min=2), torch.export.Dim("length", min=2)
    example = (*make_inputs(Shape(4, 6, 3, 2, 2), torch.float64, seed=27), torch.tensor([6, 0, 3, 2]))
    shapes = ({0: prompts, 1: length}, {0: prompts}, None, None, {0: prompts})
    exported = torch.export.export(Both(), example, dynamic_shapes=shapes).module()
    other = (*make_inputs(Shape(9, 5, 3, 2, 2), torch.float64, seed=28), torch.arange(9) % 6)
    out = reference.prompt_attention(*other)
    for one, expected in zip(exported(*other), [out, *reference.prompt_moments(*other[:3], other[4])], strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("needs", [(True, True, True, True), (False, True, False, False)])
def test_opcheck_of_the_backward_operators(needs: tuple[bool, ...]) -> None:
    context, query, kq, ov = make_inputs(ONE, torch.float64, seed=29)
    kq, ov = kq[None].contiguous(), ov[None].contiguous()
    _, moments, jacobian = torch.ops.mhicl.prompt_attention(context, query, kq, ov, RAGGED, True, False)
    grad_out = torch.randn(1, 3, 2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (grad_out, context, query, kq, ov)]
    backward = torch.ops.mhicl.prompt_attention_backward
    torch.library.opcheck(backward, (*inputs, RAGGED, moments, jacobian, list(needs)))
    by_moments = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    by_overlaps = torch.randn(3, 3, 3, dtype=torch.float64, requires_grad=True)
    kq = kq.detach()[0].clone().requires_grad_()
    arguments = (context, query, kq, RAGGED, list(needs[:3]))
    torch.library.opcheck(torch.ops.mhicl.prompt_moments_backward, (by_moments, by_overlaps, *arguments))
