"""Attention's output and gradients are laid out in memory as the inputs are, so that what comes next need not copy."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import mhicl_fast


def heads_inside_rows(*shape: int) -> torch.Tensor:
    """(batch, heads, rows, dim) whose memory is (batch, rows, heads, dim), as after a projection."""
    batch, heads, rows, dim = shape
    return torch.randn(batch, rows, heads, dim, dtype=torch.float64).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_heads_inside_rows_stay_there(rows: int) -> None:
    query, key, value = heads_inside_rows(2, 6, rows, 5), heads_inside_rows(2, 3, 7, 5), heads_inside_rows(2, 3, 7, 9)
    out = mhicl_fast.attention(query, key, value)
    theirs = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(out, theirs)
    cotangent = torch.randn_like(theirs)
    ours = torch.autograd.grad(out, (query, key, value), cotangent)
    for gradient, expected in zip(ours, torch.autograd.grad(theirs, (query, key, value), cotangent)):
        assert gradient.transpose(1, 2).is_contiguous()
        torch.testing.assert_close(gradient, expected)


def test_each_follows_its_own_input() -> None:
    query, key = heads_inside_rows(2, 3, 4, 5), torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    out = mhicl_fast.attention(query, key, key)
    grad_query, grad_key = torch.autograd.grad(out.sum(), (query, key))
    assert out.transpose(1, 2).is_contiguous()
    assert grad_query.transpose(1, 2).is_contiguous()
    assert grad_key.is_contiguous()


def test_compiled_layouts_are_the_same() -> None:
    def step(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = mhicl_fast.attention(query, key, key)
        return out, out.transpose(1, 2).flatten(2)  # a view only if the layout is what the trace was told

    query, key = heads_inside_rows(2, 3, 4, 5), heads_inside_rows(2, 3, 7, 5)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(query, key), step(query, key)):
        torch.testing.assert_close(ours, expected)
        assert ours.stride() == expected.stride()


def test_operators_agree_with_their_fakes() -> None:
    query, key, value = heads_inside_rows(2, 4, 3, 5), heads_inside_rows(2, 2, 7, 5), heads_inside_rows(2, 2, 7, 6)
    options = {"scale": 0.5, "is_causal": False, "activation": "softmax"}
    wants = {"want_lse": True, "want_weights": True}
    torch.library.opcheck(torch.ops.mhicl.attention, (query, key, value, None, None), options | wants)
