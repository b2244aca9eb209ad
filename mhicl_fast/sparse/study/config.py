"""What the study depends on: which runs it trains, and how it measures them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ...train.settings import MAX_SEED, ConfigError, chosen, nearest, option
from ..config import SparseConfig
from ..number_lists import NumberLists, numbers
from ..presets import preset as run_preset
from .finetune import TUNING_SEEDS, pruned_run


@dataclass(frozen=True, kw_only=True)
class StudyConfig(NumberLists):
    """How many runs of which heads are trained, and on how many prompts each experiment measures them.

    Raises ConfigError for a value out of range.
    """

    study = "sparse-study"

    heads: str = numbers("numbers of heads, a model each", "1,2,4,8", low=1)
    seeds: int = option("models of each number of heads", 2, low=1)
    queries: int = option("queries of each prompt that models are measured on", 4, low=1)
    risk_lengths: str = numbers("numbers n of examples of the risk curves", "8,12,16,20,24,32,40", low=1)
    risk_prompts: int = option("prompts at each n and noise variance of the risk curves", 3000, low=2)
    tuning_prompts: int = option(
        "other prompts, on which the baselines' penalties and step sizes are chosen", 500, low=1
    )
    importance_prompts: int = option(
        "prompts at each noise variance to choose heads on, and as many to measure", 2000, low=2
    )
    pruning_lengths: str = numbers("numbers n of examples at which pruned models are measured", "10,20,40", low=1)
    pruning_prompts: int = option(
        "prompts at each n and noise variance that pruned models are measured on", 2000, low=2
    )
    tuning_share: float = option("steps of training after pruning, as a share of a run's", 0.1, above=0)
    probe_steps: str = numbers("numbers of gradient steps that probes make", "1,4,16")
    probe_fit: int = option("prompts that probes are fitted on", 2048, low=2)
    probe_prompts: int = option("prompts that probes are measured on", 4000, low=2)
    correspondence_prompts: int = option("prompts that the correspondence is measured on", 2000, low=2)


@dataclass(frozen=True)
class Study:
    """What is measured and how, and the settings that all runs share.

    Raises ConfigError for numbers of heads that are not in ascending order or cannot share the width, for seeds out of
    range, and for settings of runs that are the study's to choose.
    """

    config: StudyConfig
    run: SparseConfig

    def __post_init__(self) -> None:
        heads = self.heads
        if heads != sorted(set(heads)):
            raise ConfigError(f"heads must be in ascending order, each once, got {self.config.heads}")
        if self.run.seed + self.config.seeds + TUNING_SEEDS > MAX_SEED:
            raise ConfigError(
                f"seed must be at most {MAX_SEED - TUNING_SEEDS - self.config.seeds}, got {self.run.seed}"
            )
        for key in ("later_heads", "head_dim", "start"):
            if getattr(self.run, key) is not None:
                raise ConfigError(f"{key} cannot be set: the study chooses it")
        levels, probed = len(self.run.noise_variances()), self.config.probe_prompts
        if probed < 2 * levels:
            raise ConfigError(f"probe_prompts must be 2 for each of {levels} noise variances at least, got {probed}")
        for config in self.runs().values():
            config.resolved_device()  # one that cannot be had is an error before there is a folder

    @property
    def heads(self) -> list[int]:
        """The numbers of heads, ascending."""
        return self.config.integers("heads")

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return list(range(self.run.seed, self.run.seed + self.config.seeds))

    def runs(self) -> dict[str, SparseConfig]:
        """The runs by the name of their folder."""
        return {
            run_name(heads, seed): replace(self.run, n_heads=heads, seed=seed)
            for seed in self.seeds
            for heads in self.heads
        }

    def tuning(self, run: SparseConfig) -> SparseConfig:
        """The brief training that follows the pruning of a run, but for the weights from which it starts."""
        return pruned_run(run, max(round(self.config.tuning_share * run.steps), 1))

    def to_dict(self) -> dict[str, Any]:
        """Both configurations, as JSON can hold them."""
        return {"config": self.config.to_dict(), "run": self.run.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Study:
        """The inverse of `to_dict`; ConfigError for what is none."""
        return cls(StudyConfig.from_dict(values["config"]), SparseConfig.from_dict(values["run"]))


def run_name(heads: int, seed: int) -> str:
    """The name of a run's folder."""
    return f"heads-{heads}-seed-{seed}"


STUDIES = {
    config.preset: config
    for config in (
        StudyConfig(preset="demo"),
        StudyConfig(preset="small"),
        StudyConfig(
            preset="full",
            risk_prompts=20_000,
            tuning_prompts=2000,
            importance_prompts=10_000,
            pruning_prompts=10_000,
            probe_fit=8192,
            probe_prompts=20_000,
            correspondence_prompts=10_000,
        ),
    )
}


def study(preset: str = "demo", settings: Iterable[str] = ()) -> Study:
    """The study called `preset` with `key=value` texts applied, of StudyConfig's keys or of SparseConfig's.

    ConfigError with the nearest valid one for an unknown preset or key and for a bad value.
    """
    given = list(settings)
    measuring = {field.name for field in fields(StudyConfig)} - {"preset"}
    keys = measuring | {field.name for field in fields(SparseConfig)}
    for setting in given:
        key = setting.partition("=")[0]
        if key == "n_heads":
            raise ConfigError("n_heads cannot be set: heads has the numbers of heads of all models")
        if key not in keys:
            raise ConfigError(f"unknown key {key!r}; the nearest valid one is {nearest(key, sorted(keys))!r}")
    ours = [setting for setting in given if setting.partition("=")[0] in measuring]
    config = chosen(STUDIES, preset).with_settings(ours)
    return Study(config, run_preset(preset).with_settings(setting for setting in given if setting not in ours))
