"""`attention` on a GPU against its definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attentions import Case, definition, make_inputs, make_lengths, make_mask
from emulated import tf32
from on_device import DEVICE, assert_close_to_the_definition, step, to_device
from torch import Tensor

import mhicl_fast

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CASES = [
    Case(2, 1, 1, 1, 1, 1, 1),
    Case(3, 4, 2, 5, 7, 6, 3),
    Case(2, 8, 1, 1, 100, 51, 51),  # one row a head, shared keys
    Case(2, 2, 2, 33, 65, 17, 40),
    Case(1, 3, 3, 70, 70, 128, 128),
    Case(2, 6, 3, 4, 130, 13, 1),
    Case(1, 1, 1, 3, 2000, 64, 64),  # more keys than shared memory holds
    Case(1, 17, 1, 2, 31, 5, 9),
]


def on_both(**options: Any) -> tuple[Any, Any]:
    """`attention` with options on the device, and the definition with the same on the CPU."""
    theirs = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    ours = {k: v for k, v in options.items() if k not in ("return_lse", "return_weights")}
    more = {k: v for k, v in options.items() if k in ("return_lse", "return_weights")}
    return lambda *x: mhicl_fast.attention(*x, **theirs), lambda *x: definition(*x, **ours, **more)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_shapes_and_dtypes(case: Case, dtype: torch.dtype, causal: bool) -> None:
    assert_close_to_the_definition(*on_both(is_causal=causal), make_inputs(case, dtype, seed=1), (True, True, True))


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3])
def test_gradients_that_are_asked_for(needs: tuple[bool, ...]) -> None:
    assert_close_to_the_definition(*on_both(), make_inputs(CASES[3], torch.float32, seed=2), needs)


@pytest.mark.parametrize("activation", ["softmax", "linear", "relu"])
@pytest.mark.parametrize("kind", ["boolean", "additive", "hiding"])
def test_masks_and_activations(kind: str, activation: str) -> None:
    case = Case(3, 4, 2, 9, 21, 10, 12)
    inputs, needs = make_inputs(case, torch.float32, seed=3), (True, True, True)
    for size in (case.logits, (1, 1, case.rows, case.keys), (case.batch, 1, 1, case.keys)):
        mask = make_mask(size, kind, torch.float32, seed=3)
        options = {"activation": activation, "is_causal": True}
        found = step(on_both(attn_mask=mask, **options)[0], to_device(inputs), needs)
        wide = mask if kind == "boolean" else mask.double()
        exact = step(on_both(attn_mask=wide, **options)[1], [x.double() for x in inputs], needs)
        for mine, truth in zip(found, exact, strict=True):
            torch.testing.assert_close(mine.cpu().double(), truth, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_the_mask() -> None:
    case = Case(2, 4, 2, 6, 11, 8, 8)
    mask = make_mask((1, 4, 6, 11), "additive", torch.float64, seed=4)

    def ours(query: Tensor, key: Tensor, value: Tensor, given: Tensor) -> Any:
        return mhicl_fast.attention(query, key, value, attn_mask=given)

    def theirs(query: Tensor, key: Tensor, value: Tensor, given: Tensor) -> Any:
        return definition(query, key, value, attn_mask=given)

    inputs = [*make_inputs(case, torch.float64, seed=4), mask]
    assert_close_to_the_definition(ours, theirs, inputs, (True,) * 4)


def test_lengths_hide_and_hidden_keys_do_not_show() -> None:
    case = Case(4, 4, 2, 5, 40, 12, 7)
    inputs, lengths = make_inputs(case, torch.float32, seed=5), make_lengths(4, 40, seed=5)
    functions = on_both(key_lengths=lengths, return_lse=True, return_weights=True)
    assert_close_to_the_definition(*functions, inputs, (True, True, True))
    spoilt = [x.clone() for x in inputs]
    for n, length in enumerate(lengths.tolist()):
        spoilt[1][n, :, length:] = torch.nan
        spoilt[2][n, :, length:] = torch.inf
    for mine, other in zip(
        *(step(functions[0], to_device(x), (True, True, True)) for x in (inputs, spoilt)), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.hardware
def test_lengths_out_of_range_are_clamped() -> None:
    case = Case(3, 2, 2, 4, 9, 8, 8)
    inputs = to_device(make_inputs(case, torch.float32, seed=6))
    wild, tame = (torch.tensor(x, device=DEVICE) for x in ([-5, 4, 1000], [0, 4, 9]))
    assert torch.equal(mhicl_fast.attention(*inputs, key_lengths=wild), mhicl_fast.attention(*inputs, key_lengths=tame))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_logits_of_any_size(scale: float) -> None:
    inputs = make_inputs(Case(2, 4, 1, 3, 50, 16, 16), torch.float32, seed=7, logit_scale=scale)
    assert_close_to_the_definition(*on_both(return_lse=True), inputs, (True, True, True))


@pytest.mark.hardware
@pytest.mark.parametrize("rows", [9, 200])  # gradients of keys by the same kernel, and by another
def test_tf32_is_an_option_and_every_kernel_finds_the_same_logits(rows: int) -> None:
    query, key, value = to_device(make_inputs(Case(2, 2, 2, rows, 150, 64, 1), torch.float32, seed=7, logit_scale=1e4))
    with tf32():
        out, weights = mhicl_fast.attention(query, key, value.requires_grad_(), return_weights=True)
        each_key = torch.autograd.grad(out.sum(), value)[0][..., 0]
    torch.testing.assert_close(each_key, weights.detach().sum(2), rtol=2**-10, atol=2**-10)
    products = mhicl_fast.attention(query, key, value, activation="linear", return_weights=True)[1]
    with tf32():
        rounded = mhicl_fast.attention(query, key, value, activation="linear", return_weights=True)[1]
    assert 1e-5 < ((rounded - products).norm() / products.norm()).item() < 2**-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(dtype: torch.dtype) -> None:
    def odd(*sizes: int) -> Tensor:
        wide = torch.randn(*sizes[:-1], 2 * sizes[-1] + 1, dtype=torch.float64, generator=generator).to(dtype)
        return wide[..., 1::2]  # neither together nor aligned

    generator = torch.Generator().manual_seed(8)
    inside = torch.randn(2, 9, 4, 16, dtype=torch.float64, generator=generator).to(dtype).transpose(1, 2)
    repeated = torch.randn(1, 4, 9, 16, dtype=torch.float64, generator=generator).to(dtype).expand(2, 4, 9, 16)
    for inputs in ([odd(2, 4, 9, 16)] * 3, [inside] * 3, [inside, repeated, odd(2, 4, 9, 5)]):
        assert_close_to_the_definition(*on_both(), inputs, (True, True, True))


@pytest.mark.parametrize(
    "case", [Case(0, 2, 2, 3, 4, 5, 5), Case(2, 2, 2, 0, 4, 5, 5), Case(2, 2, 2, 3, 0, 5, 5)], ids=str
)
def test_nothing_to_attend(case: Case) -> None:
    query, key, value = to_device(make_inputs(case, torch.float32, seed=9))
    out, lse = mhicl_fast.attention(query.requires_grad_(), key, value, return_lse=True)
    assert out.shape == (*case.logits[:3], case.value_dim)
    assert bool((out == 0).all())
    assert bool((lse == -torch.inf).all()) or case.keys > 0
    assert torch.autograd.grad(out.sum(), query)[0].shape == query.shape


@pytest.mark.large
def test_more_problems_than_a_grid_s_second_dimension_has() -> None:
    inputs = make_inputs(Case(70_000, 1, 1, 1, 3, 2, 2), torch.float32, seed=10)
    assert_close_to_the_definition(*on_both(), inputs, (True, True, True))


@pytest.mark.hardware
@pytest.mark.parametrize("rows", [1, 3])
def test_more_elements_than_32_bits_count(rows: int) -> None:
    batch, keys, dim = 1 << 17, 129, 128  # 2.16e9 elements
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("the GPU has less than 24 GiB free")
    key = torch.randn(batch, 1, keys, dim, dtype=torch.bfloat16, device=DEVICE)
    query = torch.randn(batch, 1, rows, dim, dtype=torch.bfloat16, device=DEVICE)
    out = mhicl_fast.attention(query, key, key)
    for part in (slice(0, 2), slice(batch - 2, batch)):
        truth = definition(query[part].double(), key[part].double(), key[part].double())
        torch.testing.assert_close(out[part].double(), truth, rtol=2e-2, atol=2e-2)


@pytest.mark.large
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    inputs = to_device(make_inputs(Case(64, 8, 2, 20, 90, 32, 32), dtype, seed=11))
    first = step(mhicl_fast.attention, inputs, (True, True, True))
    for _ in range(3):
        again = step(mhicl_fast.attention, inputs, (True, True, True))
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_the_cpu_s_kernels_agree() -> None:
    inputs = make_inputs(Case(5, 4, 2, 7, 33, 24, 24), torch.float64, seed=12)
    found = step(mhicl_fast.attention, to_device(inputs), (True, True, True))
    for mine, truth in zip(found, step(mhicl_fast.attention, inputs, (True, True, True)), strict=True):
        torch.testing.assert_close(mine.cpu(), truth, rtol=1e-11, atol=1e-11)


def test_autocast() -> None:
    inputs = to_device(make_inputs(CASES[1], torch.float32, seed=13))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        out = mhicl_fast.attention(*inputs)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, mhicl_fast.attention(*(x.bfloat16() for x in inputs)))
