"""Which head learnt which task: shares, the predicted and the observed winner, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .. import spectral
from ..train.loaded import LoadedRun
from .style import DIVERGING, FAINT, INK, axes_at, compared_ode, put_title, results, styled

_LEFT, _RIGHT, _BOTTOM, _TOP = 1.3, 1.3, 1.5, 1.05  # inches
DOMINANT = 2 / 3  # a winner with less than this part of a task shares it with other heads
_PREDICTED = "#E69F00"


@styled
def allocation_figure(run: LoadedRun) -> Figure:
    """Heat map of the final shares μ_i^h ω_i^h, head × task, with the observed and the predicted winner of each task
    marked and, below, when half of it was learnt: as predicted from the start, by the ODE, and in the run.

    Raises ValueError for a run that is not finished.
    """
    summary = results(run)
    shares = _final_shares(run)
    n_heads, n_tasks = shares.shape
    width, height = max(4.4, n_tasks * float(np.clip(9 / n_tasks, 0.8, 1.6))), max(1.6, 0.6 * n_heads)
    figure = Figure(figsize=(_LEFT + width + _RIGHT, _BOTTOM + height + _TOP))
    axes = axes_at(figure, _LEFT, _BOTTOM, width, height)
    norm = Normalize(*(max(1.0, float(np.abs(shares).max())) * np.array([-1, 1])))
    image = axes.imshow(shares, cmap=DIVERGING, norm=norm, aspect="auto")
    for (head, task), share in np.ndenumerate(shares):
        dark = abs(norm(share) - 0.5) > 0.3
        axes.text(task, head, f"{round(share, 2) + 0.0:.2f}", ha="center", va="center", color="white" if dark else INK)
    axes.set_xticks(range(n_tasks), [f"task {task}" for task in range(n_tasks)])
    axes.set_yticks(range(n_heads), [f"head {head}" for head in range(n_heads)])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(
        image,
        cax=axes_at(figure, _LEFT + width + 0.25, _BOTTOM, 0.16, height),
        ticks=MaxNLocator(4, steps=(1, 2, 5, 10)),
    )
    bar.set_label("share μ·ω")
    _mark_winners(axes, summary["allocation"], summary["predicted_allocation"])
    _write_times(axes, run)
    _draw_legend(figure, summary["allocation"], summary["predicted_allocation"])
    put_title(figure, run, headline(run) + agreement(summary["allocation"], summary["predicted_allocation"], n_heads))
    return figure


def headline(run: LoadedRun) -> str:
    """What became of the tasks, in a sentence without its full stop."""
    heads = results(run)["allocation"]
    n_tasks, taken = len(heads), [head for head in heads if head >= 0]
    if not taken:
        return "No head has taken " + ("the task" if n_tasks == 1 else "any of the tasks")
    if len(taken) < n_tasks:
        return _partly_taken(taken, n_tasks)
    if n_tasks == 1 == run.config.n_heads:
        return "The head learns the task"
    if not _dominated(run, heads):
        return "Heads share the task" if n_tasks == 1 else "Heads share the tasks, with one that leads in each"
    if n_tasks == 1:
        return "One head takes the task"
    if len(set(taken)) == n_tasks:
        return "Each task is taken by a head of its own"
    return "One head serves all tasks" if len(set(taken)) == 1 else "Some heads serve several tasks"


def _partly_taken(taken: Sequence[int], n_tasks: int) -> str:
    """For tasks of which some, by the heads `taken`, were taken and others not."""
    if len(taken) == 1:
        return f"1 of {n_tasks} tasks is taken by one head"
    if len(set(taken)) == len(taken):
        return f"{len(taken)} of {n_tasks} tasks are taken by one head each"
    if len(set(taken)) == 1:
        return f"{len(taken)} of {n_tasks} tasks are taken, all by one head"
    return f"{len(taken)} of {n_tasks} tasks are taken, some of them by the same head"


def half_learnt_times(run: LoadedRun) -> tuple[np.ndarray, np.ndarray | None]:
    """When half of each task was learnt, (I,) in flow time, inf for never: in the run, and in its ODE if it has one."""
    ode = compared_ode(run)
    observed = spectral.half_learnt(run.metrics["flow_time"], run.metrics["share"])
    if ode is None:
        return observed, None
    return observed, spectral.half_learnt(ode[1].t, (ode[1].mu * ode[1].omega).sum(1))


def _dominated(run: LoadedRun, heads: Sequence[int]) -> bool:
    """Whether in every task the winner's share is most of Σ_h |μ_i^h ω_i^h|."""
    shares = np.abs(_final_shares(run))
    winners = shares[list(heads), range(len(heads))]
    return bool((winners >= DOMINANT * shares.sum(0)).all())


