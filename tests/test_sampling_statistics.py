"""Whether the random numbers could be independent standard normals: many statistics of many draws, judged together.

The statistics are p-values of the hypothesis, made from sums over the draws, so memory does not limit their number.
They count as one family by Bonferroni: numbers that are as they should be fail with probability `FALSE_ALARMS` at most,
and once and for all, since the seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from numpy.typing import NDArray

from mhicl_fast import sampling

FALSE_ALARMS = 1e-4
AXES = ("seeds", "steps", "prompts", "streams")  # two of each
COUNT = 2**16  # elements of each of the 16 streams that are drawn at once
THRESHOLDS = (2.0, 3.0, 4.0, 5.0, 5.5)
BINS, CELLS = 4096, 64  # of the histogram, and of each side of the two-dimensional ones
GROUP = sampling.GROUP

Draw = Callable[[int, int, int, int, int, int], NDArray]  # (seed, step, prompt, stream, first element, count)


class Evidence:
    """Sums over draws, and what they say against independent standard normals."""

    def __init__(self) -> None:
        self.size = 0
        self.powers = np.zeros(4)
        self.tails = np.zeros((len(THRESHOLDS), 2), dtype=np.int64)
        self.histogram = np.zeros(BINS, dtype=np.int64)
        self.places = np.zeros((2, GROUP))  # of z and (z² − 1)/√2, whose variances are 1, by place in the group
        self.cells: dict[str, NDArray] = {}
        self.products: dict[str, NDArray] = {}  # of two z, and of two (z² − 1)/√2
        self.counts: dict[str, int] = {}  # of such products

    def add(self, z: NDArray) -> None:
        """Draws (seed, step, prompt, stream, element), whole groups of elements."""
        self.size += z.size
        power = np.ones_like(z)
        for index in range(4):
            power *= z
            self.powers[index] += power.sum()
        for index, threshold in enumerate(THRESHOLDS):
            self.tails[index] += (z < -threshold).sum(), (z > threshold).sum()
        u = scipy.special.ndtr(z)
        self.histogram += np.bincount((BINS * u).astype(np.int64).ravel(), minlength=BINS)

        cell = (CELLS * u).astype(np.int64)
        for axis, name in enumerate(AXES):
            self._add_pairs(name, z.take(0, axis), z.take(1, axis), cell.take(0, axis), cell.take(1, axis))
        words, cell_words = (array.reshape(-1, 2, 2, sampling.LANES) for array in (z, cell))  # (…, pair, part, lane)
        self._add_pairs("parts", words[:, :, 0], words[:, :, 1], cell_words[:, :, 0], cell_words[:, :, 1])
        self._add_pairs("lanes", z[..., ::2], z[..., 1::2], cell[..., ::2], cell[..., 1::2])
        groups = z.reshape(-1, z.shape[-1] // GROUP, GROUP)
        self._add_products("group", groups, groups)
        self._add_products("next group", groups[:, :-1], groups[:, 1:])
        self.places += groups.sum((0, 1)), (groups**2 - 1).sum((0, 1)) / np.sqrt(2)

    def _add_pairs(self, name: str, x: NDArray, y: NDArray, cell_x: NDArray, cell_y: NDArray) -> None:
        self.cells[name] = self.cells.get(name, 0) + np.bincount(
            (CELLS * cell_x + cell_y).ravel(), minlength=CELLS * CELLS
        )
        self._add_products(name, x.reshape(-1, 1), y.reshape(-1, 1))

    def _add_products(self, name: str, x: NDArray, y: NDArray) -> None:
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        products = np.stack([x.T @ y, (x**2 - 1).T @ (y**2 - 1) / 2])
        self.products[name] = self.products.get(name, 0) + products
        self.counts[name] = self.counts.get(name, 0) + len(x)

    def p_values(self) -> dict[str, NDArray]:
        """Every p-value, by what it is about."""
        found = {}
        moments = zip(self.powers / self.size, (0, 1, 0, 3), (1, 2, 15, 96), strict=True)
        found["moments"] = of_normal(
            np.array([(mean - expected) * np.sqrt(self.size / variance) for mean, expected, variance in moments])
        )
        found["places"] = of_normal(self.places / np.sqrt(self.size / GROUP))
        tail = scipy.stats.norm.sf(THRESHOLDS)[:, None]
        law = scipy.stats.binom(self.size, tail)
        found["tails"] = two_sided(law.cdf(self.tails), law.sf(self.tails - 1))
        distance = np.abs(np.cumsum(self.histogram) / self.size - np.arange(1, BINS + 1) / BINS).max()
        found["Kolmogorov-Smirnov"] = np.array(scipy.special.kolmogorov(distance * np.sqrt(self.size)))
        found["histogram"] = of_counts(self.histogram)
        for name, counts in self.cells.items():
            found[f"pairs of {name}"] = of_counts(counts)
        for name, products in self.products.items():
            scores = products / np.sqrt(self.counts[name])
            if name == "group":  # every pair of its elements once
                above, right = np.triu_indices(GROUP, 1)
                scores = scores[:, above, right]
            found[f"products of {name}"] = of_normal(scores)
            if scores[0].size > 1:
                squares = (scores**2).reshape(2, -1)
                found[f"all products of {name}"] = of_chi_square(squares.sum(1), squares.shape[1])
        return found


def two_sided(lower: NDArray, upper: NDArray) -> NDArray:
    return np.minimum(1, 2 * np.minimum(lower, upper))


def of_normal(score: NDArray) -> NDArray:
    return 2 * scipy.stats.norm.sf(np.abs(score))


def of_chi_square(statistic: NDArray, freedom: int) -> NDArray:
    law = scipy.stats.chi2(freedom)
    return two_sided(law.cdf(statistic), law.sf(statistic))


def of_counts(counts: NDArray) -> NDArray:
    """Chi-square of bins that are equally probable."""
    expected = counts.sum() / counts.size
    return of_chi_square(((counts - expected) ** 2).sum() / expected, counts.size - 1)


def compiled(seed: int, step: int, prompt: int, stream: int, first: int, count: int) -> NDArray:
    out = torch.empty(count)
    address = {"seed": seed, "step": step, "prompt": prompt, "stream": stream, "first_element": first}
    torch.ops.mhicl.philox_normals(out, **address)
    return out.double().numpy()


def evidence(draw: Draw, n_draws: int) -> dict[str, NDArray]:
    """The p-values of at least that many numbers of two seeds, steps, prompts and streams."""
    result = Evidence()
    z = np.empty((2, 2, 2, 2, COUNT))
    for first in range(0, -(-n_draws // z.size) * COUNT, COUNT):
        for address in np.ndindex(2, 2, 2, 2):
            z[address] = draw(*address, first, COUNT)
        result.add(z)
    return result.p_values()


def suspicious(p_values: dict[str, NDArray]) -> dict[str, float]:
    """The kinds whose smallest p-value is too small, where each kind has an equal share of all false alarms."""
    smallest = {name: float(values.min()) * values.size * len(p_values) for name, values in p_values.items()}
    return {name: bound for name, bound in smallest.items() if bound < FALSE_ALARMS}


@pytest.mark.slow
def test_a_hundred_million_normals() -> None:
    assert not suspicious(evidence(compiled, 10**8))


def test_a_million_normals() -> None:
    assert not suspicious(evidence(compiled, 10**6))


def defined(seed: int, step: int, prompt: int, stream: int, first: int, count: int) -> NDArray:
    return sampling.normals(seed, step, prompt, stream, count, first_element=first)


def without_step(seed: int, step: int, prompt: int, stream: int, first: int, count: int) -> NDArray:
    return compiled(seed, 0, prompt, stream, first, count)


def same_radius(seed: int, step: int, prompt: int, stream: int, first: int, count: int) -> NDArray:
    """Uncorrelated signs on dependent sizes."""
    z = compiled(seed, step, prompt, stream, first, count).reshape(-1, 2, sampling.LANES)
    z[:, 1] = np.sign(z[:, 1]) * np.abs(z[:, 0])
    return z.ravel()


def scaled(seed: int, step: int, prompt: int, stream: int, first: int, count: int) -> NDArray:
    return 1.01 * compiled(seed, step, prompt, stream, first, count)


def without_tails(seed: int, step: int, prompt: int, stream: int, first: int, count: int) -> NDArray:
    z = compiled(seed, step, prompt, stream, first, count)
    return np.where(np.abs(z) < 4, z, z / 2)


def repeated_groups(seed: int, step: int, prompt: int, stream: int, first: int, count: int) -> NDArray:
    return compiled(seed, step, prompt, stream, first // 2, count // 2).reshape(-1, GROUP).repeat(2, axis=0).ravel()


@pytest.mark.parametrize(
    ("draw", "what"),
    [
        (without_step, "pairs of steps"),
        (same_radius, "products of parts"),
        (scaled, "moments"),
        (without_tails, "tails"),
        (repeated_groups, "products of next group"),
    ],
)
def test_faults_are_found(draw: Draw, what: str) -> None:
    assert what in suspicious(evidence(draw, 10**6))


def test_too_few_rounds_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROUNDS", 2)
    found = suspicious(evidence(defined, 10**6))
    assert {"pairs of seeds", "products of group"} & found.keys(), found
