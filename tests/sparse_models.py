"""Small transformers with random weights, as trained ones would have."""

from __future__ import annotations

import torch
from torch import Tensor

from mhicl_fast.sparse.model import Transformer


def random_transformer(
    layers: list[tuple[int, int]], *, dim_x: int = 3, width: int = 12, seed: int = 0, **settings: object
) -> Transformer:
    """In float64; every weight random, the read-out too, which a fresh transformer has at zero."""
    model = Transformer(dim_x, width, layers, **settings).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / weight.shape[-1] ** 0.5)
    return model


def without_output(model: Transformer, layer: int, heads: list[int]) -> dict[str, Tensor]:
    """The model's weights with W_O's columns of some heads zero."""
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    output = weights[f"layers.{layer}.o"].unflatten(1, model.shapes[layer])
    output[:, heads] = 0
    return weights
