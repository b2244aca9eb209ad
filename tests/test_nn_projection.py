"""The counted operations against products counted while they run, and the choice between the sides."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mhicl_fast.nn import MultiHeadAttention
from mhicl_fast.nn.projection import Sizes, plan

SIZES = [
    Sizes(4, 1, 9, 3, 5, 5, 5, 5, 2),
    Sizes(4, 2, 9, 3, 5, 6, 7, 4, 8, True, True, True),
    Sizes(2, 11, 11, 2, 8, 8, 8, 4, 8, True, True, False),
    Sizes(1, 1, 3, 2, 6, 6, 6, 3, 6),
]


def products(s: Sizes, side: str, combine_kq: bool, combine_ov: bool) -> int:
    """Multiply-adds of all products, forward and backward, of the formulas with the projections as named."""
    w_q, w_k, w_v = (torch.randn(s.heads, s.head_dim, dim) for dim in (s.query_dim, s.key_dim, s.value_dim))
    w_o = torch.randn(s.heads, s.out_dim, s.head_dim)
    x = torch.randn(s.batch, 1, s.rows, s.query_dim, requires_grad=s.query_needs_grad)
    key = torch.randn(s.batch, 1, s.tokens, s.key_dim, requires_grad=s.key_needs_grad)
    value = torch.randn(s.batch, 1, s.tokens, s.value_dim, requires_grad=s.value_needs_grad)
    for weight in (w_q, w_k, w_v, w_o):
        weight.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        if side == "tokens":
            moments = ((x @ w_q.mT) @ (key @ w_k.mT).mT).softmax(-1) @ (value @ w_v.mT)
            out = moments @ w_o.mT
        else:
            rows = x @ (w_k.mT @ w_q).mT if combine_kq else (x @ w_q.mT) @ w_k
            moments = (rows @ key.mT).softmax(-1) @ value
            out = moments @ (w_o @ w_v).mT if combine_ov else (moments @ w_v.mT) @ w_o.mT
        out.sum(1).square().sum().backward()
    return counter.get_total_flops() // 2


def all_plans(s: Sizes) -> list[tuple[str, bool, bool]]:
    return [("tokens", False, False), *(("query", kq, ov) for kq in (False, True) for ov in (False, True))]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_counts_are_those_of_the_products(sizes: Sizes) -> None:
    for side in ("tokens", "query"):
        chosen = plan(sizes, side)
        assert chosen.operations == products(sizes, *chosen[:3])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_auto_takes_the_fewest(sizes: Sizes) -> None:
    assert plan(sizes).operations == min(products(sizes, *candidate) for candidate in all_plans(sizes))


def test_choices_at_known_settings() -> None:
    one_query = Sizes(2000, 1, 100, 8, 51, 51, 51, 51, 1)
    assert plan(one_query)[:3] == ("query", True, True)
    assert plan(one_query, "tokens").operations > 20 * plan(one_query).operations
    transformer = Sizes(64, 41, 41, 8, 256, 256, 256, 32, 256, True, True, True)
    assert plan(transformer).side == "tokens"


def test_modules_follow_the_plan() -> None:
    module = MultiHeadAttention(8, 2, head_dim=4)
    tokens = torch.randn(3, 20, 8)
    assert module.plan(tokens[:, :1], tokens, tokens).side == "query"
    assert module.plan(tokens, tokens, tokens).side == "tokens"
