"""Where multi-head attention projects: which side needs fewer operations, forward and backward.

With W_Q, W_K, W_V (H, E, ·) and W_O (H, O, E), the logits of a query x against a token z and the output are

    z·r_h with r_h = W_K,hᵀ W_Q,h x,    y = Σ_h W_O,h W_V,h m_h with m_h = Σ_l p_lh z_l.

"tokens" computes W_K,h z and W_V,h z for every token, as modules commonly do; "query" computes r_h, attends to the raw
tokens as one key and value that all heads share, and applies W_V and W_O to the moments m_h. In-context-learning
prompts have many tokens and few queries, so the query side mostly takes several times fewer operations there; with as
many queries as tokens the token side does, since its rows have E numbers instead of a token's width.

On the query side each product of two matrices is taken in the cheaper order: W_Kᵀ (W_Q x), or (W_Kᵀ W_Q) x, which
forms KQ_h once and pays when queries are many, and likewise W_O (W_V m) or (W_O W_V) m, which also pays when outputs
are few.
"""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """All that the number of operations depends on."""

    batch: int
    rows: int  # queries per problem, Lq
    tokens: int  # keys per problem, L
    heads: int
    query_dim: int
    key_dim: int
    value_dim: int
    head_dim: int
    out_dim: int
    # An input that needs no gradient spares the backward pass one product for each that it enters.
    query_needs_grad: bool = False
    key_needs_grad: bool = False
    value_needs_grad: bool = False


class Plan(NamedTuple):
    """What to compute, and its multiply-adds forward and backward."""

    side: str  # "tokens" or "query"
    combine_kq: bool
    combine_ov: bool
    operations: int


def plan(sizes: Sizes, projection: str = "auto") -> Plan:
    """The cheapest plan on the given side, or on the cheaper one for "auto"; the tokens' on equal counts."""
    on_tokens, on_query = _on_tokens(sizes), _on_query(sizes)
    if projection == "auto":
        return on_query if on_query.operations < on_tokens.operations else on_tokens
    return on_tokens if projection == "tokens" else on_query


def _on_tokens(s: Sizes) -> Plan:
    inner = s.heads * s.head_dim
    projections = s.batch * inner * (
        s.rows * s.query_dim * _passes(s.query_needs_grad)
        + s.tokens * s.key_dim * _passes(s.key_needs_grad)
        + s.tokens * s.value_dim * _passes(s.value_needs_grad)
        + s.rows * s.out_dim * 3
    )  # fmt: skip
    # Logits and moments: each one product forward, two backward.
    attention = s.batch * s.rows * s.tokens * inner * 6
    return Plan("tokens", False, False, projections + attention)


def _on_query(s: Sizes) -> Plan:
    queries = s.batch * s.rows
    logits = queries * s.heads * s.tokens * s.key_dim * _passes(s.key_needs_grad)
    moments = queries * s.heads * s.tokens * s.value_dim * _passes(s.value_needs_grad)
    kq_apart = queries * s.heads * s.head_dim * (s.query_dim * _passes(s.query_needs_grad) + s.key_dim * 3)
    kq_combined = s.heads * s.key_dim * s.query_dim * (s.head_dim * 3 + queries * _passes(s.query_needs_grad))
    ov_apart = queries * s.heads * s.head_dim * (s.value_dim + s.out_dim) * 3
    ov_combined = s.heads * s.out_dim * s.value_dim * (s.head_dim + queries) * 3
    operations = logits + moments + min(kq_apart, kq_combined) + min(ov_apart, ov_combined)
    return Plan("query", kq_combined < kq_apart, ov_combined < ov_apart, operations)


def _passes(needs_grad: bool) -> int:
    """Products that an input's product with a weight or a row costs: itself, the other's gradient, maybe its own."""
    return 3 if needs_grad else 2
