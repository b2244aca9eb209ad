"""Figures of a run: one function per figure, each returning a matplotlib Figure, and `save_figures` for all of them.

Nothing here touches pyplot or leaves a trace in matplotlib's global settings.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..train.loaded import LoadedRun
from ..train.storage import reported, write_atomically
from .allocation import allocation_figure
from .examples import examples_figure
from .lengths import lengths_figure
from .loss import loss_figure
from .style import styled
from .values import values_figure
from .weights import weights_figure

__all__ = [
    "FIGURES",
    "allocation_figure",
    "examples_figure",
    "lengths_figure",
    "loss_figure",
    "save_figures",
    "save_png",
    "values_figure",
    "weights_figure",
]

FIGURES: dict[str, Callable[[LoadedRun], Figure]] = {
    "loss": loss_figure,
    "values": values_figure,
    "allocation": allocation_figure,
    "examples": examples_figure,
    "weights": weights_figure,
}


def save_figures(run: LoadedRun) -> list[Path]:
    """Draw every figure of a finished run into its folder's `figures` as PNG and return the files' paths.

    The same run gives the same bytes. Each file is replaced atomically. Raises TypeError for anything but a run,
    ValueError for a run that is not finished, StorageError where a file cannot be written.
    """
    if not isinstance(run, LoadedRun):
        raise TypeError(f"run must be a LoadedRun, as load_run gives, got {type(run).__name__}")
    return [save_png(draw(run), run.path / "figures" / f"{name}.png") for name, draw in FIGURES.items()]


def save_png(figure: Figure, path: Path) -> Path:
    """Draw a figure into a PNG file, whose folder is made where it is missing, and return the path.

    The same figure gives the same bytes. The file is replaced atomically. StorageError where it cannot be written.
    """
    with reported(path.parent):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, _png(figure))
    return path


@styled
def _png(figure: Figure) -> bytes:
    """The picture alone: neither times nor versions go into the file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
