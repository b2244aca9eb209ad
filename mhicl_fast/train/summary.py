"""The results of a finished run, from its metrics and weights alone, as what summary.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import spectral
from .config import RunConfig
from .objective import evaluate
from .odes import OdeStart, ode_start
from .parameters import Parameters


def summarise(
    config: RunConfig, metrics: Mapping[str, np.ndarray], parameters: Parameters, odes: Mapping[str, Any]
) -> dict[str, Any]:
    """All deterministic results: see the keys below. Times are flow times; `steps` beside them the first row's step at
    or after that time; None where something did not happen or does not apply."""
    task = config.task()
    kq, ov = parameters.to_combined()
    evaluation = evaluate(task, kq, ov, config.eval_prompts, seed=config.evaluation_seed)
    values = spectral.diagonal(kq.double(), ov.double(), task)
    allocation = spectral.observed_allocation(task, values.mu, values.omega)
    theory = spectral.theory(task, config.n_heads)
    return {
        "steps": config.steps,
        "prompts_seen": int(metrics["prompts_seen"][-1]),
        "flow_time": float(metrics["flow_time"][-1]),
        "final_loss": float(metrics["loss"][-1]),
        "eval_loss": evaluation.mean,
        "eval_loss_se": evaluation.standard_error,
        "eval_prompts": config.eval_prompts,
        "phases": _phases(metrics),
        "allocation": allocation.tolist(),
        **_prediction(config),
        "shared_heads": _shared_heads(allocation),
        **_plateau(metrics, theory),
        "theory": theory.to_dict(),
        "ode_distance": _distance(odes[config.order], config.order),
        "ode": dict(odes),
        "residual": float(metrics["residual"][-1]),
        "effective_examples": metrics["effective_examples"][-1].tolist(),
    }


def _distance(ode: Mapping[str, Any] | None, order: str) -> dict[str, Any] | None:
    if ode is None or ode["loss_gap"] is None:
        return None
    return {"loss_gap": ode["loss_gap"], "time_shift": ode["time_shift"], "order": order}


def _phases(metrics: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Ends of the phases, of the run as a whole and of each task, as {"flow_time", "steps"} or None."""
    phases = spectral.phases(metrics["flow_time"], metrics["share"])

    def moment(time: float) -> dict[str, Any] | None:
        if not np.isfinite(time):
            return None
        row = min(int(np.searchsorted(metrics["flow_time"], time)), len(metrics["step"]) - 1)
        return {"flow_time": float(time), "steps": int(metrics["step"][row])}

    return {
        "warmup_end": moment(phases.warmup_end),
        "emergence_end": moment(phases.emergence_end),
        "task_warmup_end": [moment(time) for time in phases.task_warmup_end],
        "task_emergence_end": [moment(time) for time in phases.task_emergence_end],
    }


def _prediction(config: RunConfig) -> dict[str, Any]:
    """Which head the start says takes each task and when; None where nothing is predicted."""
    start = ode_start(config)
    if not isinstance(start, OdeStart) or spectral.supports_overlap(config.task()):
        return {"predicted_allocation": None, "predicted_times": None}
    predicted = spectral.predict_allocation(
        config.task(), start.mu, start.omega, parameters=start.parameters, scale=start.scale
    )
    return {
        "predicted_allocation": predicted.head.tolist(),
        "predicted_times": [float(time) if np.isfinite(time) else None for time in predicted.time],
    }


def _shared_heads(allocation: np.ndarray) -> dict[str, list[int]]:
    """The heads that took several tasks, with those tasks."""
    taken = {int(head): np.flatnonzero(allocation == head).tolist() for head in allocation if head >= 0}
    return {str(head): tasks for head, tasks in sorted(taken.items()) if len(tasks) > 1}


def _plateau(metrics: Mapping[str, np.ndarray], theory: spectral.Theory) -> dict[str, Any]:
    """The stay in the state with one head per task and the fall below it, where seen."""
    state = theory.one_head_per_task_first_order or theory.one_head_per_task
    if state is None:
        return {"plateau": None, "escape": None}
    loss = _running_median(metrics["loss"], max(1, len(metrics["loss"]) // 100))
    plateau, escape = spectral.plateau_and_escape(metrics["flow_time"], loss, state.loss)
    return {"plateau": plateau and plateau._asdict(), "escape": escape and escape._asdict()}


def _running_median(values: np.ndarray, reach: int) -> np.ndarray:
    """The median over `reach` neighbours on either side, so that sampling noise does not end a plateau."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)
    return np.median(windows, axis=-1)
