"""The map from theory: the risks of the algorithm and of gradient descent from spectra, and how far they are from those
measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...train.wording import align
from ..estimators.algorithm import preprocess
from ..estimators.spectrum import PreprocessedSpectrum, RawSpectrum, RiskParts, gaussian_scales
from .config import ComparisonConfig
from .measuring import STEP_FACTORS, mean_and_error

_THEORY = 2  # step of the sampler


def theory_rows(config: ComparisonConfig, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """A row for each n, σ² and s: expected risk, in bias and variance, of the algorithm with c = 1 and of gradient
    descent with the best c after as many steps, with the standard error over draws.

    `algorithm_gaussian_risk` is the algorithm's with a Gaussian R̂ that is independent of the covariates too. `tick` is
    called after each n and s.
    """
    return [row for n in theory_lengths(config) for row in _rows_of_length(config, n, tick)]


def theory_lengths(config: ComparisonConfig) -> list[int]:
    """The numbers of examples of the map and of theory."""
    return [n for n in _union(config, "map_lengths", "theory_lengths") if n > 0]


def parts_of_theory(config: ComparisonConfig) -> int:
    """How often `theory_rows` ticks."""
    return len(theory_lengths(config)) * len(_sparsities(config))


def _sparsities(config: ComparisonConfig) -> list[int]:
    return _union(config, "map_sparsities", "theory_sparsities")


def _union(config: ComparisonConfig, *keys: str) -> list[int]:
    return sorted({value for key in keys for value in config.integers(key)})


def _rows_of_length(config: ComparisonConfig, n: int, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """For all sparsities, with covariates that are the same, and more and more of the same coefficients."""
    descents, rows = None, []
    for sparsity in _sparsities(config):
        task = config.task(context_length=n, sparsity=sparsity, noise_variance=1.0)
        sizes = {"n_queries": 0, "seed": config.seed, "step": _THEORY}
        prompts = task.sample(config.theory_draws, **sizes, dtype=torch.float64, device="cpu")
        sample = prompts.x.mT @ prompts.x / n
        if descents is None:  # for variances of 1, to both of which the risk is linear
            spectrum = RawSpectrum.of(sample, task.covariance)
            descents = spectrum.risk(
                n, signal_variance=1.0, noise_variance=1.0, steps=config.steps, c=STEP_FACTORS[:, None]
            )
        draws = _Draws(sample, prompts.coefficients, preprocess(prompts.x, prompts.y), task.covariance)
        for noise in config.numbers("map_noises"):
            parts = RiskParts(sparsity / config.dim_x * descents.bias, noise * descents.variance)
            best = int(parts.risk.mean(1).argmin())
            rows.append(
                {
                    "context_length": n,
                    "noise_variance": noise,
                    "sparsity": sparsity,
                    "descent_c": float(STEP_FACTORS[best]),
                    **_told("descent", RiskParts(parts.bias[best], parts.variance[best])),
                    **_told("algorithm", draws.risk(config, n, noise, draws.scales(noise))),
                    **_told("algorithm_gaussian", draws.risk(config, n, noise, draws.gaussian(config, n, noise))),
                }
            )
        tick()
    return rows


class _Draws(NamedTuple):
    """What the algorithm's risk is computed from."""

    sample: Tensor  # Σ̂ (N, d, d)
    coefficients: Tensor  # w (N, d)
    noisy: Tensor  # r̂ (N, d) with noise of variance 1
    covariance: Tensor | None

    def scales(self, noise: float) -> Tensor:
        """r̂ with noise of another variance: Σ̂w + σ Xᵀξ/n."""
        clean = (self.sample @ self.coefficients[..., None])[..., 0]
        return clean + math.sqrt(noise) * (self.noisy - clean)

    def gaussian(self, config: ComparisonConfig, n: int, noise: float) -> Tensor:
        """Draws from the Gaussian with the moments of r̂."""
        generator = torch.Generator().manual_seed(config.seed)
        return gaussian_scales(self.coefficients, n, noise, generator, self.covariance)

    def risk(self, config: ComparisonConfig, n: int, noise: float, scales: Tensor) -> RiskParts:
        spectrum = PreprocessedSpectrum.of(self.sample, scales, self.coefficients, self.covariance)
        return spectrum.risk(n, noise_variance=noise, steps=config.steps)


def _told(name: str, parts: RiskParts) -> dict[str, float]:
    risk, error = mean_and_error(parts.risk)
    bias, variance = float(parts.bias.mean()), float(parts.variance.mean())
    return {f"{name}_risk": risk, f"{name}_error": error, f"{name}_bias": bias, f"{name}_variance": variance}


def format_theory(
    config: ComparisonConfig, rows: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]
) -> str:
    """By noise variance, theory's risks over those measured in the cells of the map, the least, the median and the
    largest of these ratios, and how many of the verdicts on gradient descent theory shares."""
    known = {_cell(row): row for row in rows}
    cells = [(row, known[_cell(row)]) for row in measured if is_the_theorys(config, row) and _cell(row) in known]
    lines: list[tuple[str, ...]] = [
        ("theory over measured risk", "gradient descent", "algorithm", "with a Gaussian R̂", "same verdict")
    ]
    for noise in config.numbers("map_noises"):
        here = [(row, theory) for row, theory in cells if row["noise_variance"] == noise and row["sparsity"] > 0]
        if here:
            lines.append((f"σ² = {noise:g}", *_ratios(here), _agreement(here)))
    title = f"Theory of the map: {config.steps} steps; least, median and largest of the cells"
    return f"{title}\n\n{align(lines)}"


def is_the_theorys(config: ComparisonConfig, row: Mapping[str, Any]) -> bool:
    """Whether a row of the map is what theory is about: as many steps as the curves have, c = 1, gradient descent."""
    return (row["steps"], row["choice"], row["rival"]) == (config.steps, "c = 1", "descent")


def _cell(row: Mapping[str, Any]) -> tuple[int, float, int]:
    return row["context_length"], row["noise_variance"], row["sparsity"]


def _ratios(cells: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    """Of gradient descent, of the algorithm, and of the algorithm with a Gaussian R̂."""
    pairs = {
        "descent": [(theory["descent_risk"], row["risk"] - row["difference"]) for row, theory in cells],
        "algorithm": [(theory["algorithm_risk"], row["risk"]) for row, theory in cells],
        "gaussian": [(theory["algorithm_gaussian_risk"], row["risk"]) for row, theory in cells],
    }
    ratios = {name: [one / other for one, other in values if other > 0] for name, values in pairs.items()}
    return [f"{min(found):.2f} {median(found):.2f} {max(found):.2f}" if found else "" for found in ratios.values()]


def _agreement(cells: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Of the cells with a verdict."""
    decided = [(row["verdict"] > 0, theory["algorithm_risk"] < theory["descent_risk"]) for row, theory in cells
               if row["verdict"]]  # fmt: skip
    return f"{sum(one == other for one, other in decided)} of {len(decided)}"
