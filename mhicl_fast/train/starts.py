"""Where training starts: weights as a pure function of a seed.

Every start draws float64 numbers on the CPU from one `torch.Generator` and casts at the end, so the type and the
device of a run do not change its start beyond rounding.

`decomposable`  W_Q = W_K = L^-¾ · identity; W_V diagonal on the label block, L^-¾ everywhere and 2 L^-¾ at the head's
                own task (head h owns task h mod I), W_O = W_Vᵀ there.
`small`         decomposable and balanced with small random positive semi-singular values μ, ω; a random head favours
                each task.
`random`        the default of `torch.nn.Linear` for each projection.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..tasks import MultiTaskRegression
from .parameters import Combined, Factored, Parameters, resolve_scale

STARTS = ("decomposable", "small", "random")


def initial_parameters(
    task: MultiTaskRegression,
    n_heads: int,
    *,
    start: str,
    seed: int,
    parameters: str = "factored",
    scale: float | None = None,
    size: float = 0.01,
    spread: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Parameters:
    """Starting parameters with E = D.

    `start` is one of STARTS, `parameters` "factored" or "combined" (the factored start multiplied out). `scale`
    multiplies KQ (None: E^-½). `size` is the typical μ of the `small` start. `spread` multiplies the decomposable
    start's projections of each head by random factors between 1/(1 + spread) and 1 + spread. Raises ValueError for
    unknown names.
    """
    generator = torch.Generator().manual_seed(seed)
    if start == "decomposable":
        weights = _decomposable(task, n_heads, scale, spread, generator)
    elif start == "small":
        weights = _small(task, n_heads, scale, size, generator)
    elif start == "random":
        weights = _random(task, n_heads, scale, generator)
    else:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    weights = weights.with_tensors({name: tensor.to(dtype) for name, tensor in weights.tensors().items()})
    if parameters == "factored":
        return weights
    if parameters == "combined":
        kq, ov = weights.to_combined()
        return Combined(kq.clone(), ov.clone())
    raise ValueError(f"parameters must be factored or combined, got {parameters!r}")


def balanced_decomposable(task: MultiTaskRegression, mu: Tensor, omega: Tensor, scale: float | None = None) -> Factored:
    """Balanced factored weights with semi-singular values mu (H, I) ≥ 0 and omega (H, d) ≥ 0.

    W_Q = W_K = diag(√(ω/scale)) on the covariates, W_V = diag(√μ) on the labels and W_O = W_Vᵀ there; E = D.
    """
    d, dim, n_heads = task.dim_x, task.dim, mu.shape[0]
    logit_scale = resolve_scale(scale, dim)
    w_qk, w_v = torch.zeros(2, n_heads, dim, dim, dtype=torch.float64)
    w_qk[:, :d, :d] = torch.diag_embed((omega / logit_scale).sqrt())
    w_v[:, d:, d:] = torch.diag_embed(mu.sqrt())
    return Factored(w_qk, w_qk.clone(), w_v, w_v[:, :, d:].transpose(1, 2).contiguous(), scale)


def _decomposable(
    task: MultiTaskRegression, n_heads: int, scale: float | None, spread: float, generator: torch.Generator
) -> Factored:
    d, dim, tasks = task.dim_x, task.dim, task.n_tasks
    unit = task.context_length**-0.75
    factors = torch.rand(2, n_heads, generator=generator, dtype=torch.float64).mul(2).sub(1)  # in (−1, 1)
    factors = (factors * math.log1p(spread)).exp()
    w_qk = unit * factors[0, :, None, None] * torch.eye(dim, dtype=torch.float64)
    values = torch.full((n_heads, tasks), unit, dtype=torch.float64)
    heads = torch.arange(n_heads)
    values[heads, heads % tasks] *= 2
    w_v = torch.zeros(n_heads, dim, dim, dtype=torch.float64)
    w_v[:, d:, d:] = torch.diag_embed(values * factors[1, :, None])
    return Factored(w_qk, w_qk.clone(), w_v, w_v[:, :, d:].transpose(1, 2).contiguous(), scale)


def _small(
    task: MultiTaskRegression, n_heads: int, scale: float | None, size: float, generator: torch.Generator
) -> Factored:
    """Balanced, with u = μ and v = d_i ω / scale both of the order of `size`.

    Task i emerges in head h after about 1/(4 λ_i scale u). Each task has a random size of its own, so that tasks emerge
    one after the other, and a head of its own by a random permutation (with fewer heads than tasks, one that serves
    several), where u and v are about twice as large as in the others, so that this head wins.
    """
    tasks = task.n_tasks

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    owner = torch.randperm(n_heads, generator=generator)[torch.arange(tasks) % n_heads]
    owned = torch.zeros(n_heads, tasks, dtype=torch.bool)
    owned[owner, torch.arange(tasks)] = True
    task_size = size * uniform(math.log(0.7), math.log(1.5), tasks).exp()
    relative = torch.where(owned, uniform(1.2, 1.5, 2, n_heads, tasks), uniform(0.5, 0.8, 2, n_heads, tasks))
    u, v = task_size * relative
    logit_scale = resolve_scale(scale, task.dim)
    per_task = logit_scale * v / task.support_sizes  # ω_i^h
    support = task.support.to(torch.float64)
    # A covariate that several tasks read starts at the mean of theirs; one that no task reads starts, and stays, at 0.
    omega = per_task @ support / support.sum(0).clamp(min=1)
    return balanced_decomposable(task, u, omega, scale)


def _random(task: MultiTaskRegression, n_heads: int, scale: float | None, generator: torch.Generator) -> Factored:
    """Uniform within ±1/√fan-in; W_O's fan-in is H·E, as for one projection of the concatenated heads."""

    def uniform(rows: int, columns: int, fan_in: int) -> Tensor:
        numbers = torch.rand(n_heads, rows, columns, generator=generator, dtype=torch.float64)
        return (2 * numbers - 1) / math.sqrt(fan_in)

    dim = task.dim
    w_q, w_k, w_v = (uniform(dim, dim, dim) for _ in range(3))
    return Factored(w_q, w_k, w_v, uniform(task.n_tasks, dim, n_heads * dim), scale)
