"""The results of a sweep: a row for each run, and the means over the seeds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import spectral
from ..train.checkpoints import CheckpointError
from ..train.config import RunConfig
from ..train.folder import FolderError, read_json, write_json
from ..train.loaded import LoadedRun, load_run
from ..train.storage import write_atomically
from ..train.wording import align, number, uncertain
from .dimensions import SEED, dimensions, exponent, groups, lines, varied_keys
from .folder import has_finished, read_sweep, run_path

MEASURED = (
    *("eval_loss", "eval_loss_se", "excess"),
    *("limit", "limit_first_order", "one_head_per_task", "single_head", "best_multi_head", "bayes"),
    *("emergence_end", "half_learnt", "predicted_time", "ode_distance", "time_shift", "steps", "wall_s"),
)
_UNFINISHED = "not finished"
_LEARNT = 0.25  # of the share in the state with one head per task: a task with less is not learnt


class SweepError(RuntimeError):
    """Runs of a sweep have failed."""


@dataclass(frozen=True, eq=False)
class LoadedSweep:
    """A sweep as its folder has it, finished or not.

    configs: of the runs, by number. rows: the table, for each run a dict of `run` (its number), `status` ("finished",
    "failed" or "not finished"), the keys that vary, MEASURED, and `failure` (the reason, or None). What a run has not,
    is None:

    eval_loss, eval_loss_se; excess (the loss above the noise of a noisy target). Theory's losses: limit (of balanced
    flows: one head per task, the best shared heads where there are fewer heads, or the single head) and
    limit_first_order; one_head_per_task, single_head, best_multi_head at leading order; bayes. In flow time:
    emergence_end; half_learnt and predicted_time, when the last task is half learnt and should be. ode_distance (of the
    loss range) after time_shift.
    """

    path: Path
    configs: list[RunConfig]
    rows: list[dict[str, Any]]

    @property
    def failures(self) -> dict[int, str]:
        """Why runs failed, by number."""
        return {row["run"]: row["failure"] for row in self.rows if row["status"] == "failed"}

    def run(self, number: int) -> LoadedRun:
        """The run with a number; raises what `load_run` raises."""
        return load_run(run_path(self.path, number))

    def __repr__(self) -> str:
        finished = sum(row["status"] == "finished" for row in self.rows)
        return f"LoadedSweep({str(self.path)!r}, {finished} of {len(self.rows)} runs finished)"


def load_sweep(path: str | Path) -> LoadedSweep:
    """Read a sweep's folder, finished or not; FolderError where there is none or its files are damaged."""
    path = Path(path)
    configs, _ = read_sweep(path)
    summary = read_json(path / "summary.json") or {}
    failures = {int(run): reason for run, reason in summary.get("failed", {}).items()}
    varied = varied_keys(configs)
    rows = [read_row(path, run, config, varied, failures.get(run)) for run, config in enumerate(configs)]
    return LoadedSweep(path, configs, rows)


def read_row(path: Path, run: int, config: RunConfig, varied: Iterable[str], failure: str | None) -> dict[str, Any]:
    """The row of one run; `failure` is why it failed the last time, if it did and is not complete now.

    A complete run whose folder cannot be read has failed.
    """
    measured: dict[str, Any] = dict.fromkeys(MEASURED)
    status = "failed" if failure else _UNFINISHED
    if has_finished(run_path(path, run)):
        try:
            measured |= _measure(load_run(run_path(path, run)))
            status, failure = "finished", None
        except (FolderError, CheckpointError) as error:
            status, failure = "failed", str(error)
    settings = {key: getattr(config, key) for key in varied}
    return {"run": run, "status": status, **settings, **measured, "failure": failure}


def _measure(run: LoadedRun) -> dict[str, Any]:
    summary, config = run.summary, run.config
    if summary is None:
        raise FolderError(f"the run in {run.path} is complete, but has no summary")
    theory = summary["theory"]
    limit, first_order = _limit(theory, config)
    half = spectral.half_learnt(run.metrics["flow_time"], run.metrics["share"]).max()
    predicted = summary["predicted_times"]
    end, distance = summary["phases"]["emergence_end"], summary["ode_distance"]
    return {
        "eval_loss": summary["eval_loss"],
        "eval_loss_se": summary["eval_loss_se"],
        "excess": summary["eval_loss"] - float(config.task().target_noise),
        "limit": limit,
        "limit_first_order": first_order,
        **{name: _loss(theory, name) for name in ("one_head_per_task", "single_head", "best_multi_head", "bayes")},
        "emergence_end": end["flow_time"] if end is not None and _has_learnt(run) else None,
        "half_learnt": float(half) if np.isfinite(half) else None,
        "predicted_time": None if predicted is None or None in predicted else max(predicted),
        "ode_distance": None if distance is None else distance["loss_gap"],
        "time_shift": None if distance is None else distance["time_shift"],
        "steps": summary["steps"],
        "wall_s": summary["wall_s"],
    }


