"""The GPU's attention on the matrix units, emulated: an option of float32, with the errors that it must have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from attention_checks import (
    HIDING_CASE,
    NEEDS,
    assert_hidden_keys_never_show,
    assert_nothing_shows_of_keys_that_only_others_see,
    assert_nothing_shows_to_keys_that_nobody_sees,
)
from attentions import Case, by_rows, definition, make_inputs, make_lengths, make_mask, wanted
from emulated import emulated, run_sanitized, tf32
from emulated_attention import attention
from prompts import relative_errors, value_and_grads
from test_cuda_attention import ALL, assert_same_bits_in_any_order

# Rows around a warp's 8, in one block and in several; keys around a fragment's 8 and a tile's 64; columns around a
# fragment's 16, a tile's 64 and 128, and a run's 128.
CASES = [
    Case(1, 1, 1, 3, 1, 1, 1),
    Case(2, 6, 2, 5, 9, 6, 6),
    Case(1, 8, 1, 3, 65, 7, 16),
    Case(2, 4, 4, 33, 19, 21, 17),
    Case(1, 2, 2, 41, 64, 51, 64),
    Case(1, 2, 1, 65, 81, 127, 33),
    Case(1, 2, 1, 9, 130, 65, 129),
    Case(1, 1, 1, 34, 66, 257, 130),
    Case(2, 2, 2, 70, 6, 8, 65),
]
FEW_ROWS = Case(2, 2, 1, 1, 70, 20, 20)  # too few for the matrix units
TOGETHER, APART = Case(2, 6, 2, 4, 70, 20, 21), Case(2, 4, 2, 20, 70, 20, 21)  # one block of rows a problem, and two
ACTIVATIONS = ["softmax", "linear", "relu"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def allow_tf32() -> Iterator[None]:
    emulated()
    with tf32():
        yield


def rounded(x: torch.Tensor) -> torch.Tensor:
    """float32 to TF32: 11 bits, ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def linear(inputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and weights, which are the products of queries and keys."""
    options = {"scale": 1.0, "activation": "linear", "return_weights": True}
    return attention(*inputs, **options)


def error_of(result: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest deviation from left · right, in units of the sums of absolute products."""
    left, right = left.double(), right.double()
    return float(((result.double() - left @ right).abs() / (left.abs() @ right.abs())).max())


@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[7]._replace(dim=100)], ids=str)
def test_factors_are_rounded_to_tf32(case: Case) -> None:
    query, key, value = inputs = make_inputs(case, torch.float32, seed=0)
    out, weights = linear(inputs)
    assert 1e-5 < error_of(weights, query, key.mT) < 2**-10
    assert error_of(weights, rounded(query), rounded(key).mT) < 1e-6
    assert 1e-5 < error_of(out, weights, value) < 2**-10
    assert error_of(out, rounded(weights), rounded(value)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_factors_are_exact(dtype: torch.dtype) -> None:
    query, key, value = make_inputs(CASES[4], dtype, seed=1)
    weights = linear([x.float() for x in (query, key, value)])[1]
    assert error_of(weights, query, key.mT) < 1e-6


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"activation": "linear", "scale": 0.2}, {"activation": "relu", "is_causal": True}],
    ids=["plain", "causal", "linear", "causal relu"],
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, options: dict, dtype: torch.dtype) -> None:
    options = options | {"key_lengths": make_lengths(case.batch, case.keys, seed=1) if case.batch > 1 else None}
    inputs = make_inputs(case, dtype, seed=0)
    got = value_and_grads(wanted(attention, **options), inputs, NEEDS, dtype)
    expected = value_and_grads(wanted(definition, **options), [x.double() for x in inputs], NEEDS, dtype)
    errors = relative_errors(got, expected)
    tolerance = 8e-3 if dtype == torch.bfloat16 else 3e-3
    # A rounding can take a logit to the other side of ReLU's edge, where the gradient jumps.
    of_gradients = 5e-2 if options.get("activation") == "relu" else tolerance
    assert max(errors[:-3]) < tolerance
    assert max(errors[-3:]) < of_gradients
    if dtype == torch.float32 and case.keys > 1:
        assert max(errors) > 1e-5


