"""prompt_attention and prompt_moments against their float64 definition."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from instruction_sets import INSTRUCTION_SETS, run_again
from prompts import Shape, make_inputs, relative_errors, value_and_grads

from mhicl_fast import ops, reference

SHAPES = [
    Shape(0, 5, 3, 1, 2),
    Shape(4, 0, 3, 2, 2),
    Shape(1, 1, 1, 1, 1),
    Shape(3, 1, 2, 3, 1),
    Shape(5, 3, 7, 2, 0),
    Shape(5, 3, 7, 0, 2),
    Shape(7, 11, 6, 1, 2),
    Shape(17, 12, 16, 2, 3),
    Shape(33, 13, 17, 1, 8),
    Shape(20, 25, 15, 3, 5),
    Shape(9, 40, 33, 2, 17),
    Shape(6, 31, 51, 1, 33),
    Shape(35, 100, 51, 1, 8),
    Shape(3, 1000, 22, 2, 2),
    Shape(2, 7, 128, 1, 3),
    Shape(6, 9, 5, 1, 3, models=4),
    Shape(6, 24, 5, 2, 2, models=3),
    Shape(6, 9, 5, 2, 2, models=0),
]
NEEDS = [(False, False, True, True), (True, True, True, True), (False, True, False, False), (False, False, False, True)]


def ragged(shape: Shape) -> torch.Tensor:
    lengths = torch.randint(0, shape.length + 1, (shape.n,), generator=torch.Generator().manual_seed(1))
    lengths[:1] = 0
    return lengths


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("needs", NEEDS, ids=lambda needs: "".join(map(str, map(int, needs))))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_in_float64(shape: Shape, needs: tuple[bool, ...], with_lengths: bool) -> None:
    lengths = ragged(shape) if with_lengths else None
    inputs = make_inputs(shape, torch.float64, seed=0)
    got = value_and_grads(lambda *x: ops.prompt_attention(*x, context_lengths=lengths), inputs, needs)
    expected = value_and_grads(lambda *x: reference.prompt_attention(*x, lengths), inputs, needs)
    assert max(relative_errors(got, expected)) < 1e-12


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_and_overlaps_in_float64(shape: Shape, with_lengths: bool) -> None:
    lengths = ragged(shape) if with_lengths else None
    inputs = make_inputs(shape, torch.float64, seed=1)[:3]
    needs = (True, True, True)
    got = value_and_grads(lambda *x: ops.prompt_moments(*x, context_lengths=lengths), inputs, needs)
    expected = value_and_grads(lambda *x: reference.prompt_moments(*x, lengths), inputs, needs)
    assert max(relative_errors(got, expected)) < 1e-12


@pytest.mark.parametrize("logit_scale", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(
    "shape", [Shape(64, 100, 51, 1, 8), Shape(40, 200, 33, 3, 4), Shape(300, 40, 6, 1, 2)], ids=str
)
def test_float32_is_as_exact_as_eager(shape: Shape, logit_scale: float) -> None:
    inputs = make_inputs(shape, torch.float32, seed=2, logit_scale=logit_scale)
    needs = (True, True, True, True)
    exact = value_and_grads(reference.prompt_attention, [x.double() for x in inputs], needs)
    eager = relative_errors(value_and_grads(reference.prompt_attention, inputs, needs), exact)
    ours = relative_errors(value_and_grads(ops.prompt_attention, inputs, needs), exact)
    by_jacobian = relative_errors(
        value_and_grads(ops.prompt_attention, inputs, (False, True, True, True)), [exact[0], *exact[2:]]
    )
    for error, bound in zip(ours, eager, strict=True):
        assert error <= 3 * bound + 2e-6
    for error, bound in zip(by_jacobian, [eager[0], *eager[2:]], strict=True):
        assert error <= 3 * bound + 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_storage_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = make_inputs(Shape(20, 25, 17, 2, 3), dtype, seed=3)
    inputs[0][0, 0, :3] = torch.tensor([torch.finfo(dtype).smallest_normal / 4, -0.0, torch.finfo(dtype).max / 1e3])
    needs = (True, True, True, True)
    got = value_and_grads(ops.prompt_attention, inputs, needs, dtype)
    expected = value_and_grads(reference.prompt_attention, [x.double() for x in inputs], needs, dtype)
    assert all(x.dtype == dtype for x in got)
    # Only the results are rounded: half a unit in the last place each, plus float32's error.
    for value, truth in zip(got, expected, strict=True):
        tolerance = torch.finfo(dtype).eps * truth.abs() * 0.51 + 1e-5 * truth.abs().max()
        assert ((value.double() - truth).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_infinities_and_nans_are_read(dtype: torch.dtype) -> None:
    inputs = make_inputs(Shape(4, 3, 5, 1, 2), dtype, seed=3)
    inputs[0][0, 0, 0], inputs[0][1, 1, 1], inputs[0][2, 0, 0] = torch.inf, torch.nan, -torch.inf
    out = ops.prompt_attention(*inputs)
    assert out.isnan().squeeze(1).tolist() == [True, True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_read_exactly(dtype: torch.dtype) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    numbers = bits.view(dtype)
    numbers = numbers[numbers.isfinite()]
    one = torch.ones(len(numbers), 1, dtype=dtype)
    moments, _ = torch.ops.mhicl.prompt_moments(
        numbers[:, None, None], one, torch.zeros(1, 1, 1, dtype=dtype), None, False
    )
    assert torch.equal(moments.flatten(), numbers)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 8, 16, 17, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_nan_with_a_payload_is_not_hidden(which: int, dtype: torch.dtype, heads: int) -> None:
    inputs = make_inputs(Shape(1, 16, 3, 1, heads), dtype, seed=12)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    quiet = 0x7FC00001 if dtype == torch.float32 else 0x7FF80000000007A2
    for payload in range(1, 40):
        inputs[which].view(bits).view(-1)[0] = quiet + payload
        assert ops.prompt_attention(*inputs).isnan().all()


def test_layouts_of_the_context_give_the_same_result() -> None:
    shape = Shape(6, 9, 7, 1, 3)
    context, query, kq, ov = make_inputs(shape, torch.float64, seed=4)
    expected = ops.prompt_attention(context, query, kq, ov)
    padded = torch.full((6, 20, 11), torch.nan, dtype=torch.float64)
    padded[:, 1:19:2, 2:9] = context
    layouts = {
        "strided rows": padded[:, 1:19:2, 2:9],
        "positions first": context.transpose(0, 1).contiguous().transpose(0, 1),
        "dims before positions": context.transpose(1, 2).contiguous().transpose(1, 2),
    }
    for name, layout in layouts.items():
        assert torch.equal(ops.prompt_attention(layout, query, kq, ov), expected), name
    transposed = [x.mT.contiguous().mT for x in (query, kq, ov)]
    assert torch.equal(ops.prompt_attention(context, *transposed), expected)


def test_more_than_two_to_the_31_elements_by_expansion() -> None:
    length, dim, n = 65_536, 64, 600
    context, query, kq, ov = make_inputs(Shape(1, length, dim, 1, 1), torch.float32, seed=5)
    wide = context.expand(n, length, dim)
    assert wide.numel() > 2**31
    out = ops.prompt_attention(wide, query.expand(n, dim), kq, ov)
    single = reference.prompt_attention(context.double(), query.double(), kq.double(), ov.double())
    assert torch.equal(out, out[:1].expand(n, 1))
    assert torch.allclose(out[:1].double(), single, rtol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_logits_are_exact(sign: float) -> None:
    context = torch.tensor([[[1.0], [3.0], [2.0]]])
    out = ops.prompt_attention(context, torch.ones(1, 1), torch.full((1, 1, 1), sign * 1e4), torch.ones(1, 1, 1))
    assert out.item() == (3.0 if sign > 0 else 1.0)


def test_one_token_contexts_are_exact() -> None:
    context, query, kq, ov = make_inputs(Shape(5, 1, 4, 2, 1), torch.float64, seed=6, logit_scale=1e4)
    assert torch.allclose(ops.prompt_attention(context, query, kq, ov), context[:, 0] @ ov[0].T, rtol=1e-15)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_masked_positions_never_show(bad: float) -> None:
    shape = Shape(8, 13, 5, 2, 3)
    lengths = torch.tensor([0, 1, 2, 5, 12, 13, 7, 3])
    inputs = make_inputs(shape, torch.float64, seed=7)
    needs = (True, True, True, True)
    clean = value_and_grads(lambda *x: ops.prompt_attention(*x, context_lengths=lengths), inputs, needs)
    for n, length in enumerate(lengths):
        inputs[0][n, length:] = bad
    dirty = value_and_grads(lambda *x: ops.prompt_attention(*x, context_lengths=lengths), inputs, needs)
    by_definition = value_and_grads(lambda *x: reference.prompt_attention(*x, lengths), inputs, needs)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
    assert max(relative_errors(dirty, by_definition)) < 1e-12
    assert (clean[0][0] == 0).all()
    assert (clean[1][0] == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_unmasked_nan_and_inf_come_out_as_in_eager(bad: float) -> None:
    inputs = make_inputs(Shape(6, 9, 5, 1, 3), torch.float64, seed=8)
    inputs[0][2, 4, 1] = bad
    assert torch.equal(ops.prompt_attention(*inputs).isnan(), reference.prompt_attention(*inputs).isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("needs", NEEDS[:2])
def test_the_same_bits_for_every_number_of_threads(needs: tuple[bool, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(Shape(333, 21, 13, 1, 5), dtype, seed=9)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(value_and_grads(ops.prompt_attention, inputs, needs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def _training_step() -> list[torch.Tensor]:
    """Large enough that PyTorch's own operators within, too, would use several threads."""
    inputs = make_inputs(Shape(500, 30, 128, 1, 8), torch.float32, seed=10)
    return value_and_grads(ops.prompt_attention, inputs, (False, False, True, True))


def _forked_child(queue: multiprocessing.Queue) -> None:
    queue.put([x.numpy().tobytes() for x in _training_step()])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_a_forked_child_does_not_hang() -> None:
    expected = [x.numpy().tobytes() for x in _training_step()]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_forked_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.join(timeout=10)
        if child.is_alive():
            child.kill()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa: str) -> None:
    run_again(__file__, isa)
