"""Figures of a comparison, drawn from its results (`results.json`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from .curve_figure import curves_figure
from .map_figures import best_map_figure, map_figure, theory_figure

__all__ = ["FIGURES", "best_map_figure", "curves_figure", "map_figure", "theory_figure"]

FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "curves": curves_figure,
    "map": map_figure,
    "map-best": best_map_figure,
    "theory": theory_figure,
}
