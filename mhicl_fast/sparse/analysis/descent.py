"""Gradient descent on features of a prompt's examples, differentiable in the features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def descended_predictions(context: Tensor, labels: Tensor, queries: Tensor, steps: int, step_factor: float) -> Tensor:
    """Predictions β·f_q (N, Q) after gradient descent on ‖F β − y‖²/2n from β = 0 in each prompt.

    The step is η = c/λ with λ the greatest eigenvalue of FᵀF/n. Its derivative is dλ = vᵀ d(FᵀF/n) v with the unit
    eigenvector v held fixed (Hellmann and Feynman), which is exact wherever λ is simple. What the features are
    multiplied by from the left, a number or a rotation, changes nothing.

    Args:
        context: features F (N, n, p) of the examples.
        labels: y (N, n).
        queries: features (N, Q, p).
        steps: t ≥ 0.
        step_factor: c, below 2 for descent that converges.
    """
    n = max(context.shape[1], 1)
    gram = context.transpose(1, 2) @ context / n
    moment = context.transpose(1, 2) @ labels[..., None] / n  # (N, p, 1)
    with torch.no_grad():
        top = torch.linalg.eigh(gram)[1][..., -1:]  # (N, p, 1)
    curvature = top.transpose(1, 2) @ gram @ top  # (N, 1, 1): λ
    step = torch.where(curvature > 0, step_factor / curvature, 0)
    coefficients = _Descent.apply(step * gram, step * moment, steps)
    return (queries @ coefficients)[..., 0]


class _Descent(torch.autograd.Function):
    """βᵏ⁺¹ = βᵏ − (A βᵏ − b) from β⁰ = 0, for A (N, p, p) symmetric and b (N, p, 1); βᵗ (N, p, 1)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, steps: int) -> Tensor:
        path = [torch.zeros_like(b)]
        for _ in range(steps):
            path.append(path[-1] + torch.baddbmm(b, a, path[-1], alpha=-1))
        ctx.save_for_backward(a, torch.cat(path[:-1], 2) if steps else torch.zeros_like(b))
        ctx.steps = steps
        return path[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """With αᵗ the gradient of βᵗ, αᵏ = αᵏ⁺¹ − A αᵏ⁺¹; those of b and A are Σ αᵏ⁺¹ and −Σ αᵏ⁺¹ (βᵏ)ᵀ."""
        a, path = ctx.saved_tensors
        if not ctx.steps:
            return torch.zeros_like(a), torch.zeros_like(grad), None
        adjoint = [grad]
        for _ in range(ctx.steps - 1):
            adjoint.append(torch.baddbmm(adjoint[-1], a, adjoint[-1], alpha=-1))
        adjoints = torch.cat(adjoint[::-1], 2)  # (N, p, t): αᵏ⁺¹ for k = 0 … t − 1
        return -adjoints @ path.transpose(1, 2), adjoints.sum(2, keepdim=True), None
