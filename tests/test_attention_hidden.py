"""Keys and rows that attention must not see, and problems with nothing in them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from attention_checks import (
    HIDING_CASE,
    NEEDS,
    assert_hidden_keys_never_show,
    assert_nothing_shows_of_keys_that_only_others_see,
    assert_nothing_shows_to_keys_that_nobody_sees,
    hiding,
)
from attentions import Case, by_rows, definition, make_inputs, wanted
from prompts import relative_errors, value_and_grads

from mhicl_fast import attention

ACTIVATIONS = ["softmax", "linear", "relu"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["lengths", "boolean", "additive"])
def test_hidden_keys_never_show(way: str, activation: str, bad: float) -> None:
    assert_hidden_keys_never_show(attention, HIDING_CASE.rows, way, activation, bad)


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
def test_unmasked_nans_reach_just_the_rows_that_see_them(activation: str) -> None:
    mask = torch.rand(HIDING_CASE.logits, generator=torch.Generator().manual_seed(2)) < 0.7
    for which, bad in itertools.product((0, 1, 2), (torch.nan, torch.inf)):
        inputs = make_inputs(HIDING_CASE, torch.float64, seed=3)
        inputs[which][1, 1, 3, 2] = bad
        options = {"attn_mask": mask, "activation": activation}
        got = attention(*inputs, **options)
        expected = definition(*inputs, compute=by_rows, **options)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.isinf(), expected.isinf())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["lengths", "boolean", "additive"])
def test_rows_that_see_nothing(way: str, activation: str, dtype: torch.dtype) -> None:
    options = hiding(way)
    if way == "additive":
        options["attn_mask"] = options["attn_mask"].to(dtype)
    softmax = activation == "softmax"
    inputs = [x.requires_grad_() for x in make_inputs(HIDING_CASE, dtype, seed=4)]
    out, *lse, weights = attention(*inputs, **options, activation=activation, return_lse=softmax, return_weights=True)
    assert (out[0] == 0).all()
    assert (weights[0] == 0).all()
    assert not softmax or (lse[0][0] == -math.inf).all()
    outputs = [out, *lse, weights]
    grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(x) for x in outputs])
    for grad in grads:
        assert (grad[0] == 0).all()
        assert (grad[1] != 0).any()
        assert grad.isfinite().all()


EMPTY = [
    Case(2, 4, 2, 3, 0, 5, 6),
    Case(2, 4, 2, 0, 3, 5, 6),
    Case(0, 4, 2, 3, 7, 5, 6),
    Case(2, 0, 0, 3, 7, 5, 6),
    Case(2, 0, 2, 3, 7, 5, 6),
    Case(2, 4, 2, 3, 7, 5, 0),
    Case(0, 0, 0, 0, 0, 1, 0),
]


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
        assert (attention(*inputs, return_lse=True, **options)[1] == -math.inf).all()
