"""Every way to differentiate attention, compared by value with its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attentions import Case, definition, make_inputs, make_mask, wanted
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vmap
from torch.utils.checkpoint import checkpoint
from transforms import TRANSFORMS, as_function_of, scalar

from mhicl_fast import attention

CASE = Case(2, 4, 2, 3, 5, 3, 2)
LENGTHS = torch.tensor([0, 4])
SEEN = make_mask((2, 1, 3, 5), "boolean", torch.float64, seed=20)
OPTIONS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "causal": {"is_causal": True, "key_lengths": LENGTHS},
    "boolean mask": {"attn_mask": SEEN, "scale": 0.8},
    "relu": {"activation": "relu", "attn_mask": SEEN},
    "linear": {"activation": "linear", "is_causal": True},
}
NAMES = ["query", "key", "value", "mask"]


def joined(function: Callable[..., Any], **options: Any) -> Callable[..., Tensor]:
    """All that is returned as one vector, as a function of query, key, value and perhaps an additive mask."""

    def compute(*tensors: Tensor) -> Tensor:
        return torch.cat([x.flatten() for x in wanted(function, **options)(*tensors)])

    return compute


def additive(seed: int = 21) -> Tensor:
    return make_mask((1, 4, 3, 5), "hiding", torch.float64, seed=seed)


@pytest.mark.parametrize("which", range(3), ids=NAMES[:3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_have_the_values_of_the_definition(transform: Callable, options: dict, which: int) -> None:
    inputs = make_inputs(CASE, torch.float64, seed=0)
    got = transform(as_function_of(joined(attention, **options), inputs, which), inputs[which])
    expected = transform(as_function_of(joined(definition, **options), inputs, which), inputs[which])
    assert expected.abs().max() > 0
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_of_an_additive_mask(transform: Callable) -> None:
    mask = make_mask((1, 4, 1, 5), "additive", torch.float64, seed=1)
    inputs = [*make_inputs(CASE, torch.float64, seed=0), mask]
    got = transform(as_function_of(joined(attention, is_causal=True), inputs, 3), mask)
    expected = transform(as_function_of(joined(definition, is_causal=True), inputs, 3), mask)
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-10)


def test_batches_of_masks_and_lengths() -> None:
    inputs = make_inputs(CASE, torch.float64, seed=2)
    masks, lengths = torch.stack([SEEN, ~SEEN]), torch.tensor([[5, 0], [1, 2]])
    got = vmap(lambda mask, length: attention(*inputs, attn_mask=mask, key_lengths=length))(masks, lengths)
    for i in range(2):
        expected = definition(*inputs, attn_mask=masks[i], key_lengths=lengths[i])
        assert torch.allclose(got[i], expected, rtol=1e-12)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradcheck_and_gradgradcheck(options: dict, with_mask: bool) -> None:
    if with_mask and "attn_mask" in options:
        options = {name: option for name, option in options.items() if name != "attn_mask"}
    inputs = [x.requires_grad_() for x in (*make_inputs(CASE, torch.float64, seed=3), additive())[: 3 + with_mask]]
    function = joined(attention, **options)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    if not with_mask:
        query, key, value = inputs
        assert torch.autograd.gradgradcheck(
            lambda q: attention(q, key.detach(), value.detach(), **options), query, fast_mode=True
        )


@pytest.mark.parametrize("leading", [(), (2,), (2, 1, 4)], ids=str)
def test_derivatives_with_other_leading_dimensions(leading: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = [
        torch.randn(*leading, *size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in ((3, 2), (4, 2), (4, 3))
    ]
    assert torch.autograd.gradcheck(attention, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attention, inputs)


def test_first_derivatives_of_a_graph_are_the_kernels_own() -> None:
    """create_graph=True does not change the numbers."""
    inputs = [x.requires_grad_() for x in make_inputs(CASE, torch.float32, seed=5)]
    plain, with_graph = (
        torch.autograd.grad(scalar(attention)(*inputs), inputs, create_graph=create) for create in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, with_graph, strict=True))


def test_hessian_vector_products() -> None:
    inputs = make_inputs(CASE, torch.float64, seed=6)
    vectors = make_inputs(CASE, torch.float64, seed=7)
    got, expected = (
        torch.autograd.functional.hvp(scalar(joined(f, is_causal=True)), tuple(inputs), tuple(vectors))[1]
        for f in (attention, definition)
    )
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    leaves = [x.requires_grad_() for x in make_inputs(CASE, torch.float64, seed=8)]
    options = {"attn_mask": SEEN, "return_lse": True}

    def block(*x: Tensor) -> Tensor:
        out, lse = attention(*x, **options)
        return (out.sin() + lse.masked_fill(lse.isinf(), 0)[..., None]).square().sum()

    got = torch.autograd.grad(block(*leaves), leaves)
    total = checkpoint(block, *leaves, use_reentrant=reentrant)
    total.backward()
    assert all(torch.equal(x.grad, g) for x, g in zip(leaves, got, strict=True))


def test_autocast_casts_to_its_dtype() -> None:
    query, key, value = make_inputs(CASE, torch.float32, seed=9)
    mask = additive().float()
    leaves = [query.clone().requires_grad_(), mask.clone().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        out, lse, weights = attention(
            leaves[0], key.bfloat16(), value, attn_mask=leaves[1], return_lse=True, return_weights=True
        )
        sdpa = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        float64 = attention(*(x.double() for x in (query, key, value)), attn_mask=mask.double())
    assert (out.dtype, lse.dtype, weights.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert sdpa.dtype == out.dtype
    assert float64.dtype == torch.float64
    halves = [x.bfloat16() for x in (query, key, value)]
    assert torch.equal(out, attention(*halves, attn_mask=mask.bfloat16()))
    grads = torch.autograd.grad(out.float().square().sum(), leaves)
    assert [g.dtype for g in grads] == [torch.float32] * 2


def test_definition_computes_16_bit_types_in_float32() -> None:
    inputs = make_inputs(Case(2, 4, 2, 9, 40, 16, 8), torch.bfloat16, seed=10)
    options = {"is_causal": True, "return_lse": True}
    exact, exact_lse = definition(*(x.double() for x in inputs), **options)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = (x[0] for x in vmap(lambda q: attention(q, *inputs[1:], **options))(inputs[0][None]))
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert (out.double() - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.abs().max()
    assert torch.allclose(lse.double(), exact_lse, rtol=1e-5, atol=1e-6)


def test_what_the_operator_keeps_is_not_differentiable() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(CASE, torch.float64, seed=11)]
    outputs = torch.ops.mhicl.attention(
        *inputs, None, None, scale=1.0, is_causal=False, activation="softmax", want_lse=True, want_weights=True
    )
    assert [x.requires_grad for x in outputs] == [True, True, True, False]


@pytest.mark.parametrize("mode", ["dual numbers", "jvp"])
def test_tangents_of_a_graph_made_before_are_not_dropped(mode: str) -> None:
    """The backward operator has no forward mode, and what a jvp would miss there is an error."""
    inputs = [x.requires_grad_() for x in make_inputs(CASE, torch.float64, seed=12)]
    out = attention(*inputs)

    def pull_back(grad_out: Tensor) -> Tensor:
        return torch.autograd.grad(out, inputs[0], grad_out)[0]

    def with_dual_numbers() -> Tensor:
        with forward_ad.dual_level():
            return pull_back(forward_ad.make_dual(ones, ones))

    ones = torch.ones_like(out)
    push = {"dual numbers": with_dual_numbers, "jvp": lambda: torch.func.jvp(pull_back, (ones,), (ones,))}[mode]
    with pytest.raises(NotImplementedError, match="attention_backward got a tensor with a tangent"):
        push()
