"""Results of the study of sparse linear regression with random numbers in them, and a study's folder made of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mhicl_fast.sparse import train
from mhicl_fast.sparse.analysis.assess import HeadImportance
from mhicl_fast.sparse.analysis.contents import CONTENTS, LayerContents
from mhicl_fast.sparse.analysis.correspondence import Agreement, Correspondence
from mhicl_fast.sparse.analysis.probe import Probes
from mhicl_fast.sparse.analysis.prune import Comparison
from mhicl_fast.sparse.analysis.record import Record
from mhicl_fast.sparse.analysis.statistics import Estimate
from mhicl_fast.sparse.study import load_study, study
from mhicl_fast.sparse.study.claims import write_summary
from mhicl_fast.sparse.study.experiments import ESTIMATORS, Pruning, name_of
from mhicl_fast.sparse.study.folder import StudyFolder, pruned_path, risk_file, run_path
from mhicl_fast.train.folder import write_json

LAYERS, LENGTHS, LEVELS = 3, np.array([5, 10, 20]), np.array([0.0, 0.5])
PRUNED = ("full", "trained on", "single", "pruned", "other", "without")
SETTINGS = [
    "dim_x=3", "sparsity=2", "context_length=20", "shortest_context=5", "n_layers=3", "width=8", "n_prompts=8",
    "n_queries=2", "steps=4", "warmup_steps=1", "record_every=2", "record_prompts=8", "eval_prompts=16",
    "noise_variance=0,0.5", "device=cpu", "heads=1,2",
]  # fmt: skip


def estimate(rng: np.random.Generator, *shape: int, low: float = 0.2, high: float = 1.0) -> Estimate:
    return Estimate(rng.uniform(low, high, shape), rng.uniform(0.01, 0.02, shape))


def importance(rng: np.random.Generator, heads: int, layers: int = LAYERS) -> HeadImportance:
    shares = rng.dirichlet(np.ones(heads), layers)
    share = Estimate(shares, np.full_like(shares, 0.01))
    each = Estimate(shares[None, None], share.se[None, None])
    return HeadImportance(
        np.array([20]), np.array([0.5]), shares.argmax(1), share, each, each, each, each, estimate(rng), share, share
    )


def comparison(rng: np.random.Generator, names: Sequence[str], reference: str | None = None) -> Comparison:
    risk, pooled = estimate(rng, len(names), len(LENGTHS), len(LEVELS)), estimate(rng, len(names))
    return Comparison(tuple(names), reference or names[0], LENGTHS, LEVELS, risk, risk, pooled, pooled)


def pruning(rng: np.random.Generator, names: Sequence[str]) -> Pruning:
    return Pruning(np.zeros(LAYERS, int), np.ones(LAYERS, int), {"full": comparison(rng, names)})


def probes(rng: np.random.Generator, layers: int = LAYERS) -> Probes:
    sources = ("x", "r̂x", "P x", *(f"P h{layer}" for layer in range(layers + 1)))
    steps = np.array([1, 2, 8])
    risk, by_noise = estimate(rng, len(sources), 3), estimate(rng, len(sources), 3, 2)
    return Probes(sources, steps, LEVELS, 1.0, risk, by_noise, estimate(rng), estimate(rng, 2))


def contents(rng: np.random.Generator, layers: int = LAYERS) -> LayerContents:
    each, pooled = estimate(rng, layers + 1, 3, 4), estimate(rng, layers + 1, 3)
    return LayerContents(CONTENTS, each, pooled, 5, each, pooled)


def correspondence(rng: np.random.Generator, layers: int = LAYERS) -> Correspondence:
    def agreement() -> Agreement:
        found = estimate(rng, layers + 1, 5)
        found.value[:, 0] = np.nan  # before the first step there are no coefficients
        return Agreement(found, found, found)

    return Correspondence(np.arange(5), 1.0, agreement(), agreement(), estimate(rng, layers + 1))


def made_study(path: Path) -> None:
    """The folder of a finished study of two seeds: models of a few steps, measurements that are random numbers."""
    plan = study("demo", SETTINGS)
    rng = np.random.default_rng(0)
    with StudyFolder.create(path, plan):
        for name, config in plan.runs().items():
            folder = run_path(path, name)
            train(config, folder)
            _write(folder, "importance", importance(rng, config.n_heads))
            _write(folder, "probes", probes(rng))
            _write(folder, "contents", contents(rng))
            _write(folder, "correspondence", correspondence(rng))
            if config.n_heads > 1:
                _write(folder, "pruning", pruning(rng, PRUNED))
                train(config.with_settings(["n_heads=1"]), pruned_path(folder))
        for seed in plan.seeds:
            models = [name for name, config in plan.runs().items() if config.seed == seed]
            risks = comparison(rng, (*models, *map(name_of, ESTIMATORS)), reference=models[-1])
            _write(path, "risk", risks, risk_file(seed))
        write_summary(load_study(path), {})


def _write(folder: Path, experiment: str, result: Record, file: str | None = None) -> None:
    write_json(folder / (file or f"{experiment}.json"), {"experiment": experiment, "result": result.to_dict()})
