"""The spectral ODEs from a run's own start, and how far the run is from them."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import spectral
from .config import RunConfig
from .folder import FolderError
from .parameters import resolve_scale
from .records import omega_by_task
from .storage import write_atomically

ORDERS = ("leading", "first")
_DECOMPOSABLE = 1e-6  # a residual below this is rounding


class OdeError(ValueError):
    """A configuration that has no ODE, or one that cannot be solved."""


class StoredTrajectory(NamedTuple):
    """An ODE's solution at the solver's steps: t (T,), mu, omega (T, H, I), loss (T,)."""

    t: np.ndarray
    mu: np.ndarray
    omega: np.ndarray
    loss: np.ndarray


class OdeStart(NamedTuple):
    """Semi-singular values of a run's start: mu (H, I), omega (H, d); and the flow that moves them."""

    mu: np.ndarray
    omega: np.ndarray
    parameters: str
    scale: float


def ode_start(config: RunConfig) -> OdeStart | str:
    """Where the ODE of a configuration starts, or the reason why there is none."""
    if not config.follows_flow:
        return "Adam does not follow the gradient flow"
    if config.covariance != "identity":
        return "the ODE is for covariates whose covariance is the identity"
    kq, ov = config.start_parameters().to_combined()
    values = spectral.diagonal(kq.double(), ov.double(), config.task())
    if values.residual > _DECOMPOSABLE:
        return "the starting weights are not decomposable"
    scale = resolve_scale(config.scale, config.task().dim)
    return OdeStart(values.mu, values.omega, config.parameters, scale)


def solve_ode(config: RunConfig, order: str, t_end: float | None = None) -> spectral.Trajectory:
    """The ODE from a configuration's start; `t_end` None is the flow time of all steps at full length.

    Raises OdeError where there is none, or where the solution does not exist.
    """
    start = ode_start(config)
    if isinstance(start, str):
        raise OdeError(f"no ODE: {start}")
    if t_end is None:
        t_end = config.steps * config.learning_rate / (1 - config.momentum)
    try:
        return spectral.solve(
            config.task(),
            start.mu,
            start.omega,
            parameters=start.parameters,
            scale=start.scale,
            order=order,
            t_end=t_end,
        )
    except (ValueError, RuntimeError) as error:  # as where the first-order average does not exist
        raise OdeError(f"{order} order: {error}") from error


def compare_with_odes(config: RunConfig, metrics: Mapping[str, np.ndarray], file: Path) -> dict[str, Any]:
    """Solve both orders over the run's flow time, store them in `file`, and measure the run's distance to each.

    Returns {"leading": …, "first": …, "notes": […]}: for each order {"final_loss", "loss_gap", "time_shift"}, or None
    where there is no solution; the notes say why, and what limits the accuracy.
    """
    compared: dict[str, Any] = dict.fromkeys(ORDERS)
    arrays: dict[str, np.ndarray] = {}
    notes = []
    for order in ORDERS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", spectral.ShortContextWarning)
            try:
                trajectory = solve_ode(config, order, float(metrics["flow_time"][-1]))
            except OdeError as error:
                notes.append(str(error))
                continue
        notes += [str(warning.message) for warning in caught]
        distance = spectral.ode_distance(metrics["flow_time"], metrics["loss"], trajectory)
        gaps = {"loss_gap": None, "time_shift": None} if distance is None else distance._asdict()
        compared[order] = {"final_loss": float(trajectory.loss[-1]), **gaps}
        stored = StoredTrajectory(
            trajectory.t, trajectory.mu, omega_by_task(config.task(), trajectory.omega), trajectory.loss
        )
        arrays |= {f"{order}.{name}": array for name, array in stored._asdict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(file, buffer.getvalue())
    return compared | {"notes": list(dict.fromkeys(notes))}


def read_trajectories(file: Path) -> dict[str, StoredTrajectory]:
    """The stored solutions by order; empty where the file is not there yet or no ODE applies.

    Raises FolderError where the file cannot be read.
    """
    if not file.exists():
        return {}
    try:
        with file.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as arrays:
            orders = [order for order in ORDERS if f"{order}.t" in arrays]
            return {
                order: StoredTrajectory(*(arrays[f"{order}.{name}"] for name in StoredTrajectory._fields))
                for order in orders
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FolderError(f"{file} is damaged: {error}") from error
