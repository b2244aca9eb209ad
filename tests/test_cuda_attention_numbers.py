"""The GPU's attention, emulated: every dtype, large logits, any layout, and keys and rows that must not be seen."""

from __future__ import annotations

import itertools

import pytest
import torch
from attention_checks import (
    HIDING_CASE,
    NEEDS,
    assert_as_exact_as_eager,
    assert_hidden_keys_never_show,
    assert_huge_logits_are_exact,
    assert_nothing_shows_of_keys_that_only_others_see,
    assert_nothing_shows_to_keys_that_nobody_sees,
)
from attentions import Case, by_rows, definition, make_inputs, make_mask, wanted
from emulated_attention import attention
from prompts import relative_errors, value_and_grads
from test_attention_hidden import EMPTY
from test_attention_numbers import layouts

ACTIVATIONS = ["softmax", "linear", "relu"]


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"activation": "relu"}], ids=["softmax", "causal", "relu"]
)
@pytest.mark.parametrize("logit_scale", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(
    "case",
    [
        Case(2, 8, 8, 41, 41, 32, 32),
        Case(20, 8, 1, 1, 100, 51, 51),
        Case(4, 4, 2, 21, 40, 6, 7),
        Case(60, 2, 1, 1, 40, 6, 6),
    ],
    ids=str,
)
def test_float32_is_as_exact_as_eager(case: Case, logit_scale: float, options: dict) -> None:
    assert_as_exact_as_eager(attention, case, logit_scale, options)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"activation": "linear"}], ids=["softmax", "causal", "linear"]
)
@pytest.mark.parametrize("case", [Case(2, 4, 2, 20, 70, 16, 20), Case(3, 4, 2, 9, 25, 17, 21), HIDING_CASE], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_storage_is_computed_in_float32(dtype: torch.dtype, case: Case, options: dict) -> None:
    inputs = [*make_inputs(case, dtype, seed=1), make_mask(case.logits, "additive", dtype, seed=2)]
    got = value_and_grads(wanted(attention, **options), inputs, (*NEEDS, True), dtype)
    expected = value_and_grads(
        wanted(definition, **options), [x.double() for x in inputs], (*NEEDS, True), dtype
    )  # fmt: skip
    for value, truth in zip(got, expected, strict=True):
        tolerance = torch.finfo(value.dtype).eps * truth.abs() * 0.51 + 1e-5 * truth.abs().max()
        assert ((value.double() - truth).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_logits_are_exact(sign: float, dtype: torch.dtype) -> None:
    assert_huge_logits_are_exact(attention, sign, dtype)


def test_the_largest_logit_comes_last() -> None:
    """Sums so far are brought to each new maximum."""
    keys = 200
    key = torch.linspace(-300, 300, keys, dtype=torch.float64).view(1, 1, keys, 1)
    query = torch.tensor([1.0, -1.0, 0.01], dtype=torch.float64).view(1, 1, 3, 1)
    value = make_inputs(Case(1, 1, 1, 1, keys, 3, 3), torch.float64, seed=2)[2]
    expected = definition(query, key, value, return_lse=True)
    assert max(relative_errors(attention(query, key, value, return_lse=True), expected)) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case", [Case(3, 6, 2, 5, 19, 8, 12), Case(2, 8, 1, 1, 40, 16, 6), Case(1, 2, 1, 20, 9, 4, 4)], ids=str
)
def test_layouts_give_the_same_result(case: Case, dtype: torch.dtype) -> None:
    inputs, mask = make_inputs(case, dtype, seed=4), make_mask(case.logits, "hiding", dtype, seed=5)
    grad_out = make_inputs(case._replace(dim=case.value_dim), dtype, seed=6)[0]

    def run(*inputs: torch.Tensor, mask: torch.Tensor, grad_out: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = attention(*leaves, attn_mask=mask)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]

    expected = run(*inputs, mask=mask, grad_out=grad_out)
    for name in layouts(mask):
        others = [layouts(x)[name] for x in (*inputs, mask, grad_out)]
        got = run(*others[:3], mask=others[3], grad_out=others[4])
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), name


def test_more_than_two_to_the_31_elements_by_expansion() -> None:
    keys, dim, batch = 65_536, 64, 600
    inputs = make_inputs(Case(1, 1, 1, 1, keys, dim, dim), torch.float32, seed=9)
    wide = [x.expand(batch, -1, -1, -1) for x in inputs]
    lengths = torch.full((batch,), 2)
    lengths[-1] = 70
    out = attention(*wide, key_lengths=lengths)
    for n in (0, batch - 1):
        seen = [x[:, :, : int(lengths[n])].double() for x in inputs[1:]]
        assert torch.allclose(out[n : n + 1].double(), definition(inputs[0].double(), *seen), rtol=1e-5)
    assert torch.equal(out[:-1], out[:1].expand(out[:-1].shape))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["lengths", "boolean", "additive"])
@pytest.mark.parametrize("rows", [1, 5, 20])
def test_hidden_keys_never_show(rows: int, way: str, activation: str, bad: float) -> None:
    assert_hidden_keys_never_show(attention, rows, way, activation, bad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_rows_show_nothing_of_keys_that_only_others_see(rows: int, dtype: torch.dtype, activation: str) -> None:
    assert_nothing_shows_of_keys_that_only_others_see(attention, rows, dtype, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["lengths", "boolean", "additive"])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_rows_show_nothing_to_keys_that_nobody_sees(rows: int, way: str, activation: str) -> None:
    assert_nothing_shows_to_keys_that_nobody_sees(attention, rows, way, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [5, 20])
def test_unmasked_nans_reach_just_what_sees_them(rows: int, activation: str) -> None:
    case = HIDING_CASE._replace(rows=rows)
    mask = torch.rand(case.logits, generator=torch.Generator().manual_seed(2)) < 0.7
    for which, bad in itertools.product((0, 1, 2), (torch.nan, torch.inf)):
        inputs = make_inputs(case, torch.float64, seed=3)
        inputs[which][1, 1, 3, 2] = bad
        options = {"attn_mask": mask, "activation": activation}
        got = value_and_grads(lambda *x: attention(*x, **options), inputs, NEEDS)  # noqa: B023
        expected = value_and_grads(lambda *x: definition(*x, compute=by_rows, **options), inputs, NEEDS)  # noqa: B023
        for value, truth in zip(got, expected, strict=True):
            assert torch.equal(value.isnan(), truth.isnan())
            assert torch.equal(value.isinf(), truth.isinf())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["plain", "causal", "masked"])
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_nothing_to_attend_to(case: Case, way: str, activation: str, dtype: torch.dtype) -> None:
    options = {
        "plain": {},
        "causal": {"is_causal": True},
        "masked": {
            "attn_mask": torch.ones(case.logits, dtype=torch.bool),
            "key_lengths": torch.full((case.batch,), case.keys),
        },
    }[way] | {"activation": activation}
    inputs = make_inputs(case, dtype, seed=5)
    got = value_and_grads(wanted(attention, **options), inputs, NEEDS)
    expected = value_and_grads(wanted(definition, **options), [x.double() for x in inputs], NEEDS)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert max(relative_errors(got, expected)) < tolerance
    if case.keys == 0 and activation == "softmax":
        assert (attention(*inputs, return_lse=True, **options)[1] == -torch.inf).all()
