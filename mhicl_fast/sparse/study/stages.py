"""What the study consists of: runs, what needs them, and what needs that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from ...sweep.pool import Configuration
from ...train.folder import read_config
from ..config import SparseConfig
from .config import Study, run_name
from .folder import pruned_path, risk_file, run_path
from .measurement import Measurement
from .plan import (
    IMPORTANCE,
    begin_pruned,
    contents_of,
    correspondence_of,
    has_finished,
    importance_of,
    probes_of,
    pruning_of,
    risk_of,
)


class Item(Protocol):
    """A piece of work of the study."""

    @property
    def path(self) -> Path:
        """The folder that it is of."""
        ...

    @property
    def steps(self) -> int:
        """How far it goes."""
        ...

    def done(self) -> bool:
        """Whether there is nothing to do."""
        ...

    def prepare(self) -> Configuration:
        """What a worker is to do; FolderError where that needs what is not there."""
        ...


@dataclass(frozen=True)
class Training:
    """A run, from fresh weights or, with `full`, from what pruning has left of the run there."""

    path: Path
    config: SparseConfig
    full: Path | None = None

    @property
    def steps(self) -> int:
        return self.config.steps

    def done(self) -> bool:
        if not has_finished(self.path):
            return False
        found, _ = read_config(self.path, SparseConfig)
        return replace(found, start=None) == self.config

    def prepare(self) -> SparseConfig:
        return self.config if self.full is None else begin_pruned(self.full, self.path, self.config)


@dataclass(frozen=True)
class Measuring:
    """A measurement of finished runs."""

    path: Path
    measurement: Measurement
    steps: int = 1

    def done(self) -> bool:
        return self.measurement.is_done(self.path)

    def prepare(self) -> Measurement:
        return self.measurement


class Stage(NamedTuple):
    """Works, by name, that need nothing of each other, only what the stages before have done."""

    name: str
    works: Callable[[Study, Path], Mapping[str, Item]]


def _training(study: Study, path: Path) -> dict[str, Training]:
    return {name: Training(run_path(path, name), config) for name, config in study.runs().items()}


def _importance(study: Study, path: Path) -> dict[str, Item]:
    return {
        f"{name}, importance": Measuring(run_path(path, name), importance_of(study.config, config.evaluation_seed))
        for name, config in _finished(study, path).items()
    }


def _training_on(study: Study, path: Path) -> dict[str, Item]:
    runs = {run_path(path, name): config for name, config in _assessed(study, path).items()}
    works = [Training(pruned_path(run), study.tuning(config), run) for run, config in runs.items()]
    return {work.path.name: work for work in works}


def _measuring(study: Study, path: Path) -> dict[str, Item]:
    """The longest first."""
    found: dict[str, Item] = {}
    finished = _finished(study, path)
    ends = {study.heads[0], study.heads[-1]}
    for measurement in (probes_of, contents_of, correspondence_of):
        for name, config in finished.items():
            if config.n_heads in ends:
                made = measurement(study.config, config.evaluation_seed)
                found[f"{name}, {made.experiment}"] = Measuring(run_path(path, name), made)
    for seed in study.seeds:
        here = {name: config for name, config in finished.items() if config.seed == seed}
        for config in list(here.values())[:1]:
            models = {name: f"runs/{name}" for name in here}
            risk = risk_of(study.config, risk_file(seed), models, config.evaluation_seed)
            found[f"seed {seed}, risk"] = Measuring(path, risk)
    for name, config in _assessed(study, path).items():
        run = run_path(path, name)
        others = {"trained on": pruned_path(run), "single": run_path(path, run_name(1, config.seed))}
        pruning = pruning_of(study.config, run, others, config.evaluation_seed)
        found[f"{name}, pruning"] = Measuring(run, pruning)
    return found


STAGES = (
    Stage("training", _training),
    Stage("assessing heads", _importance),
    Stage("training after pruning", _training_on),
    Stage("measuring", _measuring),
)


def _finished(study: Study, path: Path) -> dict[str, SparseConfig]:
    return {name: work.config for name, work in _training(study, path).items() if work.done()}


def _assessed(study: Study, path: Path) -> dict[str, SparseConfig]:
    """Those with several heads whose importance was measured."""
    return {
        name: config
        for name, config in _finished(study, path).items()
        if config.n_heads > 1 and (run_path(path, name) / IMPORTANCE).exists()
    }
