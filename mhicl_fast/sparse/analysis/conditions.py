"""The context lengths and noise variances at which models are measured, and their errors there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...tasks.sparse import SparsePrompts, SparseRegression
from ..evaluate import squared_errors
from ..model import Transformer
from .draws import Purpose, draw


@dataclass(frozen=True)
class Conditions:
    """Every context length at every noise variance, on as many prompts each.

    Prompts of one index share coefficients, covariates and noise up to its scale, so that conditions are compared in
    pairs, and a mean over conditions has one value for each index.
    """

    task: SparseRegression
    context_lengths: tuple[int, ...]
    noise_variance: tuple[float, ...]
    n_prompts: int
    n_queries: int
    seed: int

    @classmethod
    def of(
        cls,
        task: SparseRegression,
        context_lengths: Sequence[int] | None,
        noise_variance: Sequence[float] | None,
        n_prompts: int,
        n_queries: int,
        seed: int,
    ) -> Conditions:
        """The task's own context length and noise variances where none are given; ValueError where there are none."""
        lengths = (task.context_length,) if context_lengths is None else tuple(context_lengths)
        levels = task.noise_variance if noise_variance is None else tuple(noise_variance)
        if not lengths or not levels:
            raise ValueError(f"context_lengths and noise_variance must not be empty, got {lengths} and {levels}")
        return cls(task, lengths, levels, n_prompts, n_queries, seed)

    def tasks(self) -> Iterator[SparseRegression]:
        """The task of each condition, noise variances within context lengths."""
        for length in self.context_lengths:
            for level in self.noise_variance:
                yield self.task.replace(context_length=length, noise_variance=level)

    def draws(self, model: Transformer, purpose: Purpose) -> Iterator[SparsePrompts]:
        """The prompts of each condition, in the order of `tasks`."""
        for task in self.tasks():
            yield draw(task, model, purpose, self.n_prompts, self.n_queries, self.seed)

    def gridded(self, values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """One array (…) for each of the draws as one (lengths, levels, …)."""
        return np.stack(values).reshape(len(self.context_lengths), len(self.noise_variance), *values[0].shape)


def errors(model: Transformer, prompts: SparsePrompts) -> NDArray[np.float64]:
    """(ŷ − w·x_q)² of each prompt, the mean over its queries: (N,)."""
    return np.asarray(squared_errors(model, prompts).cpu().numpy())
