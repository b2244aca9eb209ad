"""The tables that the commands print: a finished run's results, an ODE's, and theory's values for a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import spectral
from ..tasks import MultiTaskRegression
from .config import RunConfig
from .loaded import LoadedRun
from .summary import plateau_and_escape, prediction
from .wording import (
    STATES,
    align,
    is_elsewhere,
    missing_states,
    number,
    ratio_label,
    remarks,
    several,
    shared_heads,
    state_label,
    state_source,
    uncertain,
)

__all__ = ["align", "ode_table", "results_table", "theory_table"]


def results_table(run: LoadedRun) -> str:
    """The results of a finished run as aligned lines for a person to read."""
    summary = run.summary
    if summary is None:
        raise ValueError(f"the run in {run.path} is not finished")
    phases = summary["phases"]
    rows = [
        ("final loss, last step's prompts", f"{summary['final_loss']:.4f}"),
        (
            "evaluated loss",
            f"{summary['eval_loss']:.4f} ± {summary['eval_loss_se']:.4f} (s.e., "
            f"{summary['eval_prompts']} fresh prompts)",
        ),
        *_ode_losses(summary),
        *_theory(summary["theory"]),
        ("warm-up ends", _moment(phases["warmup_end"])),
        ("emergence ends", _moment(phases["emergence_end"])),
        ("predicted allocation", _allocation(summary["predicted_allocation"])),
        ("observed allocation", _allocation(summary["allocation"])),
        *(
            (f"head {head} is shared by tasks", ", ".join(map(str, tasks)))
            for head, tasks in shared_heads(summary["allocation"]).items()
        ),
        *_plateau(summary),
        ("distance to the ODE", _distance(summary, run.config.order)),
        *_gradient_error(run.config, summary["gradient_error"]),
        ("time", f"{summary['wall_s']:.1f} s, {summary['steps_per_second']:.0f} steps/s"),
        ("figures", str(run.path / "figures")),
    ]
    return align(rows)


def _gradient_error(config: RunConfig, measured: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The gradients' relative error at the start and what they were estimated by; nothing without prompts."""
    if measured is None:
        return []
    start = measured["measured_at_start"]
    error = "too large to tell" if start["relative_error"] is None else f"{start['relative_error']:.3g}"
    symmetric = ", averaged over symmetries" if config.symmetric else ""
    used = f"{config.estimator}{symmetric}, {measured['n_prompts']} prompts per step"
    return [("gradient's relative error, start", f"{error} ({used})")]


def ode_table(config: RunConfig, order: str, trajectory: spectral.Trajectory) -> str:
    """What the ODE alone says about a configuration, as aligned lines for a person to read."""
    phases = trajectory.phases()
    allocation = spectral.observed_allocation(trajectory.task, trajectory.mu[-1], trajectory.omega[-1])
    theory = spectral.theory(trajectory.task, config.n_heads)
    return align(
        [
            ("preset", f"{config.preset}, seed {config.seed}, {order} order"),
            ("flow time", f"{trajectory.t[-1]:.4g}"),
            ("loss at the start", f"{trajectory.loss[0]:.4f}"),
            ("loss at the end", f"{trajectory.loss[-1]:.4f}"),
            ("warm-up ends", _time(phases.warmup_end)),
            ("emergence ends", _time(phases.emergence_end)),
            ("allocation", _allocation(allocation.tolist())),
            *_winners(config, trajectory, allocation.tolist()),
            *_plateau(plateau_and_escape(trajectory.t, trajectory.loss, theory, order)),
            *_theory(theory.to_dict()),
        ]
    )


