"""A finished run with all that was measured on it: what every section of a report draws from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import spectral
from ..plots.allocation import half_learnt_times
from ..plots.style import compared_ode
from ..tasks import MultiTaskRegression
from ..train.config import RunConfig
from ..train.loaded import LoadedRun
from ..train.odes import StoredTrajectory
from ..train.wording import number
from .analysis import Analysis

_FEW_ERRORS = 20


@dataclass(frozen=True, eq=False)
class Findings:
    """The run, its summary.json, and the analysis of its final weights."""

    run: LoadedRun
    summary: Mapping[str, Any]
    analysis: Analysis

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.run.config

    @cached_property
    def task(self) -> MultiTaskRegression:
        """The distribution of prompts."""
        return self.config.task()

    @property
    def target_noise(self) -> float:
        """The part of the loss that no predictor can avoid."""
        return self.task.target_noise

    @property
    def reference(self) -> tuple[str, Mapping[str, Any]] | None:
        """The name and the values of the state that theory expects the run to come to, None where it knows none."""
        theory = self.summary["theory"]
        names = ["one_head_per_task_first_order", "one_head_per_task", "best_shared_heads"]
        if self.config.n_heads == 1:
            names = ["single_head_first_order", "single_head"] if self.config.n_tasks > 1 else names
        return next(((name, theory[name]) for name in names if theory.get(name) is not None), None)

    @property
    def ode(self) -> tuple[str, StoredTrajectory] | None:
        """The order and the solution of the ODE that the run is compared with."""
        return compared_ode(self.run)

    @cached_property
    def half_learnt(self) -> np.ndarray:
        """When the run had learnt half of each task, (I,) in flow time, inf where it never did."""
        return half_learnt_times(self.run)[0]

    @cached_property
    def half_learnt_ode(self) -> np.ndarray | None:
        """The same of the ODE, None where there is none."""
        return half_learnt_times(self.run)[1]

    @cached_property
    def owners(self) -> list[tuple[int, int]]:
        """(task, head) for each task that a head took."""
        return [(task, head) for task, head in enumerate(self.summary["allocation"]) if head >= 0]

    @cached_property
    def owned_values(self) -> tuple[np.ndarray, np.ndarray]:
        """ω√d and μ at the end, (owners,), of each task's head, d the covariates that the task reads. Both have the
        sign that makes ω positive, as theory has it: with one head per task (−μ, −ω) does what (μ, ω) does."""
        tasks, heads = np.array(self.owners, dtype=np.intp).reshape(-1, 2).T
        omega, mu = (self.run.metrics[key][-1, heads, tasks] for key in ("omega", "mu"))
        sign = np.where(omega < 0, -1.0, 1.0)
        return sign * omega * np.sqrt(self.task.support_sizes.numpy()[tasks]), sign * mu

    @cached_property
    def sharing(self) -> spectral.PredictedState | None:
        """Theory's state in which the heads share the tasks as these did; None unless every task has one head, some
        head several, and theory knows it."""
        roles = self.analysis.roles
        if roles is None or not roles.shared or roles.expected_cost is None:
            return None
        groups = [np.flatnonzero(np.array(roles.winner) == head).tolist() for head in sorted(set(roles.winner))]
        return spectral.shared_heads_state(self.task, groups)

    def against(self, loss: float) -> str:
        """How the evaluated loss lies to another one, in words."""
        return difference(self.summary["eval_loss"], loss, self.summary["eval_loss_se"])


def difference(value: float, reference: float, error: float) -> str:
    """By how much a measured value with a standard error differs from a reference, in words; in standard errors too
    where these are few."""
    gap = value - reference
    if gap == 0:
        return "no different"
    where = "above it" if gap > 0 else "below it"
    if reference > 0 and gap / reference >= 2:
        return f"{number(value / reference, 3)} times as high"
    size = f"{number(100 * abs(gap) / reference, 2)} %" if reference > 0 else number(abs(gap), 3)
    errors = abs(gap) / error if error > 0 else np.inf
    return f"{size} {where}" + (f" ({number(errors, 2)} s.e.)" if errors < _FEW_ERRORS else "")
