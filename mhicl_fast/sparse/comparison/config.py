"""What the comparison of the algorithm with other estimators depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...tasks import SparseRegression
from ...train.settings import MAX_SEED, ConfigError, option
from ...train.taskspec import parse_covariance
from ..number_lists import NumberLists, numbers


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig(NumberLists):
    """The configuration of a comparison. Raises ConfigError for a value out of range."""

    study = "sparse-algorithm"

    dim_x: int = option("covariates per example, d", 16, low=1)
    context_length: int = option("context examples per prompt, n", 40, low=0)
    covariance: str = option("of the covariates: identity, or ar:ρ (ρ^|j−k|)", "identity")
    # The table.
    sparsities: str = numbers("numbers s of coefficients that are not zero", "4,2")
    noise_variances: str = numbers("of the labels, σ²", "0,0.1,0.4,0.8", whole=False)
    step_counts: str = numbers("gradient steps", "10,20,50")
    n_prompts: int = option("prompts for each entry of the table", 8000, low=2)
    # The curves: one of these varies, the others are those that come first here.
    steps: int = option("gradient steps of the curves and the map", 10, low=0)
    sparsity: int = option("coefficients that are not zero, of the curves", 4, low=0)
    noise_variance: float = option("of the labels, of the curves", 0.4, low=0)
    curve_lengths: str = numbers("numbers n of examples", "2,4,8,12,16,20,30,40,60,80,120")
    curve_sparsities: str = numbers("numbers s of coefficients that are not zero", "1,2,3,4,6,8,12,16")
    curve_dims: str = numbers("numbers d of covariates", "4,6,8,12,16,24,32,48", low=1)
    curve_noises: str = numbers("of the labels, σ²", "0,0.05,0.1,0.2,0.4,0.8,1.6", whole=False)
    curve_steps: str = numbers("gradient steps", "1,2,3,5,10,20,50,100")
    curve_prompts: int = option("prompts for each point of a curve", 2000, low=2)
    # The map.
    map_lengths: str = numbers("numbers n of examples", "10,20,40,80")
    map_sparsities: str = numbers("numbers s of coefficients that are not zero", "1,2,3,4,6,8,12,16")
    map_noises: str = numbers("of the labels, σ²", "0,0.1,0.2,0.4,0.8,1.6", whole=False)
    map_prompts: int = option("prompts for each cell of the map", 1000, low=2)
    # The theory of the map.
    theory_lengths: str = numbers("numbers n of examples, besides those of the map", "8,14,28,56", low=1)
    theory_sparsities: str = numbers("numbers s, besides those of the map", "5,7,10,14")
    theory_draws: int = option("draws of covariates and coefficients for each n, s and σ²", 400, low=2)
    tuning_prompts: int = option("other prompts, on which penalties and step sizes are chosen", 1000, low=1)
    seed: int = option("seed of the prompts", 0, low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self._check_tasks()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def task(self, **changes: Any) -> SparseRegression:
        """The prompts of the curves with some of dim_x, sparsity, context_length and noise_variance changed."""
        dim_x = changes.get("dim_x", self.dim_x)
        values: dict[str, Any] = {
            "dim_x": dim_x,
            "sparsity": self.sparsity,
            "context_length": self.context_length,
            "noise_variance": self.noise_variance,
            "covariance": parse_covariance(self.covariance, dim_x),
        }
        return SparseRegression(**{**values, **changes})

    def _check_tasks(self) -> None:
        """Raise ValueError where a sparsity exceeds the covariates, or the covariance cannot be."""
        for key in ("sparsities", "curve_sparsities", "map_sparsities", "theory_sparsities"):
            for sparsity in self.integers(key):
                self.task(sparsity=sparsity)
        for dim_x in self.integers("curve_dims"):
            self.task(dim_x=dim_x)