def _has_learnt(run: LoadedRun) -> bool:
    """Whether every task's share comes near that in the state with one head per task: in a run that stops while a task
    is being learnt any share looks final."""
    task = run.config.task()
    excess = np.e * task.support_sizes.numpy() * task.noise_factor.numpy() / task.context_length
    return bool((run.metrics["share"][-1] > _LEARNT / (1 + excess)).all())


def _limit(theory: Mapping[str, Any], config: RunConfig) -> tuple[float | None, float | None]:
    """Theory's limit of balanced flows at leading and at first order, as far as it is known."""
    if config.n_heads >= config.n_tasks:
        name = "one_head_per_task"
    else:
        name = "single_head" if config.n_heads == 1 else "best_shared_heads"
    return _loss(theory, name), _loss(theory, f"{name}_first_order")


def _loss(theory: Mapping[str, Any], name: str) -> float | None:
    state = theory.get(name)
    return None if state is None else float(state["loss"])


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace table.csv: all digits of numbers, nothing where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: repr(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    write_atomically(path / "table.csv", text.getvalue().encode())


def write_summary(sweep: LoadedSweep) -> None:
    """Replace summary.json: how many runs finished, what failed and why, the seconds that all runs took together, the
    means over the seeds (with standard error and number), and the excess loss's power of the context length."""
    finished = [row for row in sweep.rows if row["status"] == "finished"]
    keys = [dimension.key for dimension in dimensions(sweep.configs) if dimension.key != SEED]
    found = groups(sweep.rows, keys)
    content = {
        "runs": len(sweep.rows),
        "finished": len(finished),
        "failed": {f"{run:04d}": reason for run, reason in sweep.failures.items()},
        "varied": varied_keys(sweep.configs),
        "wall_s": sum(row["wall_s"] for row in finished),
        "means": [
            {**group.values, "seeds": len(group.rows)}
            | {column: _mean(group.mean(column)) for column in ("eval_loss", "excess", "emergence_end", "half_learnt")}
            for group in found
        ],
        "exponents_of_context_length": [
            {**common, "exponent": exponent([g.values["context_length"] for g in line], [_excess(g) for g in line])}
            for common, line in (lines(found, "context_length") if "context_length" in keys else ())
        ],
    }
    write_json(sweep.path / "summary.json", content)


def _mean(value: tuple[float, float] | None) -> dict[str, float | None] | None:
    if value is None:
        return None
    return {"mean": value[0], "standard_error": None if math.isnan(value[1]) else value[1]}


def _excess(group: Any) -> float:
    return float(np.mean(group.known("excess")))


def sweep_table(sweep: LoadedSweep) -> str:
    """The results as aligned lines for a person to read."""
    varied = varied_keys(sweep.configs)
    header = ["run", *varied, "evaluated loss", "limit", "single head", "best multi-head", "Bayes", "half learnt",
              "predicted", "emergence ends", "ODE gap", "seconds", ""]  # fmt: skip
    notes = [
        "limit: of balanced flows, at first order where known; single head, best multi-head: at leading order",
        "half learnt, predicted: flow time at which the last task is half learnt, and as its start predicts it",
    ]
    early = sum(row["status"] == "finished" and row["emergence_end"] is None for row in sweep.rows)
    if early:
        notes.append(f"{early} of {len(sweep.rows)} runs ended before every task was learnt: more steps may help")
    return "\n".join([align([header, *(_cells(row, varied) for row in sweep.rows)]), "", *notes])


def _cells(row: Mapping[str, Any], varied: Iterable[str]) -> list[str]:
    def cell(column: str, digits: int = 4) -> str:
        return "–" if row[column] is None else number(row[column], digits)

    settings = [_setting(row[key]) for key in varied]
    loss = "–" if row["eval_loss"] is None else uncertain(row["eval_loss"], row["eval_loss_se"])
    limit = cell("limit" if row["limit_first_order"] is None else "limit_first_order")
    theory = [limit, *map(cell, ("single_head", "best_multi_head", "bayes"))]
    times = [cell(column) for column in ("half_learnt", "predicted_time", "emergence_end")]
    gap = "–" if row["ode_distance"] is None else f"{100 * row['ode_distance']:.1f} %"
    remarks = {"finished": "", "failed": f"failed: {row['failure']}"}
    return [
        f"{row['run']:04d}",
        *settings,
        loss,
        *theory,
        *times,
        gap,
        cell("wall_s", 3),
        remarks.get(row["status"], row["status"]),
    ]


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
