"""The GPU's kernels of prompt_attention and prompt_moments, run by the host, against the CPU's."""

from __future__ import annotations

import itertools

import pytest
import torch
from emulated import device_limits, emulated, run_sanitized, seed_schedule, tf32
from torch import Tensor

from mhicl_fast import reference

CPU = torch.ops.mhicl
# N, L, D, H, O, M: around a warp's lanes and its 64 tokens, around 2 and 8 heads at a time.
SHAPES = [
    (3, 5, 4, 1, 1, 1),
    (2, 64, 33, 2, 1, 1),
    (2, 65, 64, 8, 2, 1),
    (1, 130, 51, 9, 1, 1),
    (2, 1, 1, 3, 1, 2),
    (2, 31, 7, 4, 3, 2),
    (1, 257, 128, 3, 1, 1),
    (0, 5, 4, 2, 1, 1),
    (2, 0, 4, 2, 1, 1),
    (2, 5, 4, 0, 1, 1),
    (2, 5, 4, 2, 0, 1),
    (2, 5, 4, 2, 1, 0),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    n, length, dim, heads, outputs, models = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = (n, length, dim), (n, dim), (models, heads, dim, dim), (models, heads, outputs, dim)
    context, query, kq, ov = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    return context, query, kq / max(dim, 1) ** 0.5, ov


def assert_like(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Within a few roundings of the largest entry, and of the same shape and dtype."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    if tolerance is None:
        tolerance = {torch.float64: 1e-13, torch.float32: 2e-5}.get(actual.dtype, 1e-2)
    scale = float(expected.double().nan_to_num(posinf=0, neginf=0).abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * (scale + 1e-6), equal_nan=True)


def compare(shape: tuple[int, ...], dtype: torch.dtype, lengths: Tensor | None = None, seed: int = 0) -> None:
    """Forward and backward, with every gradient, by both of its ways."""
    context, query, kq, ov = inputs(shape, dtype, seed)
    arguments = context, query, kq, ov, lengths
    for jacobian in (False, True):
        results = [ops.prompt_attention(*arguments, True, jacobian) for ops in (emulated(), CPU)]
        for actual, expected in zip(*results):
            assert_like(actual, expected)
        grad_out = torch.randn(results[1][0].shape, dtype=torch.float64).to(dtype)
        for needs in ((True,) * 4, (False, True, True, True)):
            grads = [
                ops.prompt_attention_backward(grad_out, *arguments, *results[1][1:], needs) for ops in (emulated(), CPU)
            ]
            for actual, expected in zip(*grads):
                assert_like(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prompt_attention(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(shape, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_prompt_attention_of_16_bit_contexts(dtype: torch.dtype) -> None:
    compare((2, 37, 11, 3, 2, 1), dtype)


def test_prompt_attention_with_lengths() -> None:
    compare((5, 70, 6, 3, 1, 1), torch.float32, torch.tensor([0, 1, 70, 33, 64]))


def test_lengths_are_clamped() -> None:
    context, query, kq, ov = inputs((3, 5, 4, 2, 1, 1))
    beyond = emulated().prompt_attention(context, query, kq, ov, torch.tensor([-3, 2, 9]), False, False)[0]
    assert_like(beyond, CPU.prompt_attention(context, query, kq, ov, torch.tensor([0, 2, 5]), False, False)[0])


def test_hidden_positions_never_show() -> None:
    context, query, kq, ov = inputs((2, 9, 5, 2, 1, 1))
    lengths = torch.tensor([3, 7])
    clean = emulated().prompt_attention(context, query, kq, ov, lengths, True, True)
    context[0, 3:] = torch.nan
    context[1, 7:] = torch.inf
    for actual, expected in zip(emulated().prompt_attention(context, query, kq, ov, lengths, True, True), clean):
        assert torch.equal(actual, expected)


def test_nan_in_sight_shows() -> None:
    context, query, kq, ov = inputs((2, 9, 5, 2, 1, 1))
    context[1, 4, 2] = torch.nan
    results = [ops.prompt_attention(context, query, kq, ov, None, True, False)[0] for ops in (emulated(), CPU)]
    assert_like(*results)
    assert results[0][0, 1].isnan().all()
    assert not results[0][0, 0].isnan().any()


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
def test_large_and_small_logits(scale: float) -> None:
    """Saturated probabilities leave tiny gradients, which must not be rounding errors of what they are made of."""
    context, query, kq, ov = inputs((4, 40, 6, 3, 1, 1), seed=3)
    grad_out = torch.randn(1, 4, 1)
    grads = []
    for ops, dtype in ((emulated(), torch.float32), (CPU, torch.float32), (CPU, torch.float64)):
        arguments = [x.to(dtype) for x in (grad_out, context, query, kq * scale, ov)]
        empty = arguments[0].new_empty(0)
        grads.append(ops.prompt_attention_backward(*arguments, None, empty, empty, (True,) * 4))
    for actual, cpu, exact in zip(*grads):
        error, allowed = (float((x - exact).norm()) for x in (actual, cpu))
        assert error <= 3 * allowed + 2e-6 * float(exact.norm()) + 1e-12 * max(1, scale)  # where it is 0


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.cat([x, x], -1)[..., ::2],
        lambda x: x[:, :1].expand_as(x),
        lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    ],
    ids=["transposed", "every other", "expanded", "misaligned"],
)
def test_strides(change) -> None:
    context, query, kq, ov = inputs((3, 20, 5, 2, 1, 1))
    context = change(context)
    results = [ops.prompt_attention(context, query, kq, ov, None, True, True) for ops in (emulated(), CPU)]
    for actual, expected in zip(*results):
        assert_like(actual, expected)


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=4)), ids=str)
def test_gradients_that_nobody_asked_for_are_empty(needs: tuple[bool, ...]) -> None:
    context, query, kq, ov = inputs((2, 6, 3, 2, 1, 1))
    empty = torch.empty(0)
    grads = [
        ops.prompt_attention_backward(torch.ones(1, 2, 1), context, query, kq, ov, None, empty, empty, needs)
        for ops in (emulated(), CPU)
    ]
    for actual, expected, need in zip(*grads, needs):
        assert (actual.dim() > 1) == need
        assert_like(actual, expected)


