"""attention of any shape, layout, mask and dtype, as exact as eager PyTorch in that dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from attentions import Case, definition, make_inputs, make_lengths, make_mask, wanted
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import value_and_grads
from torch import Tensor

from mhicl_fast import attention

DIMS = st.one_of(st.integers(1, 24), st.sampled_from([32, 33, 51, 64, 127]))
LENGTHS = st.one_of(st.integers(1, 20), st.sampled_from([0, 31, 32, 33, 64, 81, 130]))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Case, torch.dtype, dict[str, Any], list[Tensor]]:
    key_heads = draw(st.integers(1, 3))
    case = Case(
        batch=draw(st.integers(0, 4)),
        heads=key_heads * draw(st.integers(1, 5)),
        key_heads=key_heads,
        rows=draw(LENGTHS),
        keys=draw(LENGTHS),
        dim=draw(DIMS),
        value_dim=draw(DIMS),
    )
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    seed = draw(st.integers(0, 2**16))
    # At larger logits float16 overflows, and float32's error is that of a few logits: chance, for one small problem.
    logit_scale = draw(st.sampled_from([0.01, 1.0, 30.0, *([1e4] if dtype == torch.float64 else [])]))
    inputs = [laid_out(draw, x) for x in make_inputs(case, dtype, seed, logit_scale)]
    options: dict[str, Any] = {
        "is_causal": draw(st.booleans()),
        "activation": draw(st.sampled_from(["softmax", "softmax", "linear", "relu"])),
        "scale": draw(st.sampled_from([None, 0.1])),
        "key_lengths": make_lengths(case.batch, case.keys, seed) if draw(st.booleans()) else None,
    }
    kind = draw(st.sampled_from([None, "boolean", "additive", "hiding"]))
    if kind is not None:
        size = tuple(n if draw(st.booleans()) else 1 for n in case.logits)
        mask = laid_out(draw, make_mask(size, kind, dtype, seed))
        if kind == "boolean":
            options["attn_mask"] = mask
        else:
            inputs.append(mask)
    return case, dtype, options, inputs


def laid_out(draw: st.DrawFn, x: Tensor) -> Tensor:
    """The same tensor with its dimensions in any order in memory, and gaps after rows of some."""
    order = draw(st.permutations(range(4)))
    if draw(st.booleans()):
        order = list(range(4))
    gap = draw(st.sampled_from([0, 0, 1, 3]))
    back = [list(order).index(i) for i in range(4)]
    sizes = [x.shape[i] for i in order]
    memory = torch.full((*sizes[:3], sizes[3] + gap), math.nan).to(x.dtype)[..., : sizes[3]]
    return memory.copy_(x.permute(*order)).permute(*back)


def assert_as_exact(
    got: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """‖got − exact‖ ≤ (3 · eager's relative error + tolerance) · ‖exact‖."""
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
    largest = max(float(x.norm()) for x in exact)
    for value, other, truth in zip(got, eager, exact, strict=True):
        assert value.shape == truth.shape
        # One that is 0 but for float64's own rounding is compared with the largest.
        scale = float(truth.norm()) if truth.norm() > 1e-9 * largest else largest
        bound = 3 * float((other.double() - truth).norm()) + tolerance * scale
        error = float((value.double() - truth).norm())
        assert error <= bound + torch.finfo(dtype).smallest_normal * math.sqrt(truth.numel())


@settings(max_examples=200)
@given(problems())
def test_any_problem(problem: tuple[Case, torch.dtype, dict[str, Any], list[Tensor]]) -> None:
    _, dtype, options, inputs = problem
    needs = (True,) * len(inputs)
    of_dtype = torch.float32 if dtype == torch.float64 else dtype
    got = value_and_grads(wanted(attention, **options), inputs, needs, of_dtype)
    eager = value_and_grads(wanted(definition, **options), inputs, needs, of_dtype)
    exact = value_and_grads(wanted(definition, **options), [x.double() for x in inputs], needs, of_dtype)
    assert got[0].dtype == dtype
    assert_as_exact(got, eager, exact, dtype)
