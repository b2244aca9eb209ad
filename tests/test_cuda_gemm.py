"""The GPU's matrix products, emulated, against float64: any shape, any strides, the matrix units, and long sums."""

from __future__ import annotations

import os

import pytest
import torch
from emulated import VARIANT, emulated, run_sanitized, runtime_calls, seed_schedule
from torch import Tensor

# (batch, rows, columns, depth): each kind of tile, its edges, few rows, few columns, nothing.
SHAPES = [
    *((1, 1, 1, 1), (3, 5, 7, 9), (2, 33, 31, 17), (1, 65, 129, 33), (60, 64, 65, 16), (30, 66, 130, 5)),
    *((2, 3, 200, 40), (2, 200, 3, 40), (1, 8, 64, 32), (1, 1, 1, 100), (4, 9, 2, 50)),
    *((2, 5, 6, 0), (0, 4, 4, 4), (2, 0, 5, 3), (2, 5, 0, 3)),
]


@pytest.fixture(scope="module")
def products():
    emulated()
    return torch.ops.mhicl_gemm


def draw(*shape: int, dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    """Normals laid out in rows, in columns, with gaps, or one matrix for the whole batch."""
    batch, rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(batch, rows, columns, dtype=dtype, generator=generator)
    if layout == "columns":
        return normals.mT.contiguous().mT
    if layout == "gaps":
        wide = torch.full((batch, rows + 1, 2 * columns + 3), torch.nan, dtype=dtype)
        wide[:, :rows, : 2 * columns : 2] = normals
        return wide[:, :rows, : 2 * columns : 2]
    if layout == "shared":
        return normals[:1].expand(batch, -1, -1)
    return normals


def error_of(result: Tensor, a: Tensor, b: Tensor, expected: Tensor) -> float:
    """The largest deviation, in units of the sums of absolute products."""
    scale = a.double().abs() @ b.double().abs() + expected.abs()
    return float(((result.double() - expected).abs() / scale.clamp(min=1e-300)).max()) if expected.numel() else 0.0


@pytest.mark.parametrize(
    "layouts", [("rows", "rows", "rows"), ("columns", "gaps", "columns"), ("gaps", "shared", "gaps")], ids="-".join
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_of_any_shape_and_strides(products, shape, dtype, layouts):
    batch, rows, columns, depth = shape
    a = draw(batch, rows, depth, dtype=dtype, layout=layouts[0], seed=0)
    b = draw(batch, depth, columns, dtype=dtype, layout=layouts[1], seed=1)
    c = draw(batch, rows, columns, dtype=dtype, layout=layouts[2], seed=2)
    before = c.double().clone()
    rounding = 8 * torch.finfo(dtype).eps
    products.multiply(a, b, c, 0.5, True, False)
    expected = before + 0.5 * (a.double() @ b.double())
    assert error_of(c, a, b, expected) < rounding
    products.multiply(a, b, c, -2.0, False, False)
    assert error_of(c, a, b, -2 * (a.double() @ b.double())) < 2 * rounding


@pytest.mark.parametrize("layouts", [("rows", "rows"), ("columns", "gaps")])
def test_products_on_the_matrix_units_round_their_factors_to_tf32(products, layouts):
    a = draw(2, 70, 35, dtype=torch.float32, layout=layouts[0], seed=0)
    b = draw(2, 35, 130, dtype=torch.float32, layout=layouts[1], seed=1)
    c = torch.empty(2, 70, 130)
    products.multiply(a, b, c, 1.0, False, True)
    assert 1e-6 < error_of(c, a, b, a.double() @ b.double()) < 2**-10
    rounded = [((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for x in (a, b)]
    assert error_of(c, a, b, rounded[0].double() @ rounded[1].double()) < 1e-6


def test_several_products_in_one_launch(products):
    shapes = [(3, 5, 70, 6), (1, 40, 41, 42), (2, 0, 3, 3), (2, 70, 2, 0)]
    a = [draw(b, r, k, dtype=torch.float64, layout="rows", seed=1) for b, r, _, k in shapes]
    b = [draw(n, k, c, dtype=torch.float64, layout="columns", seed=2) for n, _, c, k in shapes]
    c = [draw(n, r, c, dtype=torch.float64, layout="gaps", seed=3) for n, r, c, _ in shapes]
    runtime_calls()
    products.multiply_group(a, b, c)
    assert len([call for call in runtime_calls() if call.startswith("cudaLaunchKernel")]) == 1
    for left, right, result in zip(a, b, c):
        assert error_of(result, left, right, left @ right) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(7, 9, 1000), (3, 65, 129), (20, 70, 20001), (4, 4, 1), (3, 2, 0)], ids=str)
def test_long_sums_are_cut_into_slices(products, shape, dtype):
    rows, columns, depth = shape
    a = draw(1, rows, depth, dtype=dtype, layout="columns", seed=0)[0]
    b = draw(1, depth, columns, dtype=dtype, layout="rows", seed=1)[0]
    exact = a.double() @ b.double()
    sums = torch.full((rows, columns), 3.0, dtype=torch.float64)
    products.multiply_sliced(a, b, sums, 2.0, True)
    assert error_of(sums, a, b, 3 + 2 * exact) < 4 * torch.finfo(dtype).eps
    products.multiply_sliced(a, b, sums, 1.0, False)
    assert error_of(sums, a, b, exact) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("size", [(10, 768), (1, 8), (50, 408), (3, 3)], ids=str)
def test_a_workspace_serves_any_lesser_depth(products, size):
    """As the last prompts of a step need that come after a full chunk."""
    needed = [products.sliced_bytes(*size, depth) for depth in range(0, 20_000, 7)]
    assert needed == sorted(needed)
    assert needed[-1] > needed[0]


def test_the_same_bits_in_any_order_of_threads(products):
    a = draw(2, 40, 300, dtype=torch.float32, layout="rows", seed=0)
    b = draw(2, 300, 50, dtype=torch.float32, layout="rows", seed=1)
    results = []
    for seed in range(4):
        seed_schedule(seed)
        c, sums = torch.empty(2, 40, 50), torch.empty(40, 50, dtype=torch.float64)
        products.multiply(a, b, c, 1.0, False, False)
        products.multiply_sliced(a[0], b[0], sums, 1.0, False)
        results.append((c, sums))
    for c, sums in results[1:]:
        assert torch.equal(c, results[0][0])
        assert torch.equal(sums, results[0][1])


@pytest.mark.skipif(os.environ.get(VARIANT) == "sanitized", reason="this is that run")
def test_these_pass_under_the_sanitizers():
    assert "passed" in run_sanitized(__file__, "-k", "float32 or slices or matrix_units")