def theory_table(task: MultiTaskRegression, n_heads: int) -> str:
    """What theory says about `task` for models with `n_heads` heads, as aligned lines for a person to read.

    Every state with its loss, its excess over a noisy target's noise, the loss and the values ω√dᵢ and μ of each task,
    and how it was found; ratios of excess losses; the reason for each state that is left out. Raises ValueError as
    `spectral.theory` does.
    """
    theory = spectral.theory(task, n_heads)
    known = theory.to_dict()
    header = ("state", "loss", "excess", "loss of each task", "ω√dᵢ", "μ", "source")
    states = [
        _state_row(task, state_label(name, known[name]), known[name]) for name in STATES if known.get(name) is not None
    ]
    ratios = [(ratio_label(name), number(value)) for name, value in known["ratios"].items()]
    parts = [
        align([("task", repr(task)), ("heads", str(n_heads))]),
        align([header, *states]) + "\nω and μ of the head that serves a task, which reads dᵢ covariates",
        align([("ratio of excess losses", ""), *ratios]) if ratios else "",
        align([("left out", ""), *missing_states(known)]) if missing_states(known) else "",
        align([("notes", ""), *remarks(known)]) if remarks(known) else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _state_row(task: MultiTaskRegression, label: str, state: Mapping[str, Any]) -> tuple[str, ...]:
    values = ("–", "–")
    if state.get("omega") is not None:
        scaled = task.support_sizes.sqrt() * task.support_sizes.new_tensor(state["omega"])
        values = (several(scaled.tolist()), several(state["mu"]))
    error = state.get("standard_error", 0.0)
    return (
        label,
        uncertain(state["loss"], error),
        uncertain(state["excess"], error),
        several(state["task_loss"]),
        *values,
        state_source(state),
    )


def _ode_losses(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{order}-order ODE's loss", f"{summary['ode'][order]['final_loss']:.4f}")
        for order in ("first", "leading")
        if summary["ode"][order] is not None
    ]


def _winners(config: RunConfig, trajectory: spectral.Trajectory, allocation: Sequence[int]) -> list[tuple[str, str]]:
    """For each task the head and the time at which half is learnt, as predicted from the start and as they came."""
    predicted = prediction(config)
    observed = spectral.half_learnt(trajectory.t, trajectory.shares()).tolist()
    if predicted["predicted_times"] is None:
        expected = [f"no prediction: {predicted['prediction_note']}"] * len(observed)
    else:
        pairs = zip(predicted["predicted_allocation"], predicted["predicted_times"])
        expected = [f"predicted {_head_and_time(head, math.inf if time is None else time)}" for head, time in pairs]
    return [
        (f"task {task}: half learnt", f"{expected[task]}; observed {_head_and_time(head, observed[task])}")
        for task, head in enumerate(allocation)
    ]


def _head_and_time(head: int, time: float) -> str:
    who = f"by head {head}" if head >= 0 else "by no single head"
    return f"{who} at {time:.4g}" if math.isfinite(time) else "never"


def _plateau(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if summary["plateau"] is not None:
        plateau = summary["plateau"]
        rows.append(("plateau", f"loss {plateau['loss']:.4f} from {plateau['start']:.4g} to {plateau['end']:.4g}"))
    if summary["escape"] is not None:
        escape = summary["escape"]
        rows.append(("escape from it", f"at {escape['time']:.4g}, to a loss of {escape['final_loss']:.4f}"))
    return rows


def _moment(moment: Mapping[str, Any] | None) -> str:
    return "not reached" if moment is None else f"flow time {moment['flow_time']:.4g} (step {moment['steps']})"


def _allocation(heads: Sequence[int] | None) -> str:
    """Heads of the tasks in order, – where no head has the task."""
    if heads is None:
        return "none: the start is not decomposable or does not follow the flow"
    return ", ".join(f"task {task} → " + (f"head {head}" if head >= 0 else "–") for task, head in enumerate(heads))


def _distance(summary: Mapping[str, Any], order: str) -> str:
    distance, ode = summary["ode_distance"], summary["ode"]
    if distance is None:
        reason = "; ".join(ode["notes"]) if ode[order] is None else "no half emergence to align at"
        return f"does not apply ({reason})"
    return (
        f"{100 * distance['loss_gap']:.1f} % of the loss range, after a shift in time of "
        f"{distance['time_shift']:+.3g} ({distance['order']} order)"
    )


def _theory(theory: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The loss of each state of theory for this task, or why there is none, unless it is another row's."""
    return [
        (f"theory: {state_label(name, theory[name])}", f"{theory[name]['loss']:.4f}")
        if theory[name]
        else (f"theory: {label}", f"none: {theory['notes'][name]}")
        for name, label in STATES.items()
        if name in theory and not is_elsewhere(theory, name)
    ]


def _time(time: float) -> str:
    return f"flow time {time:.4g}" if math.isfinite(time) else "not reached"
