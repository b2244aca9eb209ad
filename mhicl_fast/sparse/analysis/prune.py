"""Transformers with some of their heads, as smaller transformers, and the risks of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ...tasks.sparse import SparseRegression
from ..model import Transformer
from .conditions import Conditions, errors
from .draws import Purpose
from .record import Record
from .statistics import Estimate, mean, ratio


def keep_heads(model: Transformer, kept: Sequence[Sequence[int]]) -> Transformer:
    """A transformer of the heads named alone, in their order: the function of the model with all others masked.

    Its weights are copies of the model's, with the rows of W_Q, W_K, W_V and the columns of W_O of those heads. Masks
    that it has at the moment are not carried over.

    Args:
        model: is left as it is.
        kept: the heads to keep of each layer, counted from 0.

    Raises ValueError unless each layer keeps one head at least, and each head named is there and named once.
    """
    shapes = model.shapes
    if len(kept) != len(shapes) or not all(
        heads and len(set(heads)) == len(heads) and all(0 <= head < shape.heads for head in heads)
        for heads, shape in zip(kept, shapes)
    ):
        raise ValueError(
            "kept must name one or more heads of each layer, each once; (heads, head dimension) are "
            f"{[tuple(shape) for shape in shapes]}, got {[list(heads) for heads in kept]}"
        )
    weights = model.tensors()
    for index, (heads, shape) in enumerate(zip(kept, shapes)):
        rows = _rows(heads, shape.head_dim, model.read_in.device)
        for name in "qkv":
            weights[f"layers.{index}.{name}"] = weights[f"layers.{index}.{name}"][rows]
        weights[f"layers.{index}.o"] = weights[f"layers.{index}.o"][:, rows]
    return model.with_heads([(len(heads), shape.head_dim) for heads, shape in zip(kept, shapes)], weights)


def prune_to_dominant(model: Transformer, dominant: ArrayLike) -> Transformer:
    """All heads of the first layer, and of each later one only the dominant: `HeadImportance.dominant` (layers,)."""
    heads = np.asarray(dominant)
    if heads.shape != (len(model.shapes),):
        raise ValueError(f"dominant must name a head of each of {len(model.shapes)} layers, got {heads.tolist()}")
    return keep_heads(model, [range(model.shapes[0].heads), *([int(head)] for head in heads[1:])])


@dataclass(frozen=True, eq=False)
class Comparison(Record):
    """Excess risks of M models on the same prompts, for C context lengths and V noise variances.

    "Pooled" is the mean over the noise variances at the longest contexts. A mean over lengths too would be that of the
    shortest ones, where risks are large, and those of models that diverge on a prompt in a thousand larger still.
    """

    names: tuple[str, ...]  # M
    reference: str  # the model that the others are compared with
    context_lengths: NDArray[np.int64]  # (C,)
    noise_variance: NDArray[np.float64]  # (V,)
    risk: Estimate  # (M, C, V)
    ratio: Estimate  # (M, C, V): risk over the reference's, paired
    pooled_risk: Estimate  # (M,)
    pooled_ratio: Estimate  # (M,)

    @classmethod
    def of(cls, measured: Mapping[str, NDArray[np.float64]], reference: str, conditions: Conditions) -> Comparison:
        """From the errors (C, V, P) of each model on the same prompts."""
        names = tuple(measured)
        errors = np.stack(list(measured.values()))
        pooled = errors[:, np.argmax(conditions.context_lengths)].mean(1)
        base = names.index(reference)
        return cls(
            names=names,
            reference=reference,
            context_lengths=np.array(conditions.context_lengths, dtype=np.int64),
            noise_variance=np.array(conditions.noise_variance),
            risk=mean(errors),
            ratio=ratio(errors, errors[base]),
            pooled_risk=mean(pooled),
            pooled_ratio=ratio(pooled, pooled[base]),
        )


def compare(
    models: Mapping[str, Transformer],
    task: SparseRegression,
    *,
    reference: str | None = None,
    n_prompts: int = 2000,
    n_queries: int = 4,
    seed: int,
    context_lengths: Sequence[int] | None = None,
    noise_variance: Sequence[float] | None = None,
) -> Comparison:
    """Measure models on the same prompts, none of which `head_importance` sees with the same seed.

    Args:
        models: by name, all of one dtype.
        task: of the prompts.
        reference: name of the model that risks are divided by; the first if None.
        n_prompts: P ≥ 2 in each condition.
        n_queries: Q ≥ 1 of each prompt.
        seed: one that no model was trained with.
        context_lengths, noise_variance: the conditions; the task's if None.

    Raises TypeError or ValueError on bad arguments.
    """
    names = tuple(models)
    reference = next(iter(names), "") if reference is None else reference
    if reference not in models:
        raise ValueError(f"reference must be one of the models {', '.join(names)}, got {reference!r}")
    conditions = Conditions.of(task, context_lengths, noise_variance, n_prompts, n_queries, seed)
    return Comparison.of(
        {name: model_errors(model, conditions) for name, model in models.items()}, reference, conditions
    )


def model_errors(model: Transformer, conditions: Conditions) -> NDArray[np.float64]:
    """Those of a model on the prompts that models are compared on, (C, V, P)."""
    return conditions.gridded([errors(model, prompts) for prompts in conditions.draws(model, Purpose.COMPARISON)])


def _rows(heads: Sequence[int], head_dim: int, device: torch.device) -> Tensor:
    """The rows of W_Q that belong to heads."""
    starts = torch.tensor(list(heads), device=device) * head_dim
    return (starts[:, None] + torch.arange(head_dim, device=device)).flatten()
