"""attention in every dtype, at large logits, in any layout, at any size and with any number of threads."""

from __future__ import annotations

import pytest
import torch
from attention_checks import NEEDS, assert_as_exact_as_eager, assert_huge_logits_are_exact
from attentions import Case, definition, make_inputs, make_mask, wanted
from prompts import relative_errors, value_and_grads

from mhicl_fast import attention

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"activation": "relu"}], ids=["softmax", "causal", "relu"]
)
@pytest.mark.parametrize("logit_scale", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(
    "case",
    [Case(16, 8, 8, 41, 41, 32, 32), Case(200, 8, 1, 1, 100, 51, 51), Case(9, 4, 2, 21, 40, 6, 7)],
    ids=str,
)
def test_float32_is_as_exact_as_eager(case: Case, logit_scale: float, options: dict) -> None:
    assert_as_exact_as_eager(attention, case, logit_scale, options)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"activation": "linear"}], ids=["softmax", "causal", "linear"]
)
@pytest.mark.parametrize("case", [Case(5, 4, 2, 9, 25, 17, 21), Case(8, 8, 1, 1, 40, 6, 6)], ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_storage_is_computed_in_float32(dtype: torch.dtype, case: Case, options: dict) -> None:
    inputs = make_inputs(case, dtype, seed=1)
    mask = make_mask(case.logits, "additive", dtype, seed=2)
    function = wanted(attention, **options)
    got = value_and_grads(function, [*inputs, mask], (*NEEDS, True), dtype)
    expected = value_and_grads(
        wanted(definition, **options), [x.double() for x in (*inputs, mask)], (*NEEDS, True), dtype
    )
    softmax = "activation" not in options
    assert [x.dtype for x in got] == [dtype, *[torch.float32] * softmax, dtype, *[dtype] * 4]
    # Only the results are rounded: half a unit in the last place each, plus float32's error, and what the rounding of
    # the output, which the backward pass reads, does to the gradients.
    n_outputs = 3 if softmax else 2
    for i, (value, truth) in enumerate(zip(got, expected, strict=True)):
        of_reread = torch.finfo(dtype).eps if i >= n_outputs else 1e-5
        tolerance = torch.finfo(dtype).eps * truth.abs() * 0.51 + of_reread * truth.abs().max()
        assert ((value.double() - truth).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_logits_are_exact(sign: float, dtype: torch.dtype) -> None:
    assert_huge_logits_are_exact(attention, sign, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_one_key_is_exact(dtype: torch.dtype) -> None:
    case = Case(5, 6, 2, 3, 1, 4, 7)
    query, key, value = make_inputs(case, dtype, seed=3, logit_scale=1e3)
    out = attention(query, key, value)
    assert torch.equal(out, value.repeat_interleave(3, dim=1).expand(out.shape))


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers, (B, H, L, E), at other places in memory."""
    b, heads, rows, dim = x.shape
    padded = x.new_full((b, heads + 1, 2 * rows + 3, dim + 5), torch.nan)
    padded[:, 1:, 2 : 2 + 2 * rows : 2, 3 : 3 + dim] = x
    backing = x.new_full((b * heads * rows * dim * 2 + 1,), torch.nan)
    odd = backing[1::2].view(x.shape)
    return {
        "padded": padded[:, 1:, 2 : 2 + 2 * rows : 2, 3 : 3 + dim],
        "heads after rows": x.transpose(1, 2).contiguous().transpose(1, 2),
        "dims before rows": x.transpose(2, 3).contiguous().transpose(2, 3),
        "dims first": x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "every other number": odd.copy_(x),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [Case(3, 6, 2, 5, 19, 7, 9), Case(2, 8, 1, 1, 40, 16, 16)], ids=str)
def test_layouts_give_the_same_result(case: Case, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype, seed=4)
    mask = make_mask(case.logits, "hiding", dtype, seed=5)
    expected = attention(*inputs, attn_mask=mask)
    grad_out = make_inputs(case._replace(dim=case.value_dim), dtype, seed=6)[0]
    leaves = [x.detach().requires_grad_() for x in inputs]
    grads = torch.autograd.grad(attention(*leaves, attn_mask=mask), leaves, grad_out)
    for name in layouts(mask):
        others = [layouts(x)[name].requires_grad_() for x in inputs]
        out = attention(*others, attn_mask=layouts(mask)[name])
        other_grads = torch.autograd.grad(out, others, layouts(grad_out)[name])
        assert max(relative_errors([out.detach(), *other_grads], [expected, *grads])) < 4 * torch.finfo(dtype).eps, name


def test_expanded_inputs() -> None:
    case = Case(4, 6, 6, 5, 9, 7, 8)
    narrow = [x[:1, :1] for x in make_inputs(case, torch.float64, seed=7)]
    wide = [x.expand(4, 6, -1, -1) for x in narrow]
    one_row = [wide[0][:, :, :1].expand(-1, -1, 5, -1), *wide[1:]]
    mask = make_mask((4, 1, 1, 9), "additive", torch.float64, seed=8).expand(case.logits)
    for inputs in (wide, one_row):
        got = attention(*inputs, attn_mask=mask)
        assert torch.allclose(got, definition(*inputs, attn_mask=mask), rtol=1e-12)
    leaves = [x.clone().requires_grad_() for x in narrow]
    # The gradient of sum() is one number, expanded to everything.
    got, expected = (
        torch.autograd.grad(f(*(x.expand(4, 6, -1, -1) for x in leaves)).sum(), leaves) for f in (attention, definition)
    )
    assert max(relative_errors(got, expected)) < 1e-12


def test_batches_past_65535() -> None:
    inputs = make_inputs(Case(70_000, 2, 1, 1, 3, 2, 2), torch.float32, seed=8)
    got = value_and_grads(attention, inputs, NEEDS)
    expected = value_and_grads(definition, inputs, NEEDS)
    assert max(relative_errors(got, expected)) < 1e-5


def test_more_than_two_to_the_31_elements_by_expansion() -> None:
    keys, dim, batch = 65_536, 64, 600
    inputs = make_inputs(Case(1, 1, 1, 1, keys, dim, dim), torch.float32, seed=9)
    wide = [x.expand(batch, -1, -1, -1) for x in inputs]
    assert wide[1].numel() > 2**31
    lengths = torch.full((batch,), 50)
    lengths[-1] = keys
    out = attention(*wide, key_lengths=lengths)
    for n in (0, batch - 1):
        single = definition(*(x.double() for x in inputs), key_lengths=lengths[n : n + 1])
        assert torch.allclose(out[n : n + 1].double(), single, rtol=1e-3, atol=1e-6)
    assert torch.equal(out[:-1], out[:1].expand(out[:-1].shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case",
    # The backward pass has blocks of fewer rows the more keys there are: the last two cases have several.
    [
        Case(33, 4, 2, 21, 40, 16, 16),
        Case(333, 8, 1, 1, 21, 13, 13),
        Case(1, 4, 4, 70, 600, 8, 9),
        Case(2, 4, 2, 20, 900, 5, 4),
    ],
    ids=str,
)
def test_the_same_bits_on_every_run_and_for_every_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    inputs = [*make_inputs(case, dtype, seed=10), make_mask((1, case.heads, 1, case.keys), "additive", dtype, seed=11)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(value_and_grads(wanted(attention), inputs, (True, True, True, True)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_gradient_of_a_single_number_has_the_same_bits_for_every_number_of_threads() -> None:
    inputs = make_inputs(Case(9, 6, 2, 37, 120, 8, 9), torch.float64, seed=12)
    mask = torch.randn((1, 1, 1, 1), generator=torch.Generator().manual_seed(13), dtype=torch.float64)
    function = wanted(attention, activation="relu")
    before = torch.get_num_threads()
    grads = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            grads.append(value_and_grads(function, [*inputs, mask], (True, True, True, True))[-1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(grads[0], other) for other in grads[1:])
    expected = value_and_grads(wanted(definition, activation="relu"), [*inputs, mask], (True, True, True, True))[-1]
    assert max(relative_errors([grads[0]], [expected])) < 1e-12