def _final_shares(run: LoadedRun) -> np.ndarray:
    """μ_i^h ω_i^h at the end, (H, I)."""
    return run.metrics["mu"][-1] * run.metrics["omega"][-1]


def agreement(observed: Sequence[int], predicted: Sequence[int] | None, n_heads: int) -> str:
    """How the observed winners agree with the predicted ones, as an addition to a sentence; empty where nothing was."""
    pairs = [(o, p) for o, p in zip(observed, predicted or []) if p >= 0]
    if not pairs or max(observed) < 0 or n_heads == 1:
        return ""  # nothing was predicted or taken, or there was nothing to choose
    right = sum(o == p for o, p in pairs)
    return ", as predicted" if right == len(observed) else f" ({right} of {len(pairs)} as predicted)"


def _mark_winners(axes: Axes, observed: Sequence[int], predicted: Sequence[int] | None) -> None:
    for task, head in enumerate(observed):
        if head >= 0:
            axes.add_patch(Rectangle((task - 0.48, head - 0.46), 0.96, 0.92, fill=False, ec=INK, lw=2.2, clip_on=False))
    for task, head in enumerate(predicted or []):
        if head >= 0:
            axes.plot(task - 0.34, head, "*", color=_PREDICTED, mec=INK, mew=0.7, ms=13)


def _write_times(axes: Axes, run: LoadedRun) -> None:
    """Rows of flow times under the columns."""
    summary, (observed, solved) = results(run), half_learnt_times(run)
    predicted = summary["predicted_times"] or [None] * run.config.n_tasks
    rows: list[tuple[str, Sequence[Any]]] = [("predicted", predicted)]
    if solved is not None:
        rows.append(("ODE", solved.tolist()))
    rows.append(("run", observed.tolist()))

    def write(text: str, x: float, coordinates: Any, row: float, **options: Any) -> None:
        axes.annotate(
            text,
            (x, 0),
            (0, -16 - 16 * row),
            xycoords=coordinates,
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            **options,
        )

    write(
        "flow time at which half of the task is learnt:", 0.5, "axes fraction", 0, ha="center", fontsize=10, color=FAINT
    )
    for row, (name, times) in enumerate(rows, start=1):
        write(name, -0.02, "axes fraction", row, ha="right", fontsize=10, color=INK)
        for task, time in enumerate(times):
            write(_time(time), task, ("data", "axes fraction"), row, ha="center", fontsize=10, color=INK)


def _time(time: float | None) -> str:
    if time is None or not np.isfinite(time):
        return "–"
    return f"{time:#.3g}" if time < 100 else f"{time:.0f}"


def _draw_legend(figure: Figure, observed: Sequence[int], predicted: Sequence[int] | None) -> None:
    square = Line2D([], [], ls="", marker="s", mfc="none", mec=INK, mew=2, ms=11, label="observed winner")
    star = Line2D([], [], ls="", marker="*", color=_PREDICTED, mec=INK, mew=0.7, ms=13, label="predicted winner")
    handles = [
        mark for mark, heads in ((square, observed), (star, predicted or [])) if any(head >= 0 for head in heads)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 0.08 / figure.get_figheight()))
