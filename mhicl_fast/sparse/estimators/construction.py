"""The algorithm written as a linear-attention transformer, weight by weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import Layer, LayerShape, Transformer
from .algorithm import block_of_coordinates, feature_maps, step_sizes


def build_transformer(
    dim_x: int,
    steps: int,
    *,
    heads: int | None = None,
    gamma: float = 0.0,
    step_size: float | None = None,
    dtype: torch.dtype | None = None,
) -> Transformer:
    """A transformer whose predictions are those of `algorithm.preprocessed_descent` after `steps` steps, to rounding.

    Hidden states have x in their first d slots, the label in the next, then one slot for each head of the first layer.
    In that layer head j, for the querying token i and context examples l, has the logits Σ_{c ∈ B_j} x_lc x_ic and the
    value y_l; divided by n that is r̂_B·x_B of token i, written into slot j. Each later layer has one head, whose logits
    are z_l·z_i with the features z (these slots and, with γ ≠ 0, γx), and whose value is the label slot, which holds
    the residual y_l − β·z_l; times −η and divided by n it is added to the label slot. So a query's label slot, which
    starts at 0, comes to −β·z, and the read-out takes its negative.

    Args:
        dim_x: covariates d ≥ 1.
        steps: gradient steps ≥ 0; there are as many layers and one more.
        heads: H of the first layer, one for each block of coordinates; d if None.
        gamma: γ.
        step_size: η of all prompts, which makes this a plain transformer; if None, η comes with the prompts, as
            `forward`'s gains from `step_gains`.
        dtype: of the weights; torch's default if None.

    Raises ValueError for sizes outside the above.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    block = block_of_coordinates(dim_x, heads)
    n_heads, largest = int(block[-1]) + 1, int(block.bincount().max())
    label, slots = dim_x, dim_x + 1
    n_features = n_heads + (dim_x if gamma else 0)
    shapes = [LayerShape(n_heads, largest)] + [LayerShape(1, n_features)] * steps
    model = Transformer(dim_x, slots + n_heads, shapes, activation="linear", scale=1.0).to(dtype)
    first, *others = (layer for layer in model.layers if isinstance(layer, Layer))
    model.needs_gains = step_size is None and steps > 0
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.read_in[:slots] = torch.eye(slots)
        _write_preprocessing(first, block, largest, label)
        for layer in others:
            _write_step(layer, n_heads, label, gamma, 1.0 if step_size is None else step_size)
        model.read_out[label] = -1
    return model


def step_gains(
    x: Tensor, y: Tensor, steps: int, *, c: float = 1.0, heads: int | None = None, gamma: float = 0.0
) -> Tensor:
    """Gains (1 + steps, N) for a transformer built without a step size: 1 for the first layer, then c / λ_max of the
    features' Gram matrix of each prompt, of covariates (N, n, d) and labels (N, n)."""
    eta = step_sizes(x @ feature_maps(x, y, heads, gamma).mT, c)
    return torch.stack([torch.ones_like(eta)] + [eta] * steps)


def _write_preprocessing(layer: Layer, block: Tensor, largest: int, label: int) -> None:
    """Head h reads the coordinates of block h, and puts out Σ_l (x_l·x_i)_B y_l / n through the first of its rows."""
    for head in range(int(block[-1]) + 1):
        first_row = head * largest
        for row, coordinate in enumerate((block == head).nonzero()[:, 0].tolist()):
            layer.q[first_row + row, coordinate] = layer.k[first_row + row, coordinate] = 1
        layer.v[first_row, label] = 1
        layer.o[label + 1 + head, first_row] = 1


def _write_step(layer: Layer, n_heads: int, label: int, gamma: float, step_size: float) -> None:
    """One gradient step on the features (z, and γx where γ ≠ 0) and the residuals in the label slot."""
    for weight in (layer.q, layer.k):
        weight[:n_heads, label + 1 :] = torch.eye(n_heads)
        if gamma:
            weight[n_heads:, :label].fill_diagonal_(gamma)
    layer.v[0, label] = 1
    layer.o[label, 0] = -step_size
