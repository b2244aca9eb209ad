"""The excess risk while a transformer trains."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ...plots.style import put_heading, styled
from ...train.wording import number
from ..loaded import SparseRun
from .panels import (
    Models,
    count_colours,
    grid,
    handle,
    heads_label,
    put_legend,
    set_risk_axes,
)

_HEIGHT = 3.4


@styled
def training_figure(run: SparseRun, setting: str) -> Figure:
    """The risk at each noise variance over the steps of one run, with the evaluation at its end where there is one."""
    levels = run.config.noise_variances()
    figure, ((axes,),) = grid(1, 1, height=_HEIGHT, titled=False)
    steps, risk = run.metrics["step"], run.metrics["risk"]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(levels)))
    for k, colour in enumerate(colours):
        axes.plot(steps, risk[:, k], color=colour, lw=1.4, marker="." if len(steps) < 3 else None)
        if run.summary is not None:
            value, error = (run.summary[key][k] for key in ("excess_risk", "excess_risk_se"))
            style: dict[str, Any] = {
                "marker": "D",
                "mfc": "white",
                "ms": 5,
                "capsize": 3,
                "clip_on": False,
                "zorder": 5,
            }
            axes.errorbar(steps[-1], value, 2 * error, color=colour, **style)
    set_risk_axes([axes])
    axes.set_xlabel("step")
    axes.set_ylabel("excess risk")
    put_legend(figure, [handle(f"σ² = {level:g}", colour) for level, colour in zip(levels, colours)])
    prompts = f"{run.config.record_prompts} prompts for each σ², the same at each step"
    ending = "; diamonds: final evaluation ± 2 s.e." if run.summary is not None else ""
    first, last = (number(float(risk[k].mean()), 3) for k in (0, -1))
    title = f"Excess risk, mean over σ², goes from {first} to {last} in {steps[-1]} steps"
    put_heading(figure, title, f"{setting}; {prompts}{ending}")
    return figure


@styled
def trainings_figure(runs: Models[SparseRun], setting: str) -> Figure:
    """The risk of all runs of a study over the steps, as the mean over noise variances."""
    figure, ((axes,),) = grid(1, 1, height=_HEIGHT, titled=False)
    colours = count_colours(runs)
    for heads, seeds in runs.items():
        for run in seeds.values():
            axes.plot(run.metrics["step"], run.metrics["risk"].mean(1), color=colours[heads], lw=1.2)
    set_risk_axes([axes])
    axes.set_xlabel("step")
    axes.set_ylabel("excess risk, mean over σ²")
    put_legend(figure, [handle(heads_label(heads), colours[heads]) for heads in runs])
    ends = {h: float(np.mean([run.metrics["risk"][-1].mean() for run in seeds.values()])) for h, seeds in runs.items()}
    numbers = ", ".join(f"{number(end, 2)} with {heads}" for heads, end in sorted(ends.items()))
    several = f"{setting}; a line for each seed" if max(map(len, runs.values())) > 1 else setting
    put_heading(figure, f"Risk at the last record by number of heads: {numbers}", several)
    return figure
