"""The map of which heads each layer uses, and the share of the one that it uses most."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...plots.style import FAINT, INK, ORANGE, axes_at, put_heading, styled
from ...train.wording import count
from ..analysis.assess import HeadImportance
from ..analysis.statistics import Estimate
from .panels import (
    BARS,
    WIDTH,
    Models,
    count_colours,
    count_markers,
    grid,
    handle,
    heads_label,
    listed,
    put_legend,
    seeds_label,
)

_CELL, _LEFT, _GAP, _TOP, _BOTTOM, _ROW = 0.5, 1.15, 0.55, 1.05, 0.95, 0.5  # in inches
_COLOURS = "Blues"
_DARK = 0.55  # shares above have light numbers


@styled
def importance_figure(models: Models[HeadImportance], setting: str) -> Figure:
    """Layer × head maps of the shares of a layer's importance, a column for each head count and a row for each seed."""
    counts = sorted(models)
    rows = max(map(len, models.values()))
    layers = len(listed(models)[0].dominant)
    cell = min(_CELL, (WIDTH - _LEFT - _GAP * len(counts)) / sum(counts))
    height = cell * layers
    figure = Figure(figsize=(WIDTH, _BOTTOM + rows * (height + _ROW) - _ROW + _TOP))
    left = (WIDTH - cell * sum(counts) - _GAP * (len(counts) - 1) + _LEFT - 0.3) / 2
    for column, heads in enumerate(counts):
        place = left + cell * sum(counts[:column]) + _GAP * column
        for row, (seed, importance) in enumerate(models[heads].items()):
            bottom = _BOTTOM + (rows - 1 - row) * (height + _ROW)
            axes = axes_at(figure, place, bottom, cell * heads, height)
            _draw_map(axes, importance, numbers=cell > 0.3)
            if row == 0:
                axes.set_title(heads_label(heads))
            axes.set_yticks(range(layers), [f"layer {k + 1}" for k in range(layers)] if column == 0 else [])
            if column == 0:
                axes.set_ylabel(f"seed {seed}")
    _draw_key(figure)
    subtitle = f"{setting}; % of the layer's rises in risk by masking one head; framed: chosen on other prompts"
    put_heading(figure, importance_title(models), subtitle)
    return figure


def _draw_map(axes: Axes, importance: HeadImportance, *, numbers: bool) -> None:
    share = importance.pooled_share.value
    axes.imshow(share, cmap=_COLOURS, vmin=0, vmax=1, aspect="auto")
    for layer, head in np.ndindex(share.shape):
        value = share[layer, head]
        if np.isnan(value):
            place = (head - 0.5, layer - 0.5), 1, 1
            axes.add_patch(Rectangle(*place, facecolor="#EEEEEE", hatch="///", edgecolor=FAINT, lw=0))
        elif numbers:
            colour = "white" if value > _DARK else INK
            axes.text(head, layer, f"{100 * value:.0f}", color=colour, ha="center", va="center", fontsize=9)
    if share.shape[1] > 1:
        for layer, head in enumerate(importance.dominant):
            frame = (head - 0.46, layer - 0.46), 0.92, 0.92
            axes.add_patch(Rectangle(*frame, fill=False, edgecolor=ORANGE, lw=1.5))
    axes.set_xticks(range(share.shape[1]), [str(head) for head in range(share.shape[1])])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_key(figure: Figure) -> None:
    key = axes_at(figure, WIDTH / 2 - 1.6, 0.42, 3.2, 0.12)
    key.imshow(np.linspace(0, 1, 256)[None], cmap=matplotlib.colormaps[_COLOURS], aspect="auto", extent=(0, 100, 0, 1))
    key.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    key.set_yticks([])
    key.set_xlabel("share of the layer's importance; hatched: within noise", fontsize=10, labelpad=2)


def importance_title(models: Models[HeadImportance]) -> str:
    """The dominant heads' shares in the models with the most heads, a range over seeds for each layer."""
    most = max(models)
    parts = []
    for layer in range(len(next(iter(models[most].values())).dominant)):
        shares = [share[0] for each in models[most].values() if (share := each.dominant_share(layer)) is not None]
        parts.append(_range(shares))
    return f"Share of the dominant of {heads_label(most)}, layer by layer, in %: {', '.join(parts)}"


def _range(shares: Sequence[float]) -> str:
    if not shares:
        return "within noise"
    low, high = (round(100 * f(shares)) for f in (min, max))
    return str(low) if low == high else f"{low}–{high}"


@styled
def dominance_figure(models: Models[HeadImportance], setting: str) -> Figure:
    """The dominant head's share in each layer, for each head count above one, with the equal share 1/H."""
    several = {heads: seeds for heads, seeds in sorted(models.items()) if heads > 1}
    if not several:
        raise ValueError("no model has several heads, of which one could dominate")
    figure, ((axes,),) = grid(1, 1, height=3.3, titled=False)
    colours, markers = count_colours(several), count_markers(several)
    layers = len(listed(several)[0].dominant)
    spacing = 0.6 / len(several)
    for k, (heads, seeds) in enumerate(several.items()):
        at = np.arange(layers) + (k - (len(several) - 1) / 2) * spacing
        for place in at:
            axes.plot([place - 0.4 * spacing, place + 0.4 * spacing], [1 / heads] * 2, color=ORANGE, lw=1.6, zorder=2)
        for share in map(dominant_shares, seeds.values()):
            style = {"color": colours[heads], "ls": "", "marker": markers[heads], "ms": 6, "capsize": 3}
            axes.errorbar(at, share.value, 2 * share.se, **style)
    axes.set_ylim(0, 1.05)
    axes.set_xticks(range(layers), [f"layer {k + 1}" for k in range(layers)])
    axes.set_xlim(-0.5, layers - 0.5)
    axes.set_ylabel("share of the dominant head")
    handles = [handle(heads_label(h), colours[h], marker=markers[h], ls="", ms=6) for h in several]
    put_legend(figure, [*handles, handle("equal shares, 1/H", ORANGE)])
    points = seeds_label(several).partition(",")[0]
    put_heading(figure, _dominance_title(several), f"{setting}; {points}; {BARS}")
    return figure


def dominant_shares(importance: HeadImportance) -> Estimate:
    """The pooled shares (layers,) of the dominant heads."""
    return importance.pooled_share[np.arange(len(importance.dominant)), importance.dominant]


def _dominance_title(models: Models[HeadImportance]) -> str:
    """In how many models each later layer is more concentrated than the first."""
    shares = [dominant_shares(each).value for each in listed(models)]
    more = sum(bool((share[1:] > share[0]).all()) for share in shares)
    return f"Every later layer is dominated more than the first in {more} of {count(len(shares), 'model')}"
