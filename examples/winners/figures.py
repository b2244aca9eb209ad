"""The figures of the winners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from mhicl_fast.plots.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, plainly, styled

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
DASHED = (0, (4, 3))


@styled
def confusion_figure(counts: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Predicted against observed heads, (H, H + 1) counts for each kind of observation (row) and size (column)."""
    rows, columns = len(counts), len(next(iter(counts.values())))
    figure = Figure(figsize=(3.3 * columns, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for line, (observed, sizes) in zip(panels, counts.items()):
        for axes, (size, table) in zip(line, sizes.items()):
            heads = len(table)
            axes.imshow(table, cmap="Blues", vmin=0, vmax=max(1, 1.3 * table.max()), aspect="auto")
            for (predicted, seen), count in np.ndenumerate(table):
                axes.text(seen, predicted, str(count) if count else "·", ha="center", va="center", color=INK)
            axes.set_xticks(range(heads + 1), [*map(str, range(heads)), "none"])
            axes.set_yticks(range(heads))
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(f"{size}\n{np.trace(table)} of {table.sum()} right", fontsize=10)
            axes.set_xlabel(f"head in {observed}")
        line[0].set_ylabel("predicted head")
    return figure


@styled
def times_figure(times: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Observed over predicted time, as histograms: by formula (row) and size (column), for the ODE and for training.

    `times`: by formula, then by "size, observation", the ratios.
    """
    formulas = list(times)
    sizes = list(dict.fromkeys(name.rpartition("; ")[0] for name in times[formulas[0]]))
    figure = Figure(figsize=(3.3 * len(sizes), 2.3 * len(formulas) + 0.5), layout="constrained")
    panels = figure.subplots(len(formulas), len(sizes), squeeze=False, sharex=True)
    everything = np.concatenate([ratios for by_size in times.values() for ratios in by_size.values()])
    bins = np.linspace(*np.quantile(100 * (everything - 1), [0.002, 0.998]), 45)
    for line, formula in zip(panels, formulas):
        for axes, size in zip(line, sizes):
            for observed, colour in (("ODE", BLUE), ("training", ORANGE)):
                ratios = times[formula].get(f"{size}; {observed}", np.empty(0))
                if ratios.size:
                    axes.hist(100 * (ratios - 1), bins, color=colour, alpha=0.6, label=observed)
            axes.axvline(0, color=INK, lw=1, ls=DASHED)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            if formula == formulas[0]:
                axes.set_title(size, fontsize=10)
            if formula == formulas[-1]:
                axes.set_xlabel("observed later than predicted, %")
        line[0].set_ylabel(f"{formula}\nformula" if formula == "short" else f"{formula}\nform")
    panels[0][-1].legend()
    return figure


@styled
def margins_figure(shares: Mapping[str, Mapping[str, Sequence[tuple[int, int]]]], bins: Sequence[str]) -> Figure:
    """Share of right predictions by how far the second head is behind, with 95 % intervals: (right, all) by bin.

    `shares`: by kind of observation (panel), then by size (line).
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, (observed, sizes) in zip(panels, shares.items()):
        for k, ((size, counts), colour) in enumerate(zip(sizes.items(), COLOURS)):
            axes.plot([], [], "o", color=colour, ms=6, label=size)
            for x, (right, total) in enumerate(counts):
                if not total:
                    continue
                low, high = binomtest(right, total).proportion_ci(method="wilson")
                at = x + 0.26 * (k - 1)
                axes.plot([at, at], [100 * low, 100 * high], color=colour, lw=1.3)
                axes.plot(at, 100 * right / total, "o", color=colour, ms=6)
                axes.annotate(str(total), (at, 100 * low), (0, -4), textcoords="offset points", ha="center", va="top",
                              fontsize=7, color=colour)  # fmt: skip
        axes.axhline(100, color=FAINT, lw=1, ls=DASHED)
        axes.set_xticks(range(len(bins)), bins)
        axes.set(xlabel="second head behind by", title=f"Predicted against {observed}", xlim=(-0.5, len(bins) - 0.5))
        axes.yaxis.set_major_formatter(plainly)
    panels[0].set_ylabel("right, %")
    panels[0].legend(loc="lower right")
    return figure
