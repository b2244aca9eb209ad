"""The attention-only transformer as its definition says, in plain PyTorch, and random instances of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Instance(NamedTuple):
    """A model, and prompts for it."""

    tokens: Tensor  # (N, n + Q, d + 1)
    target: Tensor  # (N, Q)
    weights: list[Tensor]
    shapes: list[tuple[int, int]]
    options: dict[str, Any]  # activation, scales and perhaps head_masks

    def converted(self, dtype: torch.dtype) -> Instance:
        weights = [weight.to(dtype) for weight in self.weights]
        return self._replace(tokens=self.tokens.to(dtype), target=self.target.to(dtype), weights=weights)


class Sizes(NamedTuple):
    prompts: int
    context: int
    queries: int
    dim_x: int
    width: int
    shapes: list[tuple[int, int]]


SIZES = {
    "many heads": Sizes(9, 40, 8, 16, 64, [(8, 8)] * 3),
    "one head": Sizes(5, 40, 16, 16, 64, [(1, 64)] * 3),
    "one layer": Sizes(3, 17, 3, 4, 32, [(2, 16)]),
    "heads of all sizes": Sizes(6, 13, 3, 5, 23, [(3, 5), (1, 29), (6, 1)]),
    "heads of one number": Sizes(4, 19, 1, 7, 15, [(7, 1), (1, 7), (1, 7)]),
    "wide": Sizes(3, 33, 2, 8, 200, [(4, 50)] * 2),
    "one of everything": Sizes(1, 1, 1, 1, 1, [(1, 1)]),
    "many rows": Sizes(2, 70, 61, 3, 9, [(2, 3)] * 2),
    "no context": Sizes(3, 0, 4, 3, 10, [(2, 3)] * 2),
    "more covariates than width": Sizes(4, 9, 5, 40, 12, [(3, 4)] * 3),
}


def instance(
    sizes: Sizes, activation: str = "softmax", *, seed: int = 0, logit_scale: float = 1.0, **options: Any
) -> Instance:
    """In float64, with states of order 1 and logits of standard deviation about `logit_scale`."""
    prompts, context, queries, dim_x, width, shapes = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, std: float = 1.0) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64) * std

    tokens = normal(prompts, context + queries, dim_x + 1)
    tokens[:, context:, dim_x] = 0
    weights = [normal(width, dim_x + 1, std=(dim_x + 1) ** -0.5)]
    for heads, dim in shapes:
        weights += [normal(heads * dim, width, std=width**-0.5) for _ in range(3)]
        weights.append(normal(width, heads * dim, std=(heads * dim) ** -0.5))
    weights.append(normal(width, std=width**-0.5))
    scales = [logit_scale * dim**-0.5 for _, dim in shapes]
    return Instance(
        tokens, normal(prompts, queries), weights, list(shapes), {"activation": activation, "scales": scales, **options}
    )


def predictions(of: Instance) -> Tensor:
    """ŷ (N, Q), head by head."""
    context, (read_in, *of_layers, read_out) = of.tokens.shape[1] - of.target.shape[1], of.weights
    masks = of.options.get("head_masks") or [None] * len(of.shapes)
    hidden = of.tokens @ read_in.T
    for layer, ((heads, dim), mask) in enumerate(zip(of.shapes, masks, strict=True)):
        q, k, v, o = of_layers[4 * layer : 4 * layer + 4]
        added = torch.zeros_like(hidden)
        for head in range(heads):
            if mask is not None and not mask[head]:
                continue
            part = slice(head * dim, (head + 1) * dim)
            query, key, value = hidden @ q[part].T, hidden[:, :context] @ k[part].T, hidden[:, :context] @ v[part].T
            logits = of.options["scales"][layer] * query @ key.mT
            weights = logits.softmax(-1) if of.options["activation"] == "softmax" else logits / max(context, 1)
            added = added + weights @ value @ o[:, part].T
        hidden = hidden + added
    return hidden[:, context:] @ read_out


def loss_and_gradients(of: Instance) -> list[Tensor]:
    """The loss, then the gradients of all weights, zero where the loss does not depend on one."""
    leaves = [weight.detach().clone().requires_grad_() for weight in of.weights]
    loss = (predictions(of._replace(weights=leaves)) - of.target).square().mean()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(w) if g is None else g for w, g in zip(leaves, gradients, strict=True))]
