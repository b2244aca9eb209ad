"""The table that a finished run ends with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..spectral import Trajectory, observed_allocation, theory
from .config import RunConfig
from .loaded import LoadedRun


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
            for head, tasks in summary["shared_heads"].items()
        ),
        *_plateau(summary),
        ("distance to the ODE", _distance(summary)),
        ("time", f"{summary['wall_s']:.1f} s, {summary['steps_per_second']:.0f} steps/s"),
        ("figures", str(run.path / "figures")),
    ]
    return align(rows)


def align(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns, the first padded to its widest entry."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _ode_losses(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{order}-order ODE's loss", f"{summary['ode'][order]['final_loss']:.4f}")
        for order in ("first", "leading")
        if summary["ode"][order] is not None
    ]


def _plateau(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if summary["plateau"] is not None:
        plateau = summary["plateau"]
        rows.append(("plateau", f"loss {plateau['loss']:.4f} from {plateau['start']:.4g} to {plateau['end']:.4g}"))
    if summary["escape"] is not None:
        rows.append(("escape from it", f"at {summary['escape']['time']:.4g}"))
    return rows


def _moment(moment: Mapping[str, Any] | None) -> str:
    return "not reached" if moment is None else f"flow time {moment['flow_time']:.4g} (step {moment['steps']})"


def _allocation(heads: Sequence[int] | None) -> str:
    """Heads of the tasks in order, – where no head has the task."""
    if heads is None:
        return "none: the start is not decomposable or does not follow the flow"
    return ", ".join(f"task {task} → " + (f"head {head}" if head >= 0 else "–") for task, head in enumerate(heads))


def _distance(summary: Mapping[str, Any]) -> str:
    distance = summary["ode_distance"]
    if distance is None:
        return f"does not apply ({'; '.join(summary['ode']['notes']) or 'no half emergence to align at'})"
    return (
        f"{100 * distance['loss_gap']:.1f} % of the loss range, after a shift in time of "
        f"{distance['time_shift']:+.3g} ({distance['order']} order)"
    )


def _theory(theory: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The loss of each state that theory knows for this task."""
    names = {
        "one_head_per_task_first_order": "theory: one head per task, first order",
        "one_head_per_task": "theory: one head per task, leading order",
        "single_head": "theory: single head",
        "best_multi_head": "theory: best multi-head (infimum)",
        "bayes": "theory: Bayes risk",
    }
    return [(label, f"{theory[name]['loss']:.4f}") for name, label in names.items() if theory[name] is not None]


def ode_table(config: RunConfig, order: str, trajectory: Trajectory) -> str:
    """What the ODE alone says about a configuration, as aligned lines for a person to read."""
    phases = trajectory.phases()
    allocation = observed_allocation(trajectory.task, trajectory.mu[-1], trajectory.omega[-1])
    return align(
        [
            ("preset", f"{config.preset}, seed {config.seed}, {order} order"),
            ("flow time", f"{trajectory.t[-1]:.4g}"),
            ("loss at the start", f"{trajectory.loss[0]:.4f}"),
            ("loss at the end", f"{trajectory.loss[-1]:.4f}"),
            ("warm-up ends", _time(phases.warmup_end)),
            ("emergence ends", _time(phases.emergence_end)),
            ("allocation", _allocation(allocation.tolist())),
            *_theory(theory(trajectory.task, config.n_heads).to_dict()),
        ]
    )


def _time(time: float) -> str:
    return f"flow time {time:.4g}" if math.isfinite(time) else "not reached"
