"""`prompt_attention` and `prompt_moments` on a GPU against their definition in float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from attentions import make_lengths
from on_device import DEVICE, assert_close_to_the_definition, step, to_device
from prompts import Shape, make_inputs
from torch import Tensor

import mhicl_fast
from mhicl_fast import reference
from mhicl_fast.ops import prompt_moments

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = [
    Shape(1, 1, 1, 1, 1),
    Shape(7, 5, 3, 2, 2),
    Shape(33, 100, 51, 1, 8),
    Shape(6, 200, 33, 3, 4),
    Shape(5, 17, 128, 2, 3),
    Shape(3, 2000, 20, 1, 2),  # longer than shared memory
    Shape(9, 31, 13, 4, 17),
    Shape(9, 40, 6, 1, 2, models=3),
]


def all_needs(count: int) -> list[tuple[bool, ...]]:
    return [needs for needs in product((False, True), repeat=count) if any(needs)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("needs", [(False, False, True, True), (True,) * 4])
def test_shapes_and_dtypes(shape: Shape, dtype: torch.dtype, needs: tuple[bool, ...]) -> None:
    inputs = make_inputs(shape, dtype, seed=1)
    assert_close_to_the_definition(mhicl_fast.prompt_attention, reference.prompt_attention, inputs, needs)


@pytest.mark.parametrize("needs", all_needs(4), ids=str)
def test_gradients_that_are_asked_for(needs: tuple[bool, ...]) -> None:
    inputs = make_inputs(SHAPES[1], torch.float32, seed=2)
    assert_close_to_the_definition(mhicl_fast.prompt_attention, reference.prompt_attention, inputs, needs)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.models is None], ids=str)
@pytest.mark.parametrize("needs", [(False, False, True), (True, True, True)])
def test_moments(shape: Shape, needs: tuple[bool, ...]) -> None:
    inputs = make_inputs(shape, torch.float32, seed=3)[:3]
    assert_close_to_the_definition(prompt_moments, reference.prompt_moments, inputs, needs)


def test_lengths_hide_and_hidden_examples_do_not_show() -> None:
    inputs, lengths = make_inputs(Shape(6, 40, 7, 2, 3), torch.float32, seed=4), make_lengths(6, 40, seed=4)

    def ours(*x: Tensor) -> Tensor:
        return mhicl_fast.prompt_attention(*x, context_lengths=lengths.to(DEVICE))

    assert_close_to_the_definition(ours, lambda *x: reference.prompt_attention(*x, lengths), inputs, (True,) * 4)
    spoilt = [x.clone() for x in inputs]
    for n, length in enumerate(lengths.tolist()):
        spoilt[0][n, length:] = torch.nan
    both = (step(ours, to_device(x), (True,) * 4) for x in (inputs, spoilt))
    assert all(torch.equal(x, y) for x, y in zip(*both, strict=True))


@pytest.mark.hardware
def test_lengths_out_of_range_are_clamped() -> None:
    inputs = to_device(make_inputs(Shape(3, 9, 4, 1, 2), torch.float32, seed=5))
    results = [
        mhicl_fast.prompt_attention(*inputs, context_lengths=torch.tensor(x, device=DEVICE))
        for x in ([-5, 4, 1000], [0, 4, 9])
    ]
    assert torch.equal(*results)


def test_strides() -> None:
    generator = torch.Generator().manual_seed(6)
    context = torch.randn(9, 15, 20, generator=generator, dtype=torch.float64)
    for view in (context[:, 1::2, 3:10], context.transpose(1, 2)[:, :11, 4:11], context[:1, :, :7].expand(4, 15, 7)):
        inputs = make_inputs(Shape(view.shape[0], 1, 7, 2, 3), torch.float64, seed=6)
        inputs = [x.float() for x in (view, *inputs[1:])]
        inputs[0] = view.float() if view.is_contiguous() else torch.as_strided(
            context.float(), view.shape, view.stride(), view.storage_offset()
        )  # fmt: skip
        assert_close_to_the_definition(mhicl_fast.prompt_attention, reference.prompt_attention, inputs, (True,) * 4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_logits_of_any_size(scale: float) -> None:
    inputs = make_inputs(Shape(9, 50, 16, 2, 4), torch.float32, seed=7, logit_scale=scale)
    assert_close_to_the_definition(mhicl_fast.prompt_attention, reference.prompt_attention, inputs, (True,) * 4)


@pytest.mark.parametrize("shape", [Shape(0, 5, 3, 2, 2), Shape(4, 0, 3, 2, 2)], ids=str)
def test_nothing_to_attend(shape: Shape) -> None:
    context, query, kq, ov = to_device(make_inputs(shape, torch.float32, seed=8))
    out = mhicl_fast.prompt_attention(context, query, kq.requires_grad_(), ov.requires_grad_())
    assert out.shape == (shape.n, shape.outputs)
    assert bool((out == 0).all())
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(out.sum(), (kq, ov)))


@pytest.mark.large
def test_more_prompts_than_a_grid_s_second_dimension_has() -> None:
    inputs = make_inputs(Shape(70_000, 3, 2, 1, 2), torch.float32, seed=9)
    needs = (True, True, True, True)
    assert_close_to_the_definition(mhicl_fast.prompt_attention, reference.prompt_attention, inputs, needs)


@pytest.mark.large
def test_the_same_bits_every_time() -> None:
    inputs = to_device(make_inputs(Shape(3000, 60, 21, 1, 4), torch.float32, seed=10))
    first = step(mhicl_fast.prompt_attention, inputs, (True,) * 4)
    for _ in range(3):
        again = step(mhicl_fast.prompt_attention, inputs, (True,) * 4)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