@pytest.mark.parametrize("kind", ["boolean", "additive", "hiding"])
@pytest.mark.parametrize("case", [TOGETHER, APART], ids=["together", "apart"])
def test_masks(case: Case, kind: str) -> None:
    inputs = make_inputs(case, torch.float32, seed=3)
    mask = make_mask(case.logits, kind, torch.float32, seed=2)
    options = {"key_lengths": torch.tensor([0, 67])}
    wide = [x.double() for x in inputs]
    if kind == "boolean":
        options |= {"attn_mask": mask}
    else:
        inputs, wide = [*inputs, mask], [*wide, mask.double()]
    got = value_and_grads(wanted(attention, **options), inputs, ALL[: len(inputs)])
    expected = value_and_grads(wanted(definition, **options), wide, ALL[: len(inputs)])
    assert max(relative_errors(got, expected)) < 3e-3


def test_few_rows_and_float64_are_not_rounded() -> None:
    for case, dtype in ((FEW_ROWS, torch.float32), (APART, torch.float64)):
        inputs = make_inputs(case, dtype, seed=4)
        got = value_and_grads(wanted(attention), inputs, NEEDS)
        with tf32(False):
            expected = value_and_grads(wanted(attention), inputs, NEEDS)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("case", [TOGETHER, APART], ids=["together", "apart"])
def test_every_kernel_finds_the_same_logits(case: Case) -> None:
    """Of logits so large that a rounding more or less would change a weight by a part in a hundred."""
    query, key, value = make_inputs(case._replace(value_dim=1), torch.float32, seed=5, logit_scale=3e4)
    mask, value = torch.zeros(case.logits, requires_grad=True), value.requires_grad_()
    out, lse, weights = attention(query, key, value, attn_mask=mask, return_lse=True, return_weights=True)
    of_mask = torch.autograd.grad(lse.sum(), mask, retain_graph=True)[0]
    of_value = torch.autograd.grad(out.sum(), value)[0]
    each_key = weights.detach().double().unflatten(1, (case.key_heads, -1)).sum((2, 3))
    assert max(relative_errors([of_mask, of_value[..., 0]], [weights.detach(), each_key])) < 2**-11


@pytest.mark.parametrize("case", [TOGETHER, APART], ids=["together", "apart"])
def test_the_same_bits_in_any_order_and_on_any_device(case: Case) -> None:
    assert_same_bits_in_any_order(case, 32 << 10)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, torch.finfo(torch.float32).max])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["lengths", "boolean", "additive"])
@pytest.mark.parametrize("rows", [5, 20])
def test_hidden_keys_never_show(rows: int, way: str, activation: str, bad: float) -> None:
    assert_hidden_keys_never_show(attention, rows, way, activation, bad, torch.float32, 3e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_show_nothing_of_keys_that_only_others_see(dtype: torch.dtype, activation: str) -> None:
    for rows in (5, 40):
        assert_nothing_shows_of_keys_that_only_others_see(attention, rows, dtype, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["lengths", "boolean", "additive"])
def test_rows_show_nothing_to_keys_that_nobody_sees(way: str, activation: str) -> None:
    for rows in (5, 40):
        assert_nothing_shows_to_keys_that_nobody_sees(attention, rows, way, activation, torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [5, 20])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
def test_unmasked_nans_reach_just_what_sees_them(which: int, rows: int, activation: str) -> None:
    case = HIDING_CASE._replace(rows=rows)
    mask = torch.rand(case.logits, generator=torch.Generator().manual_seed(2)) < 0.7
    options = {"attn_mask": mask, "activation": activation}
    for bad in (torch.nan, torch.inf):
        inputs = make_inputs(case, torch.float32, seed=3)
        inputs[which][1, 1, 3, 2] = bad
        got = value_and_grads(lambda *x: attention(*x, **options), inputs, NEEDS)
        expected = value_and_grads(lambda *x: definition(*x, compute=by_rows, **options), inputs, NEEDS)
        for value, truth in zip(got, expected, strict=True):
            assert torch.equal(value.isnan(), truth.isnan())
            assert torch.equal(value.isinf(), truth.isinf())


def test_under_the_sanitizers() -> None:
    run_sanitized(__file__, "-k", "masks or unmasked or (values and float32 and causal and not 257)")
