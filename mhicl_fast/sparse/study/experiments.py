"""The experiments of the study on models of finished runs, each with the kind of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...tasks import SparseRegression
from ..analysis.assess import HeadImportance, head_importance
from ..analysis.conditions import Conditions
from ..analysis.contents import LayerContents, layer_contents
from ..analysis.correspondence import Correspondence, correspondence
from ..analysis.draws import Purpose
from ..analysis.probe import Probes, probe
from ..analysis.prune import Comparison, keep_heads, model_errors
from ..analysis.record import Record
from ..comparison.estimators import BEST_LASSO, RIDGE, SUPPORT, ZERO, algorithm, descent
from ..comparison.measuring import measure
from ..loaded import SparseRun
from ..model import Transformer

Runs = Mapping[str, SparseRun]
STEPS = (2, 10, 20, 50)  # of the algorithm and of gradient descent
ESTIMATORS = (
    *(algorithm(steps) for steps in STEPS),
    *(descent(steps) for steps in STEPS),
    *(RIDGE, BEST_LASSO, SUPPORT, ZERO),
)


class Experiment(NamedTuple):
    """What measures runs with some options, and the kind of result."""

    kind: type[Record]
    measure: Callable[[Runs, dict[str, Any]], Record]


@dataclass(frozen=True, eq=False)
class Pruning(Record):
    """A model against what is left of it, on the same prompts.

    "full" is the model, "pruned" has all heads of its first layer and the dominant one of each other, "trained on" is
    that after some more training, and "single" a model with one head in each layer. As controls, "other" keeps another
    head of each later layer, chosen at random, and "without" all but the dominant one.
    """

    dominant: NDArray[np.int64]  # (layers,)
    other: NDArray[np.int64]  # (layers,)
    against: dict[str, Comparison]  # the ratios' reference: "full" and, if it was measured, "single"


def measure_risk_curves(runs: Runs, options: dict[str, Any]) -> Comparison:
    """The risks of models, of which the last is the reference, and of ESTIMATORS (by `name`), all on the same prompts.

    Risks known to be infinite are NaN.
    """
    tuning_prompts = options.pop("tuning_prompts")
    models = models_of(runs)
    conditions = conditions_of(runs, options)
    measured = {name: model_errors(model, conditions) for name, model in models.items()}
    found: dict[str, list[NDArray[np.float64]]] = {name_of(estimator): [] for estimator in ESTIMATORS}
    for task in conditions.tasks():
        risks = measure(
            task,
            ESTIMATORS,
            n_prompts=conditions.n_prompts,
            tuning_prompts=tuning_prompts,
            seed=conditions.seed,
            step=int(Purpose.COMPARISON),
        )
        for estimator in ESTIMATORS:
            each = risks.risks[estimator].numpy()
            found[name_of(estimator)].append(np.full_like(each, np.nan) if estimator in risks.infinite else each)
    measured |= {name: conditions.gridded(values) for name, values in found.items()}
    return Comparison.of(measured, list(models)[-1], conditions)


def name_of(estimator: Any) -> str:
    """What an estimator is called in a comparison."""
    return estimator.label if estimator.steps is None else f"{estimator.label}, {estimator.steps} steps"


def measure_importance(runs: Runs, options: dict[str, Any]) -> HeadImportance:
    """Of the heads of the model "full"."""
    return head_importance(models_of(runs)["full"], task_of(runs), **options)


def measure_pruning(runs: Runs, options: dict[str, Any]) -> Pruning:
    """Of the model "full", whose `dominant` heads are known, against "trained on" and "single" where they are there."""
    dominant = options.pop("dominant")
    models = models_of(runs)
    full = models["full"]
    shapes = full.shapes
    generator = np.random.default_rng(options["seed"])
    steps = [int(generator.integers(1, max(shape.heads, 2))) for shape in shapes]
    others = [(best + step) % shape.heads for best, step, shape in zip(dominant, steps, shapes)]
    first = list(range(shapes[0].heads))
    without = [[head for head in range(shape.heads) if head != best] for best, shape in zip(dominant, shapes)]
    models |= {
        "pruned": keep_heads(full, [first, *([head] for head in dominant[1:])]),
        "other": keep_heads(full, [first, *([head] for head in others[1:])]),
        "without": keep_heads(full, [first, *without[1:]]),
    }
    conditions = conditions_of(runs, options)
    measured = {name: model_errors(model, conditions) for name, model in models.items()}
    references = [name for name in ("full", "single") if name in models]
    return Pruning(
        np.array(dominant, dtype=np.int64),
        np.array(others, dtype=np.int64),
        {name: Comparison.of(measured, name, conditions) for name in references},
    )


def measure_probes(runs: Runs, options: dict[str, Any]) -> Probes:
    """Of the hidden states of the model "full"."""
    return probe(models_of(runs)["full"], task_of(runs), **options)


def measure_contents(runs: Runs, options: dict[str, Any]) -> LayerContents:
    """Of the hidden states of the model "full"."""
    return layer_contents(models_of(runs)["full"], task_of(runs), **options)


def measure_correspondence(runs: Runs, options: dict[str, Any]) -> Correspondence:
    """Of the layers of the model "full" with gradient steps."""
    return correspondence(models_of(runs)["full"], task_of(runs), **options)


def models_of(runs: Runs) -> dict[str, Transformer]:
    """The models, each on the device that it trains on."""
    return {name: run.model.to(run.config.resolved_device()) for name, run in runs.items()}


def task_of(runs: Runs) -> SparseRegression:
    """The task of the runs; ValueError where they have different ones."""
    tasks = {name: run.config.task() for name, run in runs.items()}
    first, *others = tasks
    for name in others:
        keys = ("dim_x", "sparsity", "context_length", "noise_variance", "covariance")
        if any(getattr(runs[first].config, key) != getattr(runs[name].config, key) for key in keys):
            raise ValueError(f"the runs in {runs[first].path} and {runs[name].path} have different tasks")
    return tasks[first]


def conditions_of(runs: Runs, options: Mapping[str, Any]) -> Conditions:
    """All context lengths of the options at all noise variances of the task."""
    values = (options[key] for key in ("n_prompts", "n_queries", "seed"))
    return Conditions.of(task_of(runs), options["context_lengths"], None, *values)


EXPERIMENTS: Mapping[str, Experiment] = {
    "risk": Experiment(Comparison, measure_risk_curves),
    "importance": Experiment(HeadImportance, measure_importance),
    "pruning": Experiment(Pruning, measure_pruning),
    "probes": Experiment(Probes, measure_probes),
    "contents": Experiment(LayerContents, measure_contents),
    "correspondence": Experiment(Correspondence, measure_correspondence),
}
