"""attention's values and gradients against its float64 definition, and the definition against plain loops and SDPA."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attention_checks import assert_as_defined
from attentions import Case, by_rows, definition, make_inputs, make_lengths, make_mask, wanted
from instruction_sets import INSTRUCTION_SETS, run_again
from prompts import relative_errors, value_and_grads

from mhicl_fast import attention

CASES = [
    Case(1, 1, 1, 1, 1, 1, 1),
    Case(2, 3, 3, 4, 5, 1, 2),
    Case(3, 2, 1, 1, 7, 5, 3),
    Case(2, 6, 2, 5, 9, 6, 6),
    Case(1, 8, 1, 3, 17, 7, 1),
    Case(2, 4, 4, 33, 19, 21, 16),
    Case(1, 2, 2, 41, 41, 51, 51),
    Case(2, 8, 2, 1, 40, 64, 65),
    Case(1, 2, 1, 18, 81, 127, 33),
    Case(1, 1, 1, 9, 130, 256, 256),
    Case(5, 2, 1, 1, 2, 6, 6),
    Case(2, 2, 2, 70, 6, 8, 8),
]
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.37},
    "linear": {"activation": "linear", "scale": 0.2},
    "causal relu": {"activation": "relu", "is_causal": True},
}
MASK_KINDS = ["boolean", "additive", "hiding"]
SMALL = Case(2, 4, 2, 3, 5, 3, 2)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_in_float64(case: Case, options: dict, with_lengths: bool) -> None:
    lengths = make_lengths(case.batch, case.keys, seed=1) if with_lengths else None
    inputs = make_inputs(case, torch.float64, seed=0)
    assert_as_defined(attention, inputs, (True, True, True), key_lengths=lengths, **options)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("case", [CASES[3], CASES[5], CASES[7]], ids=str)
def test_one_gradient_alone(case: Case, needs: tuple[bool, ...]) -> None:
    assert_as_defined(attention, make_inputs(case, torch.float64, seed=1), needs, is_causal=True)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["causal relu"]], ids=["softmax", "causal relu"])
@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize(
    "full", list(itertools.product([False, True], repeat=4)), ids=lambda f: "".join("1-"[not x] for x in f)
)
def test_masks_of_every_broadcastable_shape(full: tuple[bool, ...], kind: str, options: dict) -> None:
    case = Case(3, 6, 2, 4, 19, 5, 7)
    size = tuple(n if whole else 1 for n, whole in zip(case.logits, full, strict=True))
    mask = make_mask(size, kind, torch.float64, seed=2)
    inputs = make_inputs(case, torch.float64, seed=3)
    lengths = torch.tensor([0, 11, 19])
    if kind == "boolean":
        assert_as_defined(attention, inputs, (True, True, True), attn_mask=mask, key_lengths=lengths, **options)
    else:
        assert_as_defined(attention, [*inputs, mask], (True, True, True, True), key_lengths=lengths, **options)
        assert_as_defined(attention, [*inputs, mask], (False, False, False, True), **options)


@pytest.mark.parametrize("size", [(), (5,), (1,), (3, 5), (4, 1, 1), (4, 3, 5), (1, 3, 1)], ids=str)
@pytest.mark.parametrize("kind", MASK_KINDS[:2])
def test_masks_of_fewer_dimensions(size: tuple[int, ...], kind: str) -> None:
    mask = make_mask(size, kind, torch.float64, seed=4)
    inputs = make_inputs(SMALL, torch.float64, seed=5)
    got = attention(*inputs, attn_mask=mask)
    assert torch.allclose(got, definition(*inputs, attn_mask=mask.expand(SMALL.logits)), rtol=1e-12)


@pytest.mark.parametrize("outputs", [(False, True), (True, False), (True, True)], ids=["weights", "lse", "both"])
def test_what_is_returned(outputs: tuple[bool, bool]) -> None:
    return_lse, return_weights = outputs
    inputs = make_inputs(SMALL, torch.float64, seed=6)
    needs = (True, True, True)

    def of(function: Callable) -> Callable:
        return lambda *x: function(*x, return_lse=return_lse, return_weights=return_weights)

    got, expected = (value_and_grads(of(function), inputs, needs) for function in (attention, definition))
    assert max(relative_errors(got, expected)) < 1e-12
    alone = attention(*inputs)
    assert torch.equal(alone, got[0])
    names = ["lse"] * return_lse + ["weights"] * return_weights
    shapes = {"lse": SMALL.logits[:3], "weights": SMALL.logits}
    assert [tuple(x.shape) for x in got[1 : 1 + len(names)]] == [shapes[name] for name in names]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["out", "lse", "weights"])
def test_one_output_differentiated_alone(which: int) -> None:
    inputs = [x.requires_grad_() for x in make_inputs(SMALL, torch.float64, seed=7)]
    leaves = inputs[:2] if which else inputs
    got, expected = (
        torch.autograd.grad(f(*inputs, return_lse=True, return_weights=True)[which].square().sum(), leaves)
        for f in (attention, definition)
    )
    assert max(relative_errors(got, expected)) < 1e-12


@pytest.mark.parametrize("leading", [(), (3,), (2, 3, 4), (2, 1, 3, 4), (0, 2, 4)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_any_number_of_leading_dimensions(leading: tuple[int, ...], masked: bool) -> None:
    generator = torch.Generator().manual_seed(8)
    batch, heads = leading[:-1] if len(leading) > 1 else leading, leading[-1:] if len(leading) > 1 else ()
    query, key, value = (
        torch.randn(
            *leading[: len(batch)], *(h // 2 for h in heads) if i else heads, *size, generator=generator
        ).double()
        for i, size in enumerate([(5, 3), (7, 3), (7, 2)])
    )
    n = 1 if not batch else torch.Size(batch).numel()
    mask = make_mask((*leading, 5, 7), "hiding", torch.float64, seed=9) if masked else None
    lengths = make_lengths(n, 7, seed=10) if masked else None
    four = [x.reshape(n, -1 if n else (4 if i == 0 else 2), *x.shape[-2:]) for i, x in enumerate((query, key, value))]
    flat_mask = None if mask is None else mask.reshape(n, four[0].shape[1], 5, 7)
    expected = definition(*four, attn_mask=flat_mask, key_lengths=lengths, return_lse=True, return_weights=True)
    got = attention(
        query, key, value, attn_mask=mask, return_lse=True, return_weights=True,
        key_lengths=None if lengths is None else lengths.reshape(batch),
    )  # fmt: skip
    for value, truth, tail in zip(got, expected, [(5, 2), (5,), (5, 7)], strict=True):
        assert value.shape == (*leading, *tail)
        assert torch.allclose(value, truth.reshape(value.shape), rtol=1e-12)


def test_a_mask_of_mixed_leading_dimensions() -> None:
    query = torch.randn(2, 3, 4, 5, 3, generator=torch.Generator().manual_seed(11)).double()
    for size in [(2, 1, 1, 5, 5), (3, 4, 1, 5), (1, 1, 1, 1, 5), (3, 1, 5, 1)]:
        mask = make_mask(size, "additive", torch.float64, seed=12)
        flat = mask.expand(2, 3, 4, 5, 5).reshape(6, 4, 5, 5)
        expected = definition(*[query.reshape(6, 4, 5, 3)] * 3, attn_mask=flat)
        assert torch.allclose(attention(query, query, query, attn_mask=mask), expected.view(2, 3, 4, 5, 3), rtol=1e-12)


@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 4])], ids=["full", "ragged"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", [None, *MASK_KINDS])
@pytest.mark.parametrize("activation", ["softmax", "linear", "relu"])
def test_the_definition_against_loops(
    activation: str, kind: str | None, is_causal: bool, lengths: torch.Tensor | None
) -> None:
    inputs = make_inputs(SMALL, torch.float64, seed=13)
    mask = None if kind is None else make_mask(SMALL.logits, kind, torch.float64, seed=14)
    options = {"attn_mask": mask, "key_lengths": lengths, "is_causal": is_causal, "activation": activation}
    needs = (True, True, True)
    got = value_and_grads(wanted(definition, **options), inputs, needs)
    expected = value_and_grads(wanted(definition, compute=by_rows, **options), inputs, needs)
    assert max(relative_errors(got, expected)) < 1e-13


@pytest.mark.parametrize("kind", [None, "boolean", "additive"])
def test_the_same_as_scaled_dot_product_attention(kind: str | None) -> None:
    inputs = make_inputs(SMALL, torch.float64, seed=15)
    mask = None if kind is None else make_mask((2, 1, 3, 5), kind, torch.float64, seed=16)
    needs = (True, True, True)
    for options in ({"attn_mask": mask}, {"scale": 0.2, "attn_mask": mask}, {"is_causal": True}):
        got = value_and_grads(lambda *x: attention(*x, **options), inputs, needs)  # noqa: B023
        expected = value_and_grads(
            lambda *x: F.scaled_dot_product_attention(*x, enable_gqa=True, **options),  # noqa: B023
            inputs, needs,
        )  # fmt: skip
        assert max(relative_errors(got, expected)) < 1e-12


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa: str) -> None:
    run_again(__file__, isa)
