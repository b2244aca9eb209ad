"""Keys and rows that attention must not see, and problems with nothing in them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from attentions import Case, by_rows, definition, make_inputs, wanted
from prompts import relative_errors, value_and_grads
from torch import Tensor

from mhicl_fast import attention

CASE = Case(3, 6, 2, 5, 19, 7, 9)
NEEDS = (True, True, True)
LENGTHS = torch.tensor([0, 4, 18])
ACTIVATIONS = ["softmax", "linear", "relu"]


def seen_by_lengths() -> Tensor:
    return (torch.arange(CASE.keys) < LENGTHS[:, None])[:, None, None]  # (B, 1, 1, L)


def hiding(way: str) -> dict:
    """Options that hide the same keys in different ways."""
    if way == "lengths":
        return {"key_lengths": LENGTHS}
    mask = seen_by_lengths()
    return {"attn_mask": mask if way == "boolean" else torch.zeros(mask.shape).double().masked_fill(~mask, -torch.inf)}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["lengths", "boolean", "additive"])
def test_hidden_keys_never_show(way: str, activation: str, bad: float) -> None:
    inputs = make_inputs(CASE, torch.float64, seed=0)
    options = hiding(way) | {"activation": activation}
    clean = value_and_grads(wanted(attention, **options), inputs, NEEDS)
    inputs[0][0] = bad  # rows of the first problem see nothing
    for x in inputs[1:]:
        x.masked_fill_(~seen_by_lengths().mT, bad)
    dirty = value_and_grads(wanted(attention, **options), inputs, NEEDS)
    assert all(x.isfinite().all() for x in dirty)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    expected = value_and_grads(wanted(definition, **options), inputs, NEEDS)
    assert max(relative_errors(dirty, expected)) < 1e-12


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_rows_show_nothing_of_keys_that_only_others_see(rows: int, dtype: torch.dtype, activation: str) -> None:
    """Causal, and the last key that some row sees is NaN: earlier rows know nothing of it."""
    case = CASE._replace(rows=rows, keys=rows)
    inputs = make_inputs(case, dtype, seed=1)
    for x in inputs[1:]:
        x[:, :, -1] = torch.nan
    leaves = [x.requires_grad_() for x in inputs]
    out, weights = attention(*leaves, is_causal=True, activation=activation, return_weights=True)
    assert out[:, :, :-1].isfinite().all()
    assert weights[:, :, :-1].isfinite().all()
    assert out[:, :, -1].isnan().all()
    (out[:, :, :-1].float().square().sum() + weights[:, :, :-1].float().square().sum()).backward()
    assert inputs[0].grad[:, :, :-1].isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["lengths", "boolean", "additive"])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_rows_show_nothing_to_keys_that_nobody_sees(rows: int, way: str, activation: str) -> None:
    """A row holds NaN: the gradients of keys that it sees do too, those of hidden keys are zero."""
    query, key, value = (x.requires_grad_() for x in make_inputs(CASE._replace(rows=rows), torch.float64, seed=7))
    with torch.no_grad():
        query[:, :, 0] = torch.nan
    out = attention(query, key, value, activation=activation, **hiding(way))
    for gradient in torch.autograd.grad(out, (key, value), torch.ones_like(out)):
        seen = seen_by_lengths().mT.expand_as(gradient)
        assert not gradient[~seen].any()
    if activation != "relu":  # whose weights of NaN logits count as neither positive nor negative
        assert gradient[seen].isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_unmasked_nans_reach_just_the_rows_that_see_them(activation: str) -> None:
    mask = torch.rand(CASE.logits, generator=torch.Generator().manual_seed(2)) < 0.7
    for which, bad in itertools.product((0, 1, 2), (torch.nan, torch.inf)):
        inputs = make_inputs(CASE, torch.float64, seed=3)
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
    inputs = [x.requires_grad_() for x in make_inputs(CASE, dtype, seed=4)]
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
