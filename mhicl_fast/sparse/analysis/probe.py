"""How well a few gradient-descent steps predict from a linear map of the hidden states after each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...tasks.sparse import SparsePrompts, SparseRegression
from ..model import Transformer
from .conditions import errors
from .draws import Purpose, draw
from .hidden import hidden_examples, preprocessed_examples, raw_examples, regression_starts
from .probe_fit import UPDATES, Examples, fit_map
from .record import Record
from .statistics import Estimate, mean

Source = Callable[[SparsePrompts], Examples]  # of the features of prompts
STEPS = (1, 2, 5, 10, 20)
_RANDOM_STARTS = 1


@dataclass(frozen=True, eq=False)
class Probes(Record):
    """Excess risks of t gradient-descent steps on features of S sources, for T numbers of steps, on test prompts.

    The sources are "x" and "r̂x", the covariates themselves and as the algorithm preprocesses them; "P x", a fitted map
    of the covariates; and "P h0", "P h1", …, fitted maps of the hidden states after each number of layers. h0 is the
    token (x, y) but for a linear map.
    """

    sources: tuple[str, ...]  # S
    steps: NDArray[np.int64]  # (T,)
    noise_variance: NDArray[np.float64]  # (V,): prompts take them in turn
    step_factor: float
    risk: Estimate  # (S, T), over all prompts
    risk_by_noise: Estimate  # (S, T, V)
    model_risk: Estimate  # (): what the model itself predicts, on the same prompts
    model_risk_by_noise: Estimate  # (V,)


def probe(
    model: Transformer,
    task: SparseRegression,
    *,
    steps: Sequence[int] = STEPS,
    n_features: int | None = None,
    step_factor: float = 1.0,
    n_fit: int = 4096,
    n_validation: int = 512,
    n_test: int = 4000,
    n_queries: int = 8,
    updates: int = UPDATES,
    seed: int,
) -> Probes:
    """Freeze the layers, and fit for each ℓ and t the map P of the states after ℓ layers with which t steps of gradient
    descent on (P h_i, y_i) predict best; then measure it on prompts of its own.

    The step is c/λ_max of the features' Gram matrix in each prompt. Fits start from regressions of r̂_j x_j, |r̂_j| x_j
    and x_j on the hidden states, from the map for the next greater number of steps, and at random: the objective has
    several minima. `probe_fit.fit_map` has the rest.

    Args:
        model: is left as it is.
        task: of the prompts.
        steps: numbers t ≥ 0 of steps.
        n_features: p, rows of P; the covariates' number d if None.
        step_factor: c in (0, 2).
        n_fit, n_validation, n_test: prompts to fit on, to stop by, and to measure on.
        n_queries: Q ≥ 1 of each prompt.
        updates: of the optimiser of each fit, at most.
        seed: one that the model wasn't trained with.

    Raises TypeError or ValueError on bad arguments.
    """
    if not steps or min(steps) < 0 or not 0 < step_factor < 2:
        raise ValueError(
            f"steps must be one or more of at least 0 and step_factor in (0, 2), got {steps}, {step_factor}"
        )
    if n_features is not None and n_features < 1:
        raise ValueError(f"n_features must be at least 1, got {n_features}")
    if n_test < 2 * len(task.noise_variance):
        raise ValueError(f"n_test must be 2 for each noise variance at least, got {n_test}")
    sizes = {Purpose.FITTING: n_fit, Purpose.VALIDATION: n_validation, Purpose.TESTING: n_test}
    fit, validation, test = (draw(task, model, purpose, size, n_queries, seed) for purpose, size in sizes.items())
    bench = _Bench(fit, validation, test, tuple(steps), n_features or task.dim_x, step_factor, updates, seed)
    measured = {
        "x": bench.as_they_are(raw_examples),
        "r̂x": bench.as_they_are(preprocessed_examples),
        "P x": bench.mapped(raw_examples),
    }
    for layer in range(len(model.shapes) + 1):
        measured[f"P h{layer}"] = bench.mapped(partial(hidden_examples, model, layer))
    found, own = np.stack(list(measured.values())), errors(model, bench.test)
    levels = len(task.noise_variance)
    return Probes(
        sources=tuple(measured),
        steps=np.array(steps, dtype=np.int64),
        noise_variance=np.array(task.noise_variance),
        step_factor=step_factor,
        risk=mean(found),
        risk_by_noise=_by_noise(found, levels),
        model_risk=mean(own),
        model_risk_by_noise=_by_noise(own, levels),
    )


def best_maps(
    source: Source,
    fit: SparsePrompts,
    validation: SparsePrompts,
    steps: Sequence[int],
    *,
    n_features: int,
    step_factor: float,
    updates: int = UPDATES,
    seed: int,
) -> dict[int, Tensor]:
    """The map P (p, W) of a source's features on which each number of descent steps predicts best."""
    examples, others = source(fit), source(validation)
    starts = regression_starts(examples, fit)
    maps: dict[int, Tensor] = {}
    for count in sorted(set(steps), reverse=True):
        maps[count] = fit_map(
            examples,
            others,
            n_features,
            count,
            step_factor,
            starts=[*starts, *list(maps.values())[-1:]],
            n_random_starts=_RANDOM_STARTS,
            updates=updates,
            seed=seed,
        )
    return maps


class _Bench(NamedTuple):
    """The prompts, and the descents to be measured on features of them."""

    fit: SparsePrompts
    validation: SparsePrompts
    test: SparsePrompts
    steps: tuple[int, ...]
    n_features: int
    step_factor: float
    updates: int
    seed: int

    def as_they_are(self, source: Source) -> NDArray[np.float64]:
        """Errors (T, P) on the test prompts, without a map."""
        return np.stack([self._errors(source(self.test), count) for count in self.steps])

    def mapped(self, source: Source) -> NDArray[np.float64]:
        """The same with the best map for each number of steps."""
        maps = best_maps(
            source,
            self.fit,
            self.validation,
            self.steps,
            n_features=self.n_features,
            step_factor=self.step_factor,
            updates=self.updates,
            seed=self.seed,
        )
        test = source(self.test)
        return np.stack([self._errors(test.mapped(maps[count]), count) for count in self.steps])

    def _errors(self, features: Examples, count: int) -> NDArray[np.float64]:
        with torch.no_grad():
            found = features.squared_errors(count, self.step_factor)
        return np.asarray(found.double().mean(1).cpu().numpy())


def _by_noise(values: NDArray[np.float64], levels: int) -> Estimate:
    """Means (…, V) over the prompts of each noise variance: those of an index modulo their number."""
    found = [mean(values[..., level::levels]) for level in range(levels)]
    return Estimate(np.stack([part.value for part in found], -1), np.stack([part.se for part in found], -1))
