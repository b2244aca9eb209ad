"""Loss at other context lengths than that of the training: measured, and as theory has it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from ..train.lengths import LengthCurve
from ..train.loaded import LoadedRun
from .style import FAINT, INK, ORDER_COLOURS, ORDER_NAMES, ROUND, axes_at, plainly, put_title, round_numbers, styled

_WIDTH, _HEIGHT = 10.4, 5.0
_PLACE = (0.9, 1.0, 8.6, 3.2)  # left, bottom, width, height of the axes, in inches
_LOG_LOSS = 4  # the loss is drawn logarithmically where it varies by this factor


@styled
def lengths_figure(run: LoadedRun, measured: LengthCurve, predicted: Mapping[str, ArrayLike]) -> Figure:
    """Loss of the trained weights against context length on a logarithmic axis: measured values ± 2 standard errors
    and, by order in 1/L, the losses (lengths,) predicted there; a line marks the length of the training."""
    lengths, loss, error = (np.asarray(values, np.float64) for values in measured)
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = axes_at(figure, *_PLACE)
    trained = run.config.context_length
    curves = {order: np.asarray(curve, np.float64) for order, curve in predicted.items()}
    for order, curve in curves.items():
        label = f"predicted, {ORDER_NAMES[order]}"
        axes.plot(lengths, curve, color=ORDER_COLOURS[order], lw=1.4, label=label, zorder=2)
    axes.errorbar(
        lengths, loss, 2 * error, fmt="D", color=INK, mfc="white", ms=6, capsize=4, label="measured, ± 2 s.e.", zorder=3
    )
    axes.axvline(trained, color=FAINT, lw=1, ls=(0, (5, 3)), zorder=1, label=f"trained at {trained}")
    _set_scales(axes, lengths, np.concatenate([loss - 2 * error, loss + 2 * error, *curves.values()]))
    axes.set_xlabel("context examples")
    axes.set_ylabel("loss")
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=4, bbox_to_anchor=(0.5, 0.05 / _HEIGHT))
    put_title(figure, run, _title(lengths, loss, error, trained))
    return figure


def _set_scales(axes: Axes, lengths: np.ndarray, values: np.ndarray) -> None:
    axes.set_xscale("log")
    low, high = lengths.min(), lengths.max()
    margin = max((high / low) ** 0.04, 1.05)
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(FixedLocator(lengths.tolist()))
    axes.xaxis.set_major_formatter(plainly)
    axes.xaxis.set_minor_locator(NullLocator())
    values = values[np.isfinite(values)]
    low, high = values.min(), values.max()
    if low > 0 and high / low > _LOG_LOSS:
        axes.set_yscale("log")
        span = high / low
        axes.set_ylim(low * span**-0.08, high * span**0.1)
        axes.yaxis.set_major_locator(FixedLocator(round_numbers(low * span**-0.08, high * span**0.1, 9)))
        axes.yaxis.set_major_formatter(plainly)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=ROUND))


def _title(lengths: np.ndarray, loss: np.ndarray, error: np.ndarray, trained: int) -> str:
    """What longer contexts change, where that is more than the measurements' errors."""
    at = int(np.argmin(np.abs(lengths - trained)))
    if at == len(lengths) - 1:
        return "Loss at other context lengths"
    change = loss[-1] - loss[at]
    if abs(change) < 2 * np.hypot(error[-1], error[at]):
        return "Longer contexts change the loss by less than its error"
    word = "lower" if change < 0 else "raise"
    ends = f"from {loss[at]:.3g} to {loss[-1]:.3g}"
    return f"Contexts {lengths[-1] / lengths[at]:.3g} times as long {word} the loss {ends}"
