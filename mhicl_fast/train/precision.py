"""How noisy a gradient estimate is, and how many prompts a requested relative error takes.

An estimate ĝ from N independent prompts has the mean g and an error that falls like 1/√N,

    ε(N) = √(E|ĝ − g|²) / |g| = ρ / √N,    ρ² = E|ĝ₁ − g|² / |g|² for a single prompt.

Both moments come from K gradients over equal batches of prompts: products of different batches have the mean |g|², so

    |g|² ≈ mean of b_k·b_l over k ≠ l,    E|ĝ₁ − g|² ≈ n (mean of |b_k|² − |g|²)    for batches of n prompts

are unbiased, and leaving out a batch at a time (the jackknife) gives the ratio's standard error. Only the K×K products
are needed, so any estimator can be measured. ρ is known once the measurement has many times ρ² prompts, which are fewer
than a single step takes at a useful error.

The error belongs to weights: ρ grows as |g| falls, without bound towards a limit, where no number of prompts keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tasks import MultiTaskRegression
from .config import RunConfig
from .objective import Objective
from .parameters import Combined, Factored, Parameters, pull_back
from .settings import ConfigError

BATCHES = 64  # K: ρ is known within 1/√(2K) even where one direction has all the noise
MULTIPLE = 16  # chosen numbers of prompts are multiples of this, the width of the widest vectors
MOST_PROMPTS = 1 << 20  # a step with more would take many seconds
_RESOLVED = 0.1  # a relative standard error of ρ that is good enough to choose by
_FIRST_PROMPTS = 1024
_ENOUGH = 16  # times ρ² prompts resolve ρ about that well
_FIRST_STEP = 1 << 31  # measurements draw the prompts of steps that no run reaches


class Noise(NamedTuple):
    """A gradient's noise: ρ with its standard error (both inf where |g| is not distinguishable from 0), |g| (then 0),
    and the absolute noise √(E|ĝ₁ − g|²) of one prompt, which is always known."""

    relative: float
    standard_error: float
    gradient_norm: float
    absolute: float

    def error(self, n_prompts: int) -> float:
        """The relative error of a gradient from n_prompts prompts."""
        return self.relative / math.sqrt(n_prompts)


class GradientNoise(NamedTuple):
    """The noise per prompt of the gradient in KQ, in OV, and in all trained tensors together; measured on n_prompts."""

    kq: Noise
    ov: Noise
    trained: Noise
    n_prompts: int


def gradient_noise(
    task: MultiTaskRegression,
    parameters: Parameters,
    *,
    estimator: str = "conditional",
    n_prompts: int = 4096,
    seed: int = 0,
    symmetric: bool = False,
) -> GradientNoise:
    """Measure an estimate's noise per prompt at `parameters` (`Combined(kq, ov)` for bare matrices).

    Takes n_prompts prompts, at least 2 in each of 64 batches, rounded up to full batches. They are those of steps 2³¹,
    2³¹ + 1, … of `seed`, which no run trains on. `symmetric` as in `Objective`.

    Raises ValueError for fewer than 128 prompts and for "asymptotic", which has no noise, and what `population_loss`
    raises.
    """
    if not isinstance(parameters, (Combined, Factored)):
        raise TypeError(
            "parameters must be Combined or Factored (for bare matrices Combined(kq, ov)), got "
            f"{type(parameters).__name__}"
        )
    if n_prompts < 2 * BATCHES:
        raise ValueError(f"n_prompts must be at least {2 * BATCHES}, got {n_prompts}")
    batches = _Batches(_objective(task, estimator, seed, symmetric), parameters)
    batches.draw(-(-n_prompts // BATCHES))
    return batches.noise()


class ChosenPrompts(NamedTuple):
    """A number of prompts per step and the measurement that it was chosen by."""

    n_prompts: int
    noise: GradientNoise


def prompts_for_error(
    task: MultiTaskRegression,
    parameters: Parameters,
    relative_error: float,
    *,
    estimator: str,
    seed: int = 0,
    symmetric: bool = False,
) -> ChosenPrompts:
    """The number of prompts with which the gradient in the trained tensors has `relative_error` at these weights,
    rounded up to a multiple of 16.

    Measures on more and more prompts until ρ is known within 10 %. Raises ValueError for an error that is not positive
    or takes more than 2²⁰ prompts, and what `gradient_noise` raises.
    """
    if not (math.isfinite(relative_error) and relative_error > 0):
        raise ValueError(f"the gradient's relative error must be a positive number, got {relative_error}")
    useful = _ENOUGH * MOST_PROMPTS * relative_error**2  # where these do not resolve ρ, a step takes too many
    batches = _Batches(_objective(task, estimator, seed, symmetric), parameters)
    batches.draw(_FIRST_PROMPTS // BATCHES)
    while True:
        noise = batches.noise()
        trained = noise.trained
        if trained.standard_error <= _RESOLVED * trained.relative < math.inf or noise.n_prompts >= useful:
            break
        batches.draw(batches.size)  # as many again
    needed = (trained.relative / relative_error) ** 2
    if needed > MOST_PROMPTS:
        raise ValueError(
            f"a relative gradient error of {relative_error} takes more prompts per step than {MOST_PROMPTS} with "
            f"estimator={estimator}: allow a larger error, or use one with less noise: estimator=subspace and, for "
            "starts that have the task's symmetries, symmetric=true"
        )
    return ChosenPrompts(max(1, math.ceil(needed / MULTIPLE)) * MULTIPLE, noise)


def choose_prompts(config: RunConfig) -> tuple[RunConfig, GradientNoise]:
    """The configuration with the n_prompts that its `gradient_error` takes at the start, and what was measured there.

    ConfigError where it asks for none or where that cannot be had.
    """
    if config.gradient_error is None:
        raise ConfigError("no gradient_error to choose n_prompts by, got gradient_error=none")
    task, start = config.task(), config.start_parameters()
    try:
        chosen, noise = prompts_for_error(
            task,
            start,
            config.gradient_error,
            estimator=config.estimator,
            seed=config.seed,
            symmetric=config.symmetric,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return replace(config, n_prompts=chosen), noise


def gradient_error_summary(config: RunConfig, end: Parameters) -> dict[str, Any] | None:
    """The relative error of the run's gradients as summary.json holds it, at the start and at the end; None without
    prompts. Each is measured on about as many prompts as the run's evaluation.

    `relative_error` is None where the gradient is too small to be told from 0 by that many prompts, as it may be at the
    end; `noise`, √(E|ĝ − g|²) of the run's own estimate, and `noise_over_start`, its ratio to |g| at the start, are
    comparable along the run where the relative error is not.
    """
    if config.estimator == "asymptotic":
        return None
    states: Mapping[str, Parameters] = {"start": config.start_parameters(), "end": end}
    noises = {
        when: gradient_noise(
            config.task(),
            parameters,
            estimator=config.estimator,
            n_prompts=max(config.eval_prompts, 2 * BATCHES),
            seed=config.seed,
            symmetric=config.symmetric,
        )
        for when, parameters in states.items()
    }
    at_start = noises["start"].trained.gradient_norm
    return {
        "requested": config.gradient_error,
        "n_prompts": config.n_prompts,
        **{f"measured_at_{when}": _measured(noise, config.n_prompts, at_start) for when, noise in noises.items()},
    }


def _measured(noise: GradientNoise, n_prompts: int, norm_at_start: float) -> dict[str, Any]:
    root, trained = math.sqrt(n_prompts), noise.trained
    absolute = trained.absolute / root
    return {
        "relative_error": _finite(trained.relative / root),
        "standard_error": _finite(trained.standard_error / root),
        "relative_error_kq": _finite(noise.kq.relative / root),
        "relative_error_ov": _finite(noise.ov.relative / root),
        "gradient_norm": trained.gradient_norm,
        "noise": absolute,
        "noise_over_start": absolute / norm_at_start if norm_at_start > 0 else None,
        "measured_prompts": noise.n_prompts,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _objective(task: MultiTaskRegression, estimator: str, seed: int, symmetric: bool) -> Objective:
    if estimator == "asymptotic":
        raise ValueError("the asymptotic loss takes no prompts: its gradient has no error to measure")
    return Objective(task, estimator, seed=seed, symmetric=symmetric)


class _Batches:
    """Gradients in KQ, OV and the trained tensors, the means over the prompts of K equal batches."""

    def __init__(self, objective: Objective, parameters: Parameters) -> None:
        self.size = 0  # prompts of each batch
        self._objective = objective
        self._parameters = parameters
        self._means: dict[str, Tensor] = {}
        self._step = _FIRST_STEP

    def draw(self, size: int) -> None:
        """`size` more prompts for every batch."""
        kq, ov = (matrix.detach() for matrix in self._parameters.to_combined())
        objective = replace(self._objective, n_prompts=size)
        for batch in range(BATCHES):
            _, grad_kq, grad_ov = objective(kq, ov, self._step)
            trained = torch.cat([x.flatten() for x in pull_back(self._parameters, grad_kq, grad_ov).values()])
            for name, gradient in (("kq", grad_kq), ("ov", grad_ov), ("trained", trained)):
                flat = gradient.flatten().double().cpu()
                if name not in self._means:
                    self._means[name] = torch.zeros(BATCHES, len(flat), dtype=torch.float64)
                mean = self._means[name][batch]
                mean += (flat - mean) * (size / (self.size + size))
            self._step += 1
        self.size += size

    def noise(self) -> GradientNoise:
        parts = {name: _noise(means, self.size) for name, means in self._means.items()}
        return GradientNoise(**parts, n_prompts=BATCHES * self.size)


def _noise(gradients: Tensor, size: int) -> Noise:
    """The noise that batch gradients (K, entries), each over `size` prompts, tell of."""
    products = gradients @ gradients.T
    count = len(products)
    total, squares = products.sum(), products.diagonal()
    norm2, noise2 = _moments(total, squares.sum(), count, size)
    # Without batch k both sums lose row and column k.
    left_norm2, left_noise2 = _moments(total - 2 * products.sum(1) + squares, squares.sum() - squares, count - 1, size)
    absolute = float(noise2.clamp(min=0).sqrt())
    if float(noise2) <= 0 < float(norm2):  # an estimate without noise, up to rounding
        return Noise(0.0, 0.0, float(norm2.sqrt()), 0.0)
    if not (float(norm2) > 0 and bool((left_norm2 > 0).all())):
        return Noise(math.inf, math.inf, 0.0, absolute)
    left = (left_noise2.clamp(min=0) / left_norm2).sqrt()
    spread = (count - 1) * (left - left.mean()).square().mean()
    return Noise(float((noise2 / norm2).sqrt()), float(spread.sqrt()), float(norm2.sqrt()), absolute)


def _moments(total: Tensor, squares: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """(|g|², E|ĝ₁ − g|²) from the sum of all products of `count` batches of `size` prompts and that of the squares."""
    norm2 = (total - squares) / (count * (count - 1))
    return norm2, size * (squares / count - norm2)
