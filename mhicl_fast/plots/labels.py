"""Labels beside each other without overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def spread(centres: Sequence[float], sizes: Sequence[float], low: float, high: float) -> NDArray[np.float64]:
    """Where to put the centres of intervals of these sizes so that none overlap, all lie in [low, high], their order is
    that of `centres`, and Σ (moved by)² is least. Where they do not fit, they extend above `high`.

    With the gaps that neighbours need subtracted, positions must only not decrease: an isotonic regression.
    """
    wanted, size = np.asarray(centres, np.float64), np.asarray(sizes, np.float64)
    if not wanted.size:
        return wanted
    order = np.argsort(wanted, kind="stable")
    size = size[order]
    offsets = np.concatenate([[0.0], np.cumsum((size[1:] + size[:-1]) / 2)])
    free = _isotonic(wanted[order] - offsets)
    lowest = low + size[0] / 2
    highest = max(lowest, high - size[-1] / 2 - offsets[-1])
    placed = np.empty_like(wanted)
    placed[order] = np.clip(free, lowest, highest) + offsets
    return placed


def _isotonic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest non-decreasing sequence: max over starts ≤ k of min over ends ≥ k of the means between them."""
    n = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means = np.array(
        [[(sums[j + 1] - sums[i]) / (j + 1 - i) if j >= i else np.inf for j in range(n)] for i in range(n)]
    )
    return np.array([max(means[i, k:].min() for i in range(k + 1)) for k in range(n)])
