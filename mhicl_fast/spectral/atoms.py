"""Partitions of the covariates into classes on which ω is constant and stays constant under the flow.

Covariates that the same tasks read are exchangeable; such a class is an *atom* of the supports. With disjoint supports
the atoms are the supports themselves, and, where some covariates are read by no task, one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._inputs import Floats, as_float64

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression


@dataclass(frozen=True, eq=False)
class Partition:
    """Classes of equal columns of ω.

    reads (I, M): whether task i reads class m; count (M,): covariates in each class;
    representative (M,): one column of each class; class_of (columns,): the class of each column.
    """

    reads: NDArray[np.bool_]
    count: Floats
    representative: NDArray[np.intp]
    class_of: NDArray[np.intp]

    def compress(self, omega: Floats) -> Floats:
        """(..., columns) -> (..., M), reading each class at its representative."""
        return omega[..., self.representative]

    def expand(self, values: Floats) -> Floats:
        """(..., M) -> (..., columns)."""
        return values[..., self.class_of]


def atoms(support: Any) -> Partition:
    """Partition of the covariates by the set of tasks that read them, in order of first covariate.

    support: (I, d) boolean mask or a task. Covariates that no task reads form an atom of their own.
    """
    mask = np.asarray(getattr(support, "support", support), dtype=bool)
    if mask.ndim != 2:
        raise ValueError(f"support must be (tasks, covariates), got shape {list(mask.shape)}")
    return _merge_equal_columns(mask, mask.astype(np.float64))


def supports_overlap(task: MultiTaskRegression) -> bool:
    """Whether some covariate is read by two tasks."""
    return bool((np.asarray(task.support).sum(0) > 1).any())


def per_task_partition(task: MultiTaskRegression) -> Partition:
    """One class per task, for ω of shape (..., H, I); covariates that no task reads have ω = 0."""
    if supports_overlap(task):
        raise ValueError(
            f"omega must be (..., heads, {task.dim_x} covariates) where supports overlap: "
            "one value per task is defined for disjoint supports only"
        )
    tasks = np.arange(task.n_tasks)
    count = np.asarray(task.support).sum(1).astype(np.float64)
    return Partition(np.eye(task.n_tasks, dtype=bool), count, tasks, tasks)


def per_covariate_partition(task: MultiTaskRegression) -> Partition:
    """One class per covariate, for any ω of shape (..., H, d)."""
    covariates = np.arange(task.dim_x)
    return Partition(np.asarray(task.support), np.ones(task.dim_x), covariates, covariates)


def resolve_omega(task: MultiTaskRegression, omega: Any, name: str = "omega") -> tuple[Floats, Partition]:
    """ω as float64 and the partition its last axis stands for: covariates (d) or, with disjoint supports, tasks (I).

    Where d = I the last axis is read as covariates.
    """
    array = as_float64(name, omega)
    if array.ndim >= 2 and array.shape[-1] == task.dim_x:
        return array, per_covariate_partition(task)
    if array.ndim >= 2 and array.shape[-1] == task.n_tasks:
        return array, per_task_partition(task)
    raise ValueError(
        f"{name} must be (..., heads, {task.n_tasks} tasks) or (..., heads, {task.dim_x} covariates), "
        f"got shape {list(array.shape)}"
    )


def coarsest_partition(task: MultiTaskRegression, *starts: Floats) -> Partition:
    """The fewest classes that the flow from these starts, each (H, columns), keeps exact.

    Per-task starts keep one class per task. Per-covariate starts merge covariates that the same tasks read and that
    have the same value in every head of every start: they are exchangeable, so they stay equal.
    """
    _, partition = resolve_omega(task, starts[0])
    if starts[0].shape[-1] != task.dim_x:
        return partition
    return _merge_equal_columns(partition.reads, np.concatenate([partition.reads.astype(np.float64), *starts]))


def _merge_equal_columns(reads: NDArray[np.bool_], columns: Floats) -> Partition:
    _, first, inverse = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)
    rank = np.empty_like(by_appearance)
    rank[by_appearance] = np.arange(len(first))
    class_of = rank[inverse.reshape(-1)]
    representative = first[by_appearance]
    return Partition(reads[:, representative], np.bincount(class_of).astype(np.float64), representative, class_of)
