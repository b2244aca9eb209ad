"""Plain PyTorch modules with the public layout, which the package's are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainMultiHead(nn.Module):
    """q_proj, k_proj, v_proj, o_proj as Linear layers, every token projected, scaled_dot_product_attention."""

    def __init__(self, dims: tuple[int, int, int], heads: int, head_dim: int, out_dim: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner, bias) for dim in dims)
        self.o_proj = nn.Linear(inner, out_dim, bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        q, k, v = self.split(query, key, value)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def split(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        return [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected]


def gradients(module: nn.Module, out: Tensor, inputs: tuple[Tensor, ...] = ()) -> dict[str, Tensor]:
    """Of a sum of out with fixed weights, in all parameters by name and in the inputs that need them by number."""
    named: dict[str, Tensor] = dict(module.named_parameters())
    named |= {str(i): x for i, x in enumerate(inputs) if x.requires_grad}
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape).cos()
    grads = torch.autograd.grad((out * weights).sum(), list(named.values()))
    return dict(zip(named, grads))
