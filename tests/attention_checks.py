"""What attention must do, whichever function does it: on the CPU, or the GPU's emulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attentions import Case, definition, make_inputs, wanted
from prompts import relative_errors, value_and_grads
from torch import Tensor

Attention = Callable[..., Any]
NEEDS = (True, True, True)
HIDING_CASE = Case(3, 6, 2, 5, 19, 7, 9)
LENGTHS = torch.tensor([0, 4, 18])


def seen_by_lengths() -> Tensor:
    return (torch.arange(HIDING_CASE.keys) < LENGTHS[:, None])[:, None, None]  # (B, 1, 1, L)


def hiding(way: str, dtype: torch.dtype = torch.float64) -> dict:
    """Options that hide the same keys in different ways."""
    if way == "lengths":
        return {"key_lengths": LENGTHS}
    mask = seen_by_lengths()
    return {"attn_mask": mask if way == "boolean" else torch.zeros(mask.shape).to(dtype).masked_fill(~mask, -torch.inf)}


def assert_as_defined(attention: Attention, inputs: Sequence[Tensor], needs: tuple[bool, ...], **options: Any) -> None:
    got = value_and_grads(wanted(attention, **options), inputs, needs)
    expected = value_and_grads(wanted(definition, **options), inputs, needs)
    assert max(relative_errors(got, expected)) < 1e-12


def assert_as_exact_as_eager(attention: Attention, case: Case, logit_scale: float, options: dict[str, Any]) -> None:
    inputs = make_inputs(case, torch.float32, seed=0, logit_scale=logit_scale)
    expected = value_and_grads(wanted(definition, **options), [x.double() for x in inputs], NEEDS)
    eager = relative_errors(value_and_grads(wanted(definition, **options), inputs, NEEDS), expected)
    ours = relative_errors(value_and_grads(wanted(attention, **options), inputs, NEEDS), expected)
    of_logits = 2e-9 * logit_scale  # what their rounding costs, where eager's happens to cancel
    for error, bound in zip(ours, eager, strict=True):
        assert error <= 3 * bound + 2e-6 + of_logits


def assert_huge_logits_are_exact(attention: Attention, sign: float, dtype: torch.dtype) -> None:
    key = torch.tensor([1.0, 3.0, 2.0], dtype=dtype).view(1, 1, 3, 1)
    query = torch.full((1, 1, 1, 1), sign * 1e4, dtype=dtype)
    out, lse, weights = attention(query, key, key, scale=1, return_lse=True, return_weights=True)
    assert out.item() == (3.0 if sign > 0 else 1.0)
    assert lse.item() == (3e4 if sign > 0 else -1e4)
    assert weights.flatten().tolist() == ([0, 1, 0] if sign > 0 else [1, 0, 0])


def assert_hidden_keys_never_show(
    attention: Attention,
    rows: int,
    way: str,
    activation: str,
    bad: float,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-12,
) -> None:
    inputs = make_inputs(HIDING_CASE._replace(rows=rows), dtype, seed=0)
    options = hiding(way, dtype) | {"activation": activation}
    clean = value_and_grads(wanted(attention, **options), inputs, NEEDS)
    inputs[0][0] = bad  # rows of the first problem see nothing
    for x in inputs[1:]:
        x.masked_fill_(~seen_by_lengths().mT, bad)
    dirty = value_and_grads(wanted(attention, **options), inputs, NEEDS)
    assert all(x.isfinite().all() for x in dirty)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    expected = value_and_grads(wanted(definition, **options), inputs, NEEDS)
    assert max(relative_errors(dirty, expected)) < tolerance


def assert_nothing_shows_of_keys_that_only_others_see(
    attention: Attention, rows: int, dtype: torch.dtype, activation: str
) -> None:
    """Causal, and the last key that some row sees is NaN: earlier rows know nothing of it."""
    case = HIDING_CASE._replace(rows=rows, keys=rows)
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


def assert_nothing_shows_to_keys_that_nobody_sees(
    attention: Attention, rows: int, way: str, activation: str, dtype: torch.dtype = torch.float64
) -> None:
    """A row holds NaN: the gradients of keys that it sees do too, those of hidden keys are zero."""
    query, key, value = (x.requires_grad_() for x in make_inputs(HIDING_CASE._replace(rows=rows), dtype, seed=7))
    with torch.no_grad():
        query[:, :, 0] = torch.nan
    out = attention(query, key, value, activation=activation, **hiding(way, dtype))
    for gradient in torch.autograd.grad(out, (key, value), torch.ones_like(out)):
        seen = seen_by_lengths().mT.expand_as(gradient)
        assert not gradient[~seen].any()
    if activation != "relu":  # whose weights of NaN logits count as neither positive nor negative
        assert gradient[seen].isnan().all()
