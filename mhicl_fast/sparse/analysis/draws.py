"""Prompts of the experiments: those that choose something are never those that measure it."""

from __future__ import annotations

from enum import IntEnum

from ...tasks.sparse import SparsePrompts, SparseRegression
from ..model import Transformer


class Purpose(IntEnum):
    """What prompts are drawn for: each purpose has a step of the seed to itself."""

    SELECTION = 0  # of heads
    IMPORTANCE = 1  # measured of the heads selected
    COMPARISON = 2  # of models
    FITTING = 3  # of maps from hidden states
    VALIDATION = 4  # when to stop fitting
    TESTING = 5  # of what was fitted


def draw(
    task: SparseRegression, model: Transformer, purpose: Purpose, n_prompts: int, n_queries: int, seed: int
) -> SparsePrompts:
    """Prompts on the model's device and in its dtype; ValueError unless there are two prompts and a query at least,
    and the task is of the model's dimension."""
    if n_prompts < 2 or n_queries < 1:
        raise ValueError(f"there must be 2 prompts and 1 query at least, got n_prompts={n_prompts}, {n_queries=}")
    if task.dim_x != model.dim_x:
        raise ValueError(f"the task must have the model's dim_x = {model.dim_x}, got {task.dim_x}")
    weight = model.read_in
    return task.sample(
        n_prompts, n_queries=n_queries, seed=seed, step=int(purpose), device=weight.device, dtype=weight.dtype
    )