MOMENT_SHAPES = [
    (3, 5, 4, 1),
    (2, 5, 0, 2),
    (2, 65, 33, 8),
    (2, 40, 6, 11),
    (1, 130, 20, 3),
    (2, 0, 3, 2),
    (0, 3, 3, 2),
]


def compare_moments(shape: tuple[int, ...], dtype: torch.dtype, lengths: Tensor | None = None) -> None:
    n, length, dim, heads = shape
    context, query, kq, _ = inputs((n, length, dim, heads, 1, 1), dtype)
    arguments = context, query, kq[0], lengths
    results = [ops.prompt_moments(*arguments, True) for ops in (emulated(), CPU)]
    for actual, expected in zip(*results):
        assert_like(actual, expected)
    cotangents = [torch.randn(x.shape, dtype=torch.float64).to(dtype) for x in results[1]]
    for grad_overlaps in (None, cotangents[1]):
        grads = [
            ops.prompt_moments_backward(cotangents[0], grad_overlaps, *arguments, (True,) * 3)
            for ops in (emulated(), CPU)
        ]
        for actual, expected in zip(*grads):
            assert_like(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", MOMENT_SHAPES, ids=str)
def test_prompt_moments(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare_moments(shape, dtype)


def test_prompt_moments_with_lengths() -> None:
    compare_moments((4, 21, 6, 3), torch.float32, torch.tensor([0, 1, 21, 16]))


@pytest.mark.parametrize("shape", [(2, 200, 9, 3, 1, 1), (1, 333, 33, 10, 2, 1)], ids=str)
def test_contexts_longer_than_shared_memory(shape: tuple[int, ...]) -> None:
    with device_limits(shared_per_block=24 << 10):
        compare(shape, torch.float32)
        compare(shape, torch.float32, torch.tensor([shape[1] - 7] * shape[0]))
        compare_moments(shape[:4], torch.float32)


def test_logits_that_rise_from_chunk_to_chunk() -> None:
    context, query, kq, ov = inputs((1, 300, 8, 2, 1, 1))
    context *= torch.linspace(0.1, 20, 300)[:, None]
    with device_limits(shared_per_block=24 << 10):
        out, _moments, jacobian = emulated().prompt_attention(context, query, kq, ov, None, True, True)
    exact = reference.prompt_attention(context.double(), query.double(), kq[0].double(), ov[0].double())
    assert_like(out[0].double(), exact, 1e-5)
    assert_like(jacobian, CPU.prompt_attention(context, query, kq, ov, None, True, True)[2])


def test_what_does_not_fit_is_an_error() -> None:
    context, query, kq, ov = inputs((1, 4, 128, 8, 1, 1))
    with (
        device_limits(shared_per_block=16 << 10),
        pytest.raises(ValueError, match="128 dims with 8 heads does not fit"),
    ):
        emulated().prompt_attention(context, query, kq, ov, None, False, False)


@pytest.mark.parametrize("shape", [(2, 65, 21, 8, 1, 1), (1, 130, 51, 9, 2, 1), (2, 5, 100, 3, 1, 1)], ids=str)
def test_tf32_is_an_option(shape: tuple[int, ...]) -> None:
    context, query, kq, ov = inputs(shape)
    exact = CPU.prompt_attention(context, query, kq, ov, None, True, True)
    grad_out = torch.ones_like(exact[0])
    arguments = (grad_out, context, query, kq, ov, None, *exact[1:], (True,) * 4)
    with tf32():
        values = emulated().prompt_attention(context, query, kq, ov, None, True, True)
        grads = emulated().prompt_attention_backward(*arguments)
    for rounded, expected in zip(values, exact):
        assert_like(rounded, expected, 5e-3)
        assert (rounded - expected).norm() > 1e-5 * expected.norm()
    for rounded, expected in zip(grads, CPU.prompt_attention_backward(*arguments)):
        assert_like(rounded, expected, 5e-3)


def test_any_schedule_gives_the_same_bits() -> None:
    arguments = (*inputs((3, 70, 21, 9, 2, 1)), None, True, True)
    seed_schedule(0)
    first = emulated().prompt_attention(*arguments)
    for seed in range(1, 4):
        seed_schedule(seed)
        for one, other in zip(first, emulated().prompt_attention(*arguments)):
            assert torch.equal(one, other)


def test_under_sanitizers() -> None:
    run_sanitized(__file__, "-k", "lengths or strides or longer or moments")
