"""Multi-head attention on either side of the projections, as functions of the weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mhicl_fast import attention, prompt_attention

from .projection import Plan


class Weights(NamedTuple):
    """Weights and biases as Linear layers hold them: heads along the rows of q, k, v and along the columns of o."""

    q: Tensor  # (H·E, D)
    k: Tensor  # (H·E, Dk)
    v: Tensor  # (H·E, Dv)
    o: Tensor  # (O, H·E)
    q_bias: Tensor | None = None  # (H·E)
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None  # (O)


class Options(NamedTuple):
    """What `mhicl_fast.attention` is told beside the tensors; attn_mask broadcastable to (N, H, Lq, L)."""

    scale: float
    activation: str = "softmax"
    attn_mask: Tensor | None = None
    key_lengths: Tensor | None = None
    is_causal: bool = False
    return_weights: bool = False

    @property
    def hides_keys(self) -> bool:
        return self.attn_mask is not None or self.key_lengths is not None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, return_lse: bool = False) -> list[Tensor]:
        """Output, log-sum-exp if asked for, weights if the options ask for them."""
        result: Any = attention(query, key, value, **self._asdict(), return_lse=return_lse)
        return list(result) if isinstance(result, tuple) else [result]


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, weights: Weights, heads: int, plan: Plan, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Output (N, Lq, O), and the attention weights (N, H, Lq, L) if the options ask for them.

    Shapes: query (N, Lq, D), key (N, L, Dk), value (N, L, Dv).
    """
    if plan.side == "tokens":
        key, value = _without_padding(key, value, options.key_lengths)
        q = F.linear(query, weights.q, weights.q_bias)
        k = F.linear(key, weights.k, weights.k_bias)
        v = F.linear(value, weights.v, weights.v_bias)
        return attend_projected(q, k, v, weights, heads, options)
    if _fits_prompt_attention(query, key, value, weights, plan, options):
        return _one_query(query, key, weights, heads, options), None
    return _on_query_side(query, key, value, weights, heads, plan, options)


def attend_projected(
    q: Tensor, k: Tensor, v: Tensor, weights: Weights, heads: int, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Attention of projected queries (N, Lq, H·E) to projected keys and values (N, L, H·E), then W_O."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, H, ·, E)
    out, *rest = options.attend(q, k, v)
    return F.linear(out.transpose(1, 2).flatten(2), weights.o, weights.o_bias), rest[0] if rest else None


def combined_kq(weights: Weights, heads: int) -> Tensor:
    """W_K,hᵀ W_Q,h, (H, Dk, D), without the scale."""
    return _by_head(weights.k, heads).transpose(1, 2) @ _by_head(weights.q, heads)


def combined_ov(weights: Weights, heads: int) -> Tensor:
    """W_O,h W_V,h, (H, O, Dv)."""
    return weights.o.unflatten(1, (heads, -1)).transpose(0, 1) @ _by_head(weights.v, heads)


def _without_padding(key: Tensor, value: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zeros past each problem's length: a NaN there would reach the gradients of the projections."""
    if lengths is None:
        return key, value
    padding = (torch.arange(key.shape[1], device=key.device) >= lengths[:, None])[..., None]  # (N, L, 1)
    masked = key.masked_fill(padding, 0)
    return masked, masked if value is key else value.masked_fill(padding, 0)


def _on_query_side(
    query: Tensor, key: Tensor, value: Tensor, weights: Weights, heads: int, plan: Plan, options: Options
) -> tuple[Tensor, Tensor | None]:
    rows = _project_queries(query, weights, heads, plan.combine_kq)
    # A row that sees no key has no weights for the value bias to ride on: its log-sum-exp is −∞.
    may_be_empty = weights.v_bias is not None and (options.hides_keys or key.shape[1] == 0)
    moments, *rest = options.attend(rows, key[:, None], value[:, None], return_lse=may_be_empty)  # (N, H, Lq, Dv)
    if plan.combine_ov:
        out = torch.einsum("nhqd,hod->nqo", moments, combined_ov(weights, heads))
    else:
        heads_out = torch.einsum("nhqd,hed->nqhe", moments, _by_head(weights.v, heads))
        out = F.linear(heads_out.flatten(2), weights.o)
    if weights.v_bias is not None:
        seen = rest.pop(0) != -torch.inf if may_be_empty else None  # (N, H, Lq)
        out = _plus(out, _value_bias(weights, heads, seen))
    return _plus(out, weights.o_bias), rest[0] if rest else None


def _project_queries(query: Tensor, weights: Weights, heads: int, combine: bool) -> Tensor:
    """r_h = W_K,hᵀ (W_Q,h x + b_Q,h), (N, H, Lq, Dk).

    The key bias adds (W_Q,h x + b_Q,h)·b_K,h to all logits of a row, which the softmax does not see: its gradient is 0.
    """
    k = _by_head(weights.k, heads)
    if combine:
        rows = torch.einsum("nqd,hkd->nhqk", query, combined_kq(weights, heads))
        if weights.q_bias is not None:
            rows = rows + torch.einsum("he,hek->hk", weights.q_bias.unflatten(0, (heads, -1)), k)[:, None]
    else:
        q = F.linear(query, weights.q, weights.q_bias).unflatten(-1, (heads, -1))  # (N, Lq, H, E)
        rows = torch.einsum("nqhe,hek->nhqk", q, k)
    if weights.k_bias is not None:
        rows = rows + 0 * weights.k_bias.sum()  # 0, not absent: optimisers and reducers tell these apart
    return rows


def _value_bias(weights: Weights, heads: int, seen: Tensor | None) -> Tensor:
    """Σ_h W_O,h b_V,h over the heads whose row sees a key: (O), or (N, Lq, O)."""
    assert weights.v_bias is not None
    if seen is None:
        return weights.o @ weights.v_bias
    by_head = torch.einsum("ohe,he->ho", weights.o.unflatten(1, (heads, -1)), weights.v_bias.unflatten(0, (heads, -1)))
    return torch.einsum("nhq,ho->nqo", seen.to(by_head.dtype), by_head)


def _fits_prompt_attention(
    query: Tensor, key: Tensor, value: Tensor, weights: Weights, plan: Plan, options: Options
) -> bool:
    """Whether this is the one-layer model that `prompt_attention` computes, and cheapest with KQ and OV formed."""
    return (
        key is value
        and query.shape[1] == 1
        and query.shape[2] == key.shape[2]
        and plan.combine_kq
        and plan.combine_ov
        and options.activation == "softmax"
        and options.attn_mask is None
        and not options.is_causal
        and not options.return_weights
        and weights.q_bias is None
        and weights.k_bias is None
        and weights.v_bias is None
    )


def _one_query(query: Tensor, context: Tensor, weights: Weights, heads: int, options: Options) -> Tensor:
    kq = options.scale * combined_kq(weights, heads)
    out = prompt_attention(
        context, query[:, 0], kq, combined_ov(weights, heads), context_lengths=options.key_lengths
    )[:, None]  # fmt: skip
    return _plus(out, weights.o_bias)


def _plus(out: Tensor, bias: Tensor | None) -> Tensor:
    """In out's dtype, which autocast may have made another than the bias's."""
    return out if bias is None else out + bias.to(out.dtype)


def _by_head(weight: Tensor, heads: int) -> Tensor:
    return weight.unflatten(0, (heads, -1))
