"""The table: every estimator's risk at each sparsity and noise variance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...train.wording import align, uncertain
from .config import ComparisonConfig
from .estimators import (
    BEST_LASSO,
    BEST_RIDGE,
    CONSTANT,
    LASSO,
    MINIMUM_NORM,
    RIDGE,
    SUPPORT,
    ZERO,
    Estimator,
    algorithm,
    descent,
)
from .measuring import measure

Row = dict[str, Any]
_NOTE = """The step size is c / λ_max of each prompt, or a constant η; the best ones and the best penalties were chosen
on other prompts. With a constant η a prompt's risk counts as that of predicting 0 where it is larger: it
diverges where λ_max is large. Without noise the usual penalty of the Lasso is 0. ∞: known to be infinite."""


def table_rows(config: ComparisonConfig, tick: Callable[[], None]) -> list[Row]:
    """A row for each sparsity, noise variance and estimator: the mean excess risk with its standard error over prompts,
    and the parameter used. A risk known to be infinite is None, and so is an infinite penalty. `tick` is called after
    each of the settings."""
    rows = []
    estimators = _estimators(config.integers("step_counts"))
    for sparsity in config.integers("sparsities"):
        for noise in config.numbers("noise_variances"):
            task = config.task(sparsity=sparsity, noise_variance=noise)
            sizes = {"n_prompts": config.n_prompts, "tuning_prompts": config.tuning_prompts}
            measured = measure(task, estimators, **sizes, seed=config.seed)
            for estimator in estimators:
                risk, error = measured.mean(estimator)
                rows.append(
                    {
                        "sparsity": sparsity,
                        "noise_variance": noise,
                        "method": estimator.method,
                        "choice": estimator.choice,
                        "steps": estimator.steps,
                        "parameter": finite_or_none(measured.parameters[estimator]),
                        "risk": finite_or_none(risk),
                        "standard_error": error if math.isfinite(risk) else None,
                    }
                )
            tick()
    return rows


def finite_or_none(value: float | None) -> float | None:
    """As JSON can hold it."""
    return value if value is not None and math.isfinite(value) else None


def settings_of_table(config: ComparisonConfig) -> int:
    """How often `table_rows` ticks."""
    return len(config.numbers("sparsities")) * len(config.numbers("noise_variances"))


def format_table(rows: Sequence[Mapping[str, Any]], dim_x: int, n: int) -> str:
    """One table for each sparsity, with a line for each estimator and a column for each noise variance."""
    tables = []
    for sparsity, levels, lines in tables_by_sparsity(rows):
        header = (f"s = {sparsity}", *(f"σ² = {level:g}" for level in levels))
        tables.append(align([header, *((name, *cells) for name, cells in lines.items())]))
    tables.append(_NOTE)
    return f"Excess risk at d = {dim_x}, n = {n}, ± standard error over prompts\n\n" + "\n\n".join(tables)


def tables_by_sparsity(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[float], dict[str, list[str]]]]:
    """For each sparsity the noise variances, and the risks at these as texts, by the estimators' names."""
    tables = []
    for sparsity in dict.fromkeys(row["sparsity"] for row in rows):
        here = [row for row in rows if row["sparsity"] == sparsity]
        levels = list(dict.fromkeys(row["noise_variance"] for row in here))
        lines: dict[str, list[str]] = {}
        for row in here:
            lines.setdefault(_name(Estimator(row["method"], row["choice"], row["steps"])), []).append(_cell(row))
        tables.append((sparsity, levels, lines))
    return tables


def _name(estimator: Estimator) -> str:
    return estimator.label if estimator.steps is None else f"{estimator.label}, {estimator.steps} steps"


def _cell(row: Mapping[str, Any]) -> str:
    if row["risk"] is None:
        return "∞"
    if row["risk"] < 5e-5:
        return "0"
    return uncertain(row["risk"], row["standard_error"])


def _estimators(steps: Sequence[int]) -> list[Estimator]:
    """In the order of the table."""
    return [
        *(algorithm(count, choice) for choice in ("c = 1", "best c", CONSTANT) for count in steps),
        *(descent(count, choice) for choice in ("c = 1", "best c") for count in steps),
        RIDGE,
        BEST_RIDGE,
        MINIMUM_NORM,
        LASSO,
        BEST_LASSO,
        SUPPORT,
        ZERO,
    ]
