"""The GPU's sampler, emulated: integers as the CPU draws them to the bit, prompts to rounding."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from emulated import device_limits, emulated, run_sanitized, seed_schedule
from torch import Tensor

import mhicl_fast  # noqa: F401  (registers the CPU's operators)

CPU = torch.ops.mhicl
DTYPES = [torch.float32, torch.float64]
ADDRESS = {"seed": -123456789, "step": 2**32 - 2, "first_prompt": 2**33 + 5}


class Shape(NamedTuple):
    n_prompts: int
    length: int
    dim_x: int
    n_tasks: int


SHAPES = [
    Shape(3, 5, 2, 1),
    Shape(1, 1, 1, 1),
    Shape(7, 40, 5, 3),
    Shape(3, 100, 50, 1),
    Shape(2, 200, 33, 9),
    Shape(300, 3, 2, 1),  # several prompts in a block
    Shape(1, 1000, 20, 4),  # several chunks of a prompt
    Shape(4, 0, 3, 2),
    Shape(0, 10, 3, 2),
]


def drawn(ops: Any, shape: Shape, dtype: torch.dtype, *, correlated: bool = False, offset: int = 0, **options: Any):
    """Context, query and target; the context `offset` numbers past an aligned address."""
    n, dim = shape.n_prompts, shape.dim_x + shape.n_tasks
    room = torch.full((n * shape.length * dim + offset,), torch.nan, dtype=dtype)
    context = room[offset:].view(n, shape.length, dim)
    query, target = (torch.full((n, columns), torch.nan, dtype=dtype) for columns in (dim, shape.n_tasks))
    scale = torch.linspace(0.5, 2, shape.n_tasks * shape.dim_x, dtype=dtype).view(shape.n_tasks, shape.dim_x)
    factor = None
    if correlated:
        covariance = torch.eye(shape.dim_x, dtype=torch.float64) + 0.3
        factor = torch.linalg.cholesky(covariance).to(dtype).contiguous()
    settings = {**ADDRESS, "noise_std": 0.5, "noisy_target": True, **options}
    ops.sample_multi_task(context, query, target, scale, factor, **settings)
    return context, query, target


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], dim_x: int) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        tolerance = 8 * torch.finfo(theirs.dtype).eps * max(4.0, dim_x**0.5)
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("first_element", [0, 1, 37, 64, 2**34 - 700])
@pytest.mark.parametrize("count", [0, 1, 16, 700])
def test_words_are_the_cpus_to_the_bit(first_element: int, count: int) -> None:
    address = {"seed": -5, "step": 3, "prompt": 2**40 + 1, "stream": 1, "first_element": first_element}
    words = [torch.full((count,), -1, dtype=torch.int32) for _ in range(2)]
    emulated().philox_words(words[0], **address)
    CPU.philox_words(words[1], **address)
    assert torch.equal(*words)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_are_the_cpus_to_rounding(dtype: torch.dtype) -> None:
    address = {"seed": 2**62, "step": 3, "prompt": 12, "stream": 0, "first_element": 37}
    normals = [torch.full((20_000,), torch.nan, dtype=dtype) for _ in range(2)]
    emulated().philox_normals(normals[0], **address)
    CPU.philox_normals(normals[1], **address)
    torch.testing.assert_close(*normals, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prompts_are_the_cpus(shape: Shape, dtype: torch.dtype) -> None:
    for correlated in (False, True):
        options = {"correlated": correlated}
        assert_same(drawn(emulated(), shape, dtype, **options), drawn(CPU, shape, dtype, **options), shape.dim_x)


@pytest.mark.parametrize(
    "options", [{"noise_std": 0.0}, {"noisy_target": False}, {"first_prompt": 0, "seed": 0}], ids=str
)
def test_options(options: dict[str, Any]) -> None:
    for shape in (Shape(7, 40, 5, 3), Shape(1, 1000, 20, 4)):
        assert_same(
            drawn(emulated(), shape, torch.float32, **options),
            drawn(CPU, shape, torch.float32, **options),
            shape.dim_x,
        )


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_outputs_at_any_address(offset: int) -> None:
    shape = Shape(5, 7, 4, 1)
    for dtype in DTYPES:
        assert_same(drawn(emulated(), shape, dtype, offset=offset), drawn(CPU, shape, dtype), shape.dim_x)


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prompts_too_wide_for_shared_memory(dtype: torch.dtype, correlated: bool) -> None:
    shape = Shape(3, 150, 40, 7)
    expected = drawn(CPU, shape, dtype, correlated=correlated)
    for shared_per_block in (16 << 10, 4 << 10):  # a tile at a time, then none
        with device_limits(multiprocessors=1, shared_per_block=shared_per_block):
            assert_same(drawn(emulated(), shape, dtype, correlated=correlated), expected, shape.dim_x)


def test_blocks_take_several_items() -> None:
    shape = Shape(70, 70, 90, 1)
    with device_limits(multiprocessors=1):
        assert_same(drawn(emulated(), shape, torch.float32), drawn(CPU, shape, torch.float32), shape.dim_x)
    address = {"seed": 1, "step": 0, "prompt": 0, "stream": 0, "first_element": 0}
    normals = [torch.empty(50_000) for _ in range(2)]
    with device_limits(multiprocessors=1):
        emulated().philox_normals(normals[0], **address)
    emulated().philox_normals(normals[1], **address)
    assert torch.equal(*normals)


def test_prompts_do_not_depend_on_the_order_of_threads_nor_on_the_device() -> None:
    shape = Shape(9, 30, 5, 2)
    expected = drawn(emulated(), shape, torch.float32, correlated=True)
    try:
        for seed in range(4):
            seed_schedule(seed)
            with device_limits(multiprocessors=1 + seed):
                again = drawn(emulated(), shape, torch.float32, correlated=True)
            assert all(map(torch.equal, again, expected))
    finally:
        seed_schedule(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 30, 7), (2, 500, 40), (3, 0, 4), (3, 4, 0), (0, 4, 3)], ids=str)
def test_covariates_are_the_cpus(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, length, dim_x = shape
    both = []
    for ops in (emulated(), CPU):
        xi = torch.full((n, length, dim_x), torch.nan, dtype=dtype), torch.full((n, dim_x), torch.nan, dtype=dtype)
        ops.sample_covariates(*xi, **ADDRESS)
        both.append(xi)
    assert_same(both[0], both[1], 1)


def test_these_pass_under_the_sanitizers() -> None:
    run_sanitized(__file__, "-k", "covariates or options or too_wide")
