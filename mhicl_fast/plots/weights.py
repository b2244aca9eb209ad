"""KQ and OV of every head at the end, as heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..train.loaded import LoadedRun
from .style import DIVERGING, FAINT, INK, axes_at, head_colours, put_title, results, styled

_COLUMNS = 4  # heads side by side
_PANEL, _GAP, _LEFT, _RIGHT, _BOTTOM, _TOP = 2.3, 0.35, 1.1, 1.25, 0.95, 1.0  # inches
_BELOW_KQ, _BELOW_OV = 0.65, 1.0


@styled
def weights_figure(run: LoadedRun) -> Figure:
    """KQ (H, D, D) and below it OV (H, I, D) of every head; lines part covariates x from labels y.

    Colours share one scale per kind, with white at 0. KQ's last I columns, which meet the zeros of the query token and
    have no effect, are hatched and left out of the scale. Raises ValueError for a run that is not finished.
    """
    results(run)
    kq, ov = (matrix.detach().double().numpy() for matrix in run.parameters.to_combined())
    n_heads, n_tasks = ov.shape[:2]
    columns = min(n_heads, _COLUMNS)
    groups = math.ceil(n_heads / columns)
    ov_height = float(np.clip(0.16 * n_tasks, 0.3, 1.2))
    group_height = _PANEL + _BELOW_KQ + ov_height + _BELOW_OV
    width = _LEFT + columns * (_PANEL + _GAP) + _RIGHT
    figure = Figure(figsize=(max(width, 7.6), _TOP + groups * group_height - _BELOW_OV + _BOTTOM))
    left = _LEFT + (figure.get_figwidth() - width) / 2
    limits = [float(np.abs(matrix).max()) or 1.0 for matrix in (kq[:, :, : run.config.dim_x], ov)]
    norms = [Normalize(-limit, limit) for limit in limits]
    for head, colour in enumerate(head_colours(n_heads)):
        group, column = divmod(head, columns)
        x = left + column * (_PANEL + _GAP)
        y = figure.get_figheight() - _TOP - group * group_height - _PANEL
        upper = axes_at(figure, x, y, _PANEL, _PANEL)
        lower = axes_at(figure, x, y - _BELOW_KQ - ov_height, _PANEL, ov_height)
        _draw_matrix(upper, kq[head], norms[0], run.config.dim_x)
        _draw_matrix(lower, ov[head], norms[1], run.config.dim_x)
        upper.set_title(f"head {head}", color=colour, fontweight="bold")
        upper.set_xlabel("query token", labelpad=1)
        lower.set_xlabel("context token", labelpad=1)
        if column == 0:
            upper.set_ylabel("KQ\ncontext\ntoken", rotation=0, ha="right", va="center", labelpad=8)
            lower.set_ylabel("OV\noutput", rotation=0, ha="right", va="center", labelpad=8)
    _draw_bars(figure, norms, left + columns * (_PANEL + _GAP))
    note = "hatched: without effect, as the query token has zeros in the place of labels"
    figure.text(0.5, 0.1 / figure.get_figheight(), note, fontsize=10, color=FAINT, ha="center")
    put_title(figure, run, _title(run))
    return figure


def _title(run: LoadedRun) -> str:
    residual = results(run)["residual"]
    if residual < 0.5:
        return f"KQ and OV of every head end diagonal but for {100 * residual:.2g} % of their norm"
    return "KQ and OV of every head end far from diagonal"


def _draw_matrix(axes: Axes, matrix: np.ndarray, norm: Normalize, dim_x: int) -> None:
    """KQ (D, D) or OV (I, D) as a heat map with lines between covariates and labels, which are named in the middle."""
    rows, columns = matrix.shape
    axes.imshow(matrix, cmap=DIVERGING, norm=norm, aspect="auto", interpolation="nearest")
    middles = [(dim_x - 1) / 2, (dim_x + columns - 1) / 2]
    axes.set_xticks(middles, ["x", "y"])
    axes.axvline(dim_x - 0.5, color=INK, lw=0.9)
    if rows == columns:
        axes.set_yticks(middles, ["x", "y"])
        axes.axhline(dim_x - 0.5, color=INK, lw=0.9)
        corner, width = (dim_x - 0.5, -0.5), columns - dim_x
        axes.add_patch(Rectangle(corner, width, rows, facecolor="#F2F2F2", edgecolor="#B5B5B5", hatch="////", lw=0))
    else:
        axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.tick_params(length=0)


def _draw_bars(figure: Figure, norms: Sequence[Normalize], left: float) -> None:
    """The two scales, one above the other, along the whole height."""
    height = figure.get_figheight() - _TOP - _BOTTOM
    for norm, name, bottom in zip(norms, ("KQ", "OV"), (_BOTTOM + 0.54 * height, _BOTTOM)):
        place = axes_at(figure, left, bottom, 0.16, 0.46 * height)
        figure.colorbar(ScalarMappable(norm, DIVERGING), cax=place).set_label(name)
