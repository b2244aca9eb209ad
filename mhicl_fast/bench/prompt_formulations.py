"""What prompt_attention competes with: the same model in plain PyTorch, each in its best idiom.

All take context (N, L, D), query (N, D), kq (H, D, D), ov (H, O, D) and return (N, O). `projected` is how public study
code computes: it projects every context token. The others are absorbed: the projections stand on the query's side,
keys and values are the raw context.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
import torch.nn.functional as F
from torch import Tensor

import mhicl_fast

Model = Callable[..., Tensor]


def absorbed(context: Tensor, query: Tensor, kq: Tensor, ov: Tensor) -> Tensor:
    """Products of matrices, the heads as rows over one context."""
    n, dim = query.shape
    heads, outputs, _ = ov.shape
    projected_query = (query @ kq.reshape(heads * dim, dim).mT).view(n, heads, dim)
    probabilities = torch.bmm(projected_query, context.mT).softmax(-1)
    moments = torch.bmm(probabilities, context)
    return moments.view(n, heads * dim) @ ov.transpose(1, 2).reshape(heads * dim, outputs)


def absorbed_sdpa(context: Tensor, query: Tensor, kq: Tensor, ov: Tensor) -> Tensor:
    """The heads as query rows over one shared key and value."""
    n, dim = query.shape
    heads, outputs, _ = ov.shape
    rows = (query @ kq.reshape(heads * dim, dim).mT).view(n, 1, heads, dim)
    moments = F.scaled_dot_product_attention(rows, context[:, None], context[:, None], scale=1.0)
    return moments.reshape(n, heads * dim) @ ov.transpose(1, 2).reshape(heads * dim, outputs)


def broadcast(context: Tensor, query: Tensor, kq: Tensor, ov: Tensor) -> Tensor:
    """Products and sums that a compiler can fuse."""
    projected_query = torch.einsum("hed,nd->nhe", kq, query)
    logits = (projected_query[:, :, None] * context[:, None]).sum(-1)
    moments = (logits.softmax(-1)[..., None] * context[:, None]).sum(2)
    return torch.einsum("nhd,hod->no", moments, ov)


def projected(context: Tensor, query: Tensor, kq: Tensor, ov: Tensor) -> Tensor:
    """Keys and values of every token and head."""
    keys = torch.einsum("hed,nle->nhld", kq, context)
    values = torch.einsum("hod,nld->nhlo", ov, context)
    probabilities = torch.einsum("nhld,nd->nhl", keys, query).softmax(-1)
    return torch.einsum("nhl,nhlo->no", probabilities, values)


# The compiled ones are compiled anew for each shape: PyTorch's best case.
EAGER: dict[str, Model] = {"absorbed-eager": absorbed, "absorbed-sdpa": absorbed_sdpa}
COMPILED: dict[str, Model] = {"absorbed-compile": absorbed, "broadcast-compile": broadcast}
NAMES = ("mhicl_fast", *EAGER, *COMPILED, "projected")


def prompt_competitors(wanted: Container[str] = NAMES) -> dict[str, Model]:
    """The wanted functions by name, in the order of `NAMES`."""
    models = {"mhicl_fast": mhicl_fast.prompt_attention, **EAGER, "projected": projected}
    models |= {name: torch.compile(model, dynamic=False) for name, model in COMPILED.items() if name in wanted}
    return {name: models[name] for name in NAMES if name in wanted}
