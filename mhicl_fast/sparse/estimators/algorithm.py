"""Preprocess, then optimise: gradient descent on covariates that were scaled by their correlation with the labels.

r̂ = Xᵀy/n estimates the coefficients; x̃ = R̂x with R̂ = diag(r̂) enlarges the covariates that matter, and a few steps of
gradient descent from 0 on (x̃_i, y_i) then hardly move the others. A linear-attention transformer with d heads in its
first layer and one in each later layer does just this (`construction`).

All functions take N prompts at once and return coefficients in x's own coordinates, (N, d), so that predictions are
β·x_q and the excess risk is (β − w)ᵀΣ(β − w) exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .eigenbasis import Eigenbasis, check_examples, moments

Steps = int | Sequence[int]


def preprocess(x: Tensor, y: Tensor) -> Tensor:
    """r̂ = Xᵀy/n, (N, d), of covariates (N, n, d) and labels (N, n); 0 without examples."""
    check_examples(x, y)
    return moments(x, y)


def feature_maps(x: Tensor, y: Tensor, heads: int | None = None, gamma: float = 0.0) -> Tensor:
    """The linear maps F (N, m, d) that the first layer makes of each context, to features z = Fx.

    With as many heads as covariates F = diag(r̂). With H fewer, head h reads the block B_h of `block_of_coordinates`
    and puts out the scalar r̂_B·x_B, so m = H. With γ ≠ 0, γx stands beside these: m = H + d.
    """
    r = preprocess(x, y)
    dim = r.shape[1]
    members = torch.nn.functional.one_hot(block_of_coordinates(dim, heads)).T.to(r)  # (H, d)
    maps = members * r[:, None, :]
    if gamma == 0:
        return maps
    beside = gamma * torch.eye(dim, dtype=r.dtype, device=r.device)
    return torch.cat([maps, beside.expand(len(r), dim, dim)], 1)


def block_of_coordinates(dim_x: int, heads: int | None = None) -> Tensor:
    """The head (d,) that reads each coordinate: H blocks of neighbours whose sizes differ by at most one; one head per
    coordinate if None. ValueError unless 1 ≤ H ≤ d."""
    heads = dim_x if heads is None else heads
    if not 1 <= heads <= dim_x:
        raise ValueError(f"heads must be in [1, dim_x] = [1, {dim_x}], got {heads}")
    blocks = torch.arange(dim_x).tensor_split(heads)
    return torch.cat([torch.full_like(block, head) for head, block in enumerate(blocks)])


def step_sizes(x: Tensor, c: float = 1.0) -> Tensor:
    """η = c / λ_max(XᵀX/n) of each prompt, (N,); 0 where all covariates are 0. Gradient descent diverges from c = 2."""
    n, dim = x.shape[1:]
    if n == 0:
        return x.new_zeros(len(x))
    return step_sizes_of(torch.linalg.eigvalsh((x @ x.mT if n < dim else x.mT @ x) / n)[:, -1], c)


def step_sizes_of(largest: Tensor, c: float = 1.0) -> Tensor:
    """c / λ_max, and 0 where λ_max is 0."""
    positive = largest > torch.finfo(largest.dtype).tiny
    return torch.where(positive, c / torch.where(positive, largest, 1.0), 0.0)


def gradient_descent(x: Tensor, y: Tensor, steps: Steps, *, c: float = 1.0, step_size: float | None = None) -> Tensor:
    """Coefficients after `steps` steps of gradient descent from 0 on the mean of (y_i − β·x_i)²/2.

    Args:
        x: (N, n, d) covariates, float32 or float64.
        y: (N, n) labels.
        steps: how many, or several numbers of steps, at each of which the coefficients are returned.
        c: the step size times λ_max(XᵀX/n) of each prompt.
        step_size: one step size for all prompts instead.

    Returns (N, d), or (K, N, d) for K numbers of steps. Where a gradient is wanted the steps are taken one by one, as
    eigenvectors have no derivative where eigenvalues coincide; otherwise all are read off one eigendecomposition.

    Raises ValueError or TypeError for other shapes and types and for a negative number of steps.
    """
    check_examples(x, y)
    counts = _step_counts(steps)
    constant = None if step_size is None else x.new_full((len(x),), step_size)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        found = _step_by_step(x, y, counts, step_sizes(x, c) if constant is None else constant)
    else:
        basis = Eigenbasis(x, y)
        eta = step_sizes_of(basis.largest, c) if constant is None else constant
        found = torch.stack([basis.descent(count, eta) for count in counts])
    return found[0] if isinstance(steps, int) else found


def preprocessed_descent(
    x: Tensor,
    y: Tensor,
    steps: Steps,
    *,
    c: float = 1.0,
    step_size: float | None = None,
    heads: int | None = None,
    gamma: float = 0.0,
) -> Tensor:
    """Coefficients, in x's coordinates, of gradient descent on the features that r̂ makes: see `feature_maps`.

    Arguments, result and errors are those of `gradient_descent`; λ_max is that of the features' Gram matrix. `heads`
    and `gamma` choose the features; by default x̃ = R̂x.
    """
    maps = feature_maps(x, y, heads, gamma)
    found = gradient_descent(x @ maps.mT, y, steps, c=c, step_size=step_size)
    return torch.einsum("nmd,...nm->...nd", maps, found)


def _step_counts(steps: Steps) -> list[int]:
    counts = [steps] if isinstance(steps, int) else list(steps)
    if not counts or min(counts) < 0:
        raise ValueError(f"steps must be one or more numbers of at least 0, got {steps}")
    return counts


def _step_by_step(x: Tensor, y: Tensor, counts: list[int], eta: Tensor) -> Tensor:
    """(K, N, d) after each of the numbers of steps, which can be differentiated."""
    beta = x.new_zeros(x.shape[0], x.shape[2])
    after = {0: beta}
    for step in range(1, max(counts) + 1):
        residual = y - (x @ beta[..., None])[..., 0]
        beta = beta + eta[:, None] * moments(x, residual)
        after[step] = beta
    return torch.stack([after[count] for count in counts])
