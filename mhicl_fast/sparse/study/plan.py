"""The measurements of the study, with the options that its configuration gives them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...train.folder import FolderError, is_complete
from ..analysis.assess import HeadImportance
from ..analysis.prune import prune_to_dominant
from ..config import SparseConfig
from ..training import begin
from .config import StudyConfig
from .measurement import Measurement, finished_run, read_result

IMPORTANCE, PRUNING, PROBES, CONTENTS, CORRESPONDENCE = (
    f"{name}.json" for name in ("importance", "pruning", "probes", "contents", "correspondence")
)
_ALONE = {"full": "."}  # the model of the run whose folder has the file


def importance_of(config: StudyConfig, seed: int) -> Measurement:
    """Of a run's heads."""
    options = {"n_prompts": config.importance_prompts, "n_queries": config.queries, "seed": seed}
    return Measurement("importance", IMPORTANCE, _ALONE, options)


def pruning_of(config: StudyConfig, full: Path, others: Mapping[str, Path], seed: int) -> Measurement:
    """Of a run against what pruning leaves of it and against `others`, "trained on" and "single", where they are
    finished. FolderError unless the run's heads are assessed."""
    finished = {name: os.path.relpath(run, full) for name, run in others.items() if has_finished(run)}
    options = {
        "dominant": dominant_heads(full),
        "n_prompts": config.pruning_prompts,
        "n_queries": config.queries,
        "context_lengths": _ascending(config, "pruning_lengths"),
        "seed": seed,
    }
    return Measurement("pruning", PRUNING, {**_ALONE, **finished}, options)


def probes_of(config: StudyConfig, seed: int) -> Measurement:
    """Of a run's hidden states."""
    options = {"steps": config.integers("probe_steps"), **_fits(config), "n_test": config.probe_prompts, "seed": seed}
    return Measurement("probes", PROBES, _ALONE, options)


def contents_of(config: StudyConfig, seed: int) -> Measurement:
    """Of what a run's hidden states hold of the preprocessed covariates."""
    options = {**_fits(config), "n_test": config.correspondence_prompts, "seed": seed}
    return Measurement("contents", CONTENTS, _ALONE, options)


def correspondence_of(config: StudyConfig, seed: int) -> Measurement:
    """Of a run's layers with gradient steps."""
    options = {"n_fit": config.probe_fit, "n_test": config.correspondence_prompts, "seed": seed}
    return Measurement("correspondence", CORRESPONDENCE, _ALONE, options)


def risk_of(config: StudyConfig, file: str, models: Mapping[str, str], seed: int) -> Measurement:
    """Of several models and of other estimators, on the same prompts."""
    options: dict[str, Any] = {
        "n_prompts": config.risk_prompts,
        "n_queries": config.queries,
        "tuning_prompts": config.tuning_prompts,
        "context_lengths": _ascending(config, "risk_lengths"),
        "seed": seed,
    }
    return Measurement("risk", file, models, options)


def begin_pruned(full: Path, path: Path, config: SparseConfig) -> SparseConfig:
    """Begin the run in `path` with what pruning leaves of the run in `full`, whose heads are assessed."""
    return begin(config, path, prune_to_dominant(finished_run(full).model, dominant_heads(full)))


def dominant_heads(run: Path) -> list[int]:
    """The dominant head of each layer of a run; FolderError where its heads are not assessed."""
    return [int(head) for head in read_result(run / IMPORTANCE, HeadImportance).dominant]


def has_finished(path: Path) -> bool:
    """Whether the run in a folder is complete; one whose files are damaged is not."""
    try:
        return is_complete(path)
    except FolderError:
        return False


def _ascending(config: StudyConfig, key: str) -> list[int]:
    """Numbers of examples, each once, the largest last: there claims are judged."""
    return sorted(set(config.integers(key)))


def _fits(config: StudyConfig) -> dict[str, int]:
    """The prompts that maps are fitted on, and a quarter as many to stop by."""
    return {"n_fit": config.probe_fit, "n_validation": max(config.probe_fit // 4, 2)}
