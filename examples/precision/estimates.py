"""The estimates compared: each draws groups of prompts and gives a gradient per group; with what a prompt costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from gradients import Attention, Gradient, average, basis, conditional, leading_order, sampled, subspace
from torch import Tensor

# Nanoseconds on one core with 16-lane single precision: a normal, a multiply-add, an exponential.
NORMAL, MULTIPLY_ADD, EXPONENTIAL = 0.5, 0.03, 0.3


class Blocks(NamedTuple):
    """A gradient's KQ block (groups, H, ·, d) and OV block (groups, H, I, ·)."""

    kq: Tensor
    ov: Tensor


class Estimate(NamedTuple):
    """`draw` gives the gradients of about `n` prompts in groups that are independent of each other; `cost` is
    nanoseconds per prompt."""

    name: str
    group: Callable[[int], int]  # covariates -> prompts of a group
    draw: Callable[[Attention, int, torch.Generator], Blocks]
    cost: Callable[[Attention], float]


def normals(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def grouped(gradient: Gradient, size: int) -> Blocks:
    """Means over consecutive groups of `size` prompts."""
    by_logit, query = (part.unflatten(0, (-1, size)) for part in gradient[:2])
    kq = torch.einsum("gsha,gsb->ghab", by_logit, query) / size
    return Blocks(kq, gradient.by_output.unflatten(0, (-1, size)).mean(1))


def invariant(model: Attention, blocks: Blocks) -> Blocks:
    """The mean over rotations within each atom of covariates and over the labels' signs: on KQ's covariate block one
    multiple of the identity per atom, on OV's label block the diagonal."""
    masks = atom_masks(model)
    means = blocks.kq.diagonal(dim1=-2, dim2=-1) @ (masks / masks.sum(1, keepdim=True)).T
    return Blocks(torch.diag_embed(means @ masks), torch.diag_embed(blocks.ov.diagonal(dim1=-2, dim2=-1)))


def symmetric(model: Attention) -> Attention:
    """The nearest weights that the symmetries leave as they are."""
    kq, ov = invariant(model, Blocks(model.w, model.u))
    return Attention(model.task, kq, ov)


def controlled(model: Attention, own: Blocks, of_symmetric: Blocks) -> Blocks:
    """g(W) − g(W̄) + the invariant part of g(W̄): W̄'s population gradient is invariant, so the mean is that of g(W)."""
    part = invariant(model, of_symmetric)
    return Blocks(own.kq - of_symmetric.kq + part.kq, own.ov - of_symmetric.ov + part.ov)


def mirrored(model: Attention, query: Tensor, columns: Tensor, generator: torch.Generator) -> Gradient:
    """The mean over a context and its mirror image."""
    context = normals(generator, len(query), model.task.context_length, columns.shape[2])
    return average(subspace(model, query, columns, context), subspace(model, query, columns, -context))


def draw_sampled(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    query, context = normals(generator, n, model.task.dim_x), normals(generator, n, *_whole(model))
    return grouped(sampled(model, query, context, generator), 1)


def draw_conditional(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    query, context = normals(generator, n, model.task.dim_x), normals(generator, n, *_whole(model))
    return grouped(conditional(model, query, context), 1)


def draw_shared_context(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    query = normals(generator, n, model.task.dim_x)
    context = normals(generator, n // 4, *_whole(model)).repeat_interleave(4, 0)
    return grouped(conditional(model, query, context), 4)


def draw_conditional_symmetry(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    query, context = normals(generator, n, model.task.dim_x), normals(generator, n, *_whole(model))
    own, other = (grouped(conditional(weights, query, context), 1) for weights in (model, symmetric(model)))
    return controlled(model, own, other)


def draw_subspace(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    query = normals(generator, n, model.task.dim_x)
    columns = basis(model.logits(query))
    context = normals(generator, n, model.task.context_length, columns.shape[2])
    return grouped(subspace(model, query, columns, context), 1)


def draw_two_contexts(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    query = normals(generator, n, model.task.dim_x)
    columns = basis(model.logits(query))
    shape = (n, model.task.context_length, columns.shape[2])
    return grouped(average(*(subspace(model, query, columns, normals(generator, *shape)) for _ in range(2))), 1)


def draw_mirrored(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    query = normals(generator, n, model.task.dim_x)
    return grouped(mirrored(model, query, basis(model.logits(query)), generator), 1)


def draw_orthogonal(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    """Queries in groups of d: columns of one random rotation, each with a length of its own."""
    d = model.task.dim_x
    rotation, triangle = torch.linalg.qr(normals(generator, max(1, n // d), d, d))
    rotation = rotation * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]
    lengths = normals(generator, len(rotation), d, d).norm(dim=-1, keepdim=True)
    query = (rotation.mT * lengths).flatten(0, 1)
    return grouped(mirrored(model, query, basis(model.logits(query)), generator), d)


def draw_sobol(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    """Groups of 128 queries from scrambled Sobol sequences."""
    seeds = torch.randint(1 << 31, (max(1, n // 128),), generator=generator).tolist()
    engines = [torch.quasirandom.SobolEngine(model.task.dim_x, scramble=True, seed=seed) for seed in seeds]
    uniform = torch.cat([engine.draw(128, dtype=torch.float64) for engine in engines]).clamp(1e-9, 1 - 1e-9)
    query = torch.special.ndtri(uniform)
    return grouped(mirrored(model, query, basis(model.logits(query)), generator), 128)


def draw_leading_order(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    """The closed form that is added back has no variance, and is left out here."""
    query = normals(generator, n, model.task.dim_x)
    own = grouped(mirrored(model, query, basis(model.logits(query)), generator), 1)
    control = grouped(leading_order(model, query), 1)
    return Blocks(own.kq - control.kq, own.ov - control.ov)


def draw_symmetry(model: Attention, n: int, generator: torch.Generator) -> Blocks:
    """One basis for both weights, so that their noise is the same as far as they are; S_a x_q span W̄'s logits."""
    query = normals(generator, n, model.task.dim_x)
    columns = basis(torch.cat([atom_masks(model) * query[:, None], model.logits(query)], 1))
    context = normals(generator, n, model.task.context_length, columns.shape[2])
    own, of_symmetric = (
        grouped(average(*(subspace(weights, query, columns, sign * context) for sign in (1, -1))), 1)
        for weights in (model, symmetric(model))
    )
    return controlled(model, own, of_symmetric)


def atom_masks(model: Attention) -> Tensor:
    """S_a of the atoms, the covariates that the same tasks read, (atoms, d)."""
    _, atom = torch.unique(model.task.support.int(), dim=1, return_inverse=True)
    return (torch.arange(int(atom.max()) + 1)[:, None] == atom).double()


def _whole(model: Attention) -> tuple[int, int]:
    return model.task.context_length, model.task.dim_x


def time_of(n_normals: float, multiply_adds: float, exponentials: float) -> float:
    return NORMAL * n_normals + MULTIPLY_ADD * multiply_adds + EXPONENTIAL * exponentials


def whole_cost(model: Attention, width: int, evaluations: int = 1, draws: float = 1.0) -> float:
    """Estimates that draw whole contexts of tokens of this width."""
    (length, d), heads = _whole(model), len(model.w)
    attention = evaluations * (4 * length * heads * width + 2 * length * heads**2)
    return time_of(d + draws * length * d, attention + 2 * heads * width**2, evaluations * length * heads)


def sampled_cost(model: Attention) -> float:
    (length, d), tasks = _whole(model), model.task.n_tasks
    labels = time_of(length * tasks * (model.task.noise_std > 0) + d * tasks, length * d * tasks, 0)
    return whole_cost(model, d + tasks) + labels


def subspace_cost(model: Attention, contexts: int, drawn: int, extra_directions: int = 0, weights: int = 1) -> float:
    """`contexts` evaluated and `drawn` drawn for each query; the basis, KQ x_q and the outer product once."""
    (length, d), heads = _whole(model), len(model.w)
    k = min(heads + extra_directions, d)
    once = 2 * heads * d**2 + 2 * k**2 * d
    each = 5 * length * heads * k + 2 * length * heads**2 + 5 * heads * k * d + 1.5 * heads**2 * d
    evaluations = contexts * weights
    return time_of(d + drawn * length * k, once + evaluations * each, evaluations * length * heads)


ESTIMATES = (
    Estimate("sampled", lambda d: 1, draw_sampled, sampled_cost),
    Estimate("conditional", lambda d: 1, draw_conditional, lambda m: whole_cost(m, m.task.dim_x)),
    Estimate("conditional, 4 queries a context", lambda d: 4, draw_shared_context,
             lambda m: whole_cost(m, m.task.dim_x, draws=0.25)),
    Estimate("subspace", lambda d: 1, draw_subspace, lambda m: subspace_cost(m, 1, 1)),
    Estimate("subspace, 2 contexts", lambda d: 1, draw_two_contexts, lambda m: subspace_cost(m, 2, 2)),
    Estimate("subspace, ± context", lambda d: 1, draw_mirrored, lambda m: subspace_cost(m, 2, 1)),
    Estimate("± context, Sobol queries", lambda d: 128, draw_sobol, lambda m: subspace_cost(m, 2, 1)),
    Estimate("± context, orthogonal queries", lambda d: d, draw_orthogonal,
             lambda m: subspace_cost(m, 2, 1) + time_of(0, 4 / 3 * m.task.dim_x**2, 0)),
    Estimate("± context − leading order", lambda d: 1, draw_leading_order,
             lambda m: subspace_cost(m, 2, 1) + time_of(0, 2 * len(m.w) ** 2 * m.task.dim_x, len(m.w) ** 2)),
    Estimate("conditional, symmetry", lambda d: 1, draw_conditional_symmetry,
             lambda m: whole_cost(m, m.task.dim_x, evaluations=2)),
    Estimate("± context, symmetry", lambda d: 1, draw_symmetry,
             lambda m: subspace_cost(m, 2, 1, len(atom_masks(m)), 2)),
)  # fmt: skip
