"""Where the algorithm wins and where it loses: a verdict for each sparsity, noise variance and number of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...train.wording import align
from .config import ComparisonConfig
from .estimators import BEST_LASSO, RIDGE, Estimator, algorithm, descent
from .measuring import Measured, measure

RIVALS = {
    "descent": "gradient descent, as many steps, best c",
    "ridge": "ridge regression, Bayes penalty",
    "lasso": "Lasso, best penalty",
}
CHOICES = ("c = 1", "best c")  # of the algorithm
CLEAR = 2.0  # standard errors of the difference on the same prompts beyond which there is a verdict


def verdict(difference: float, error: float) -> int:
    """1 where the algorithm's risk is lower, −1 where it is higher, 0 where it is undecided, each cell by itself."""
    return int(difference < -CLEAR * error) - int(difference > CLEAR * error)


def map_rows(config: ComparisonConfig, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """A row for each cell (n, s, σ²), for the algorithm after each number of steps with c = 1 and the best c, and for
    each rival: the algorithm's risk, what it has more than the rival's on the same prompts, with its standard error,
    and the verdict. `tick` is called after each cell."""
    rows = []
    ours = [algorithm(count, choice) for count in map_steps(config) for choice in CHOICES]
    for n in config.integers("map_lengths"):
        for noise in config.numbers("map_noises"):
            for sparsity in config.integers("map_sparsities"):
                cell = {"context_length": n, "noise_variance": noise, "sparsity": sparsity}
                measured = measure(
                    config.task(**cell),
                    dict.fromkeys([*ours, *(rival for one in ours for rival in _rivals(one).values())]),
                    n_prompts=config.map_prompts,
                    tuning_prompts=config.tuning_prompts,
                    seed=config.seed,
                )
                rows += [{**cell, **row} for one in ours for row in _compared(measured, one)]
                tick()
    return rows


def map_steps(config: ComparisonConfig) -> list[int]:
    """The numbers of steps on the map: those of the curves, and the most of the table."""
    return sorted({config.steps, *config.integers("step_counts")[-1:]})


def _rivals(ours: Estimator) -> dict[str, Estimator]:
    assert ours.steps is not None
    return dict(zip(RIVALS, (descent(ours.steps), RIDGE, BEST_LASSO)))


def _compared(measured: Measured, ours: Estimator) -> list[dict[str, Any]]:
    rows = []
    for name, rival in _rivals(ours).items():
        mean, error = measured.difference(ours, rival)
        rows.append(
            {
                "steps": ours.steps,
                "choice": ours.choice,
                "rival": name,
                "risk": measured.mean(ours)[0],
                "difference": mean,
                "standard_error": error,
                "verdict": verdict(mean, error),
            }
        )
    return rows


def cells_of_map(config: ComparisonConfig) -> int:
    """How often `map_cells` ticks."""
    keys = ("map_lengths", "map_noises", "map_sparsities")
    lengths, noises, sparsities = (len(config.numbers(key)) for key in keys)
    return lengths * noises * sparsities


def format_map(config: ComparisonConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """In how many cells the algorithm wins, loses and neither can be told, for each n."""
    lengths = config.integers("map_lengths")
    lines: list[tuple[str, ...]] = [("the algorithm", "against", *(f"n = {n}" for n in lengths))]
    for count in map_steps(config):
        for choice in CHOICES:
            for rival, name in RIVALS.items():
                cells = [row for row in rows if (row["steps"], row["choice"], row["rival"]) == (count, choice, rival)]
                counts = [_counts([row["verdict"] for row in cells if row["context_length"] == n]) for n in lengths]
                lines.append((f"{count} steps, {choice}", name, *counts))
    return "Cells (s, σ²) of the map: won / lost / undecided\n\n" + align(lines)


def _counts(verdicts: Sequence[int]) -> str:
    return " / ".join(str(verdicts.count(value)) for value in (1, -1, 0))
