"""The results of a finished run, from its metrics and weights alone, as what summary.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import spectral
from ..spectral._inputs import has_identity_covariance
from ..spectral.attention import effective_examples
from ..spectral.basis.decompose import Decomposition, decompose
from ..spectral.roles import head_roles
from ..tasks import MultiTaskRegression
from .config import RunConfig
from .objective import evaluate
from .odes import ode_start
from .parameters import Parameters
from .precision import gradient_error_summary

SUMMARY_KEYS = (
    *("steps", "prompts_seen", "flow_time", "final_loss", "eval_loss", "eval_loss_se", "eval_prompts"),
    *("phases", "allocation", "predicted_allocation", "predicted_times", "prediction_note", "head_roles"),
    *("plateau", "escape", "theory", "ode_distance", "ode", "residual"),
    *("effective_examples", "predicted_effective_examples", "gradient_error", "wall_s", "steps_per_second"),
)
FAR_FROM_DECOMPOSABLE = 0.1  # a residual above this: semi-singular values do not predict what such weights do


def summarise(
    config: RunConfig, metrics: Mapping[str, np.ndarray], parameters: Parameters, odes: Mapping[str, Any]
) -> dict[str, Any]:
    """All deterministic results: SUMMARY_KEYS but for the two of speed. Times are flow times; `steps` beside them the
    first row's step at or after that time; None where something did not happen or does not apply.

    Winners are read off the diagonals, as the metrics are; what heads do and attend to is read in the shared basis.
    """
    task = config.task()
    kq, ov = parameters.to_combined()
    evaluation = evaluate(task, kq, ov, config.eval_prompts, seed=config.evaluation_seed)
    diagonals = spectral.diagonal(kq.double(), ov.double(), task)
    values = decompose(kq, ov, task.dim_x, support=task.support, signal=task.signal)
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
        "allocation": spectral.observed_allocation(task, diagonals.mu, diagonals.omega).tolist(),
        **prediction(config),
        "head_roles": _head_roles(task, values),
        **_plateau(config, metrics, theory, values.residual),
        "theory": theory.to_dict(),
        "ode_distance": _distance(odes[config.order], config.order),
        "ode": dict(odes),
        "residual": float(metrics["residual"][-1]),
        "effective_examples": metrics["effective_examples"][-1].tolist(),
        "predicted_effective_examples": _predicted_examples(task, values),
        "gradient_error": gradient_error_summary(config, parameters),
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


def prediction(config: RunConfig) -> dict[str, Any]:
    """Which head the start says takes each task and when it has learnt half of it; None, and why, where nothing is
    predicted."""
    start = ode_start(config)
    if isinstance(start, str):
        reason: str | None = start
    elif spectral.supports_overlap(config.task()):
        reason = "tasks that share covariates drive each other from the start"
    else:
        reason = None
    if isinstance(start, str) or reason is not None:
        return {"predicted_allocation": None, "predicted_times": None, "prediction_note": reason}
    if start.parameters == "combined":
        reason = "no head wins a combined flow: all keep their shares"
    predicted = spectral.predict_allocation(
        config.task(), start.mu, start.omega, parameters=start.parameters, scale=start.scale
    )
    return {
        "predicted_allocation": predicted.head.tolist(),
        "predicted_times": [float(time) if np.isfinite(time) else None for time in predicted.time],
        "prediction_note": reason,
    }


def _head_roles(task: MultiTaskRegression, values: Decomposition) -> dict[str, Any] | None:
    """What the heads do: ± pairs, superposition, zero-sum outputs, unused heads, cost; None for covariates whose
    covariance is not the identity, for which it is not known."""
    if not has_identity_covariance(task):
        return None
    return head_roles(task, values.mu, values.omega).to_dict()


def _predicted_examples(task: MultiTaskRegression, values: Decomposition) -> list[float] | None:
    """The effective number of examples that each head should attend to; None as above."""
    if not has_identity_covariance(task):
        return None
    return effective_examples(task, values.omega).examples.tolist()


def _plateau(
    config: RunConfig, metrics: Mapping[str, np.ndarray], theory: spectral.Theory, residual: float
) -> dict[str, Any]:
    """`plateau_and_escape` of the run; none for Adam's runs that do not come near decomposable weights, in which a loss
    near that of a state is a coincidence."""
    if not config.follows_flow and residual > FAR_FROM_DECOMPOSABLE:
        return {"plateau": None, "escape": None}
    return plateau_and_escape(metrics["flow_time"], _running_median(metrics["loss"]), theory, "first")


def plateau_and_escape(times: np.ndarray, loss: np.ndarray, theory: spectral.Theory, order: str) -> dict[str, Any]:
    """The stay of a curve of losses (T,) at times (T,) in the state with one head per task, and the fall below it,
    where seen. The state is the one of this order in 1/L, or of leading order where the first does not apply."""
    first = theory.one_head_per_task_first_order if order == "first" else None
    state = first or theory.one_head_per_task
    if state is None:
        return {"plateau": None, "escape": None}
    plateau, escape = spectral.plateau_and_escape(times, loss, state.loss)
    return {"plateau": plateau and plateau._asdict(), "escape": escape and escape._asdict()}


def _running_median(values: np.ndarray) -> np.ndarray:
    """The median over a few neighbours (1 %) on either side, so that sampling noise does not end a plateau."""
    reach = max(1, len(values) // 100)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)
    return np.median(windows, axis=-1)
