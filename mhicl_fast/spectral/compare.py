"""How closely a run's loss follows the spectral ODE."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._inputs import as_float64
from .ode import Trajectory
from .phases import check_series, first_crossing, locate

_LEAST_FALL = 0.05  # of the highest loss


class OdeDistance(NamedTuple):
    """loss_gap: largest difference in loss after alignment, relative to the ODE's range of losses;
    time_shift: half emergence of the run minus that of the ODE, in flow time."""

    loss_gap: float
    time_shift: float


def ode_distance(t_run: Any, loss_run: Any, trajectory: Trajectory) -> OdeDistance | None:
    """Distance between a run's losses (T,) at flow times (T,) and an ODE trajectory, aligned at half emergence.

    Half emergence is where the loss first falls to the middle of the ODE's range, so the trajectory must be integrated
    past emergence. The gap is taken at the run's times that fall, once shifted, inside the trajectory. None where the
    ODE's loss falls by less than 5 % of its highest, which is no emergence, or the run never comes down to that level.
    """
    t_run, loss_run = check_series(t_run, as_float64("loss_run", loss_run), 1)
    highest, lowest = trajectory.loss.max(), trajectory.loss.min()
    half = (highest + lowest) / 2
    if highest - lowest < _LEAST_FALL * highest:
        return None
    if not (trajectory.loss[0] > half and loss_run[0] > half):  # the run starts late
        return None
    run_time = first_crossing(t_run, -loss_run[:, None], np.array([-half]))[0]
    if np.isnan(run_time):
        return None
    after = int(np.argmax(trajectory.loss <= half))
    ode_time = locate(lambda s: trajectory(s).loss, half, (trajectory.t[after - 1], trajectory.t[after]))
    shift = float(run_time - ode_time)
    shifted = t_run - shift
    inside = (shifted >= trajectory.t[0]) & (shifted <= trajectory.t[-1])
    gap = np.abs(loss_run[inside] - trajectory(shifted[inside]).loss).max()
    return OdeDistance(float(gap / (highest - lowest)), shift)
