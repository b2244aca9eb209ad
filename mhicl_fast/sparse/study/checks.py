"""What is checked of each claim: numbers of the study's results against bounds, for a seed.

Each function gives the checks of a seed, none where it was not measured. Risks are judged at the largest n, for each
noise variance: where n is small, rare prompts on which models are far off make the mean, and it says little. The mean
over the noise variances is shown beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from ..analysis.prune import Comparison
from ..analysis.statistics import Estimate
from ..comparison.estimators import Estimator
from .config import run_name
from .experiments import name_of
from .results import LoadedStudy
from .verdicts import Check, difference

Tests = Callable[[LoadedStudy, int], Sequence[Check]]

LITTLE = 1.1  # times the risk of the whole model: what pruning may cost
HALF = 0.5
SIMILAR = 0.9  # a cosine
UNKNOWN = (math.nan, math.nan)  # the risk of a model that failed


def more_heads(study: LoadedStudy, seed: int) -> list[Check]:
    risk = study.risk.get(seed)
    names = _names(study, seed)
    if risk is None:
        return []
    return [
        check
        for fewer, more in pairwise(names)
        for check in _differences(risk, fewer, more, f"risk of {fewer} − {more}")
    ]


def most_against_fewest(study: LoadedStudy, seed: int) -> list[Check]:
    names = _names(study, seed)
    return _ratios(study.risk.get(seed), names[-1], [names[0]]) if len(names) > 1 else []


def first_layer(study: LoadedStudy, seed: int) -> list[Check]:
    checks = []
    for name in _several_heads(study, seed):
        importance = study.importance.get(name)
        if importance is not None:
            shares = importance.pooled_share[0]
            bound, judged = 1 / (2 * len(shares.value)), name == _most(study, seed)
            checks += [
                Check(f"share of head {head} of {name}", *shares.at(head), bound, judged=judged)
                for head in range(len(shares.value))
            ]
    return checks


def later_layers(study: LoadedStudy, seed: int) -> list[Check]:
    checks = []
    for name in _several_heads(study, seed):
        importance = study.importance.get(name)
        if importance is not None:
            judged = name == _most(study, seed)
            checks += [
                Check(
                    f"share of head {head} in layer {layer + 1} of {name}",
                    *importance.pooled_share.at((layer, head)),
                    HALF,
                    judged=judged,
                )
                for layer, head in enumerate(importance.dominant)
                if layer > 0
            ]
    return checks


def pruned(name: str, reference: str, bound: float) -> Tests:
    """That the model `name` has less than `bound` times the reference's risk; for each noise variance."""

    def tests(study: LoadedStudy, seed: int) -> list[Check]:
        checks = []
        for run in _several_heads(study, seed):
            pruning = study.pruning.get(run)
            comparison = None if pruning is None else pruning.against.get(reference)
            if pruning is not None and len(pruning.dominant) > 1 and comparison and name in comparison.names:
                row, judged = comparison.names.index(name), run == _most(study, seed)
                what = f"risk of {name} / {reference}, {run}"
                checks += _by_noise(comparison, row, what, bound, above=False, judged=judged)
                checks.append(Check(what, *comparison.pooled_ratio.at(row), bound, above=False, judged=False))
        return checks

    return tests


def dominant_is_best(study: LoadedStudy, seed: int) -> list[Check]:
    pruning = study.pruning.get(_most(study, seed))
    if pruning is None:
        return []
    return _differences(pruning.against["full"], "other", "pruned", "risk of other − pruned")


def better_features(study: LoadedStudy, seed: int) -> list[Check]:
    probes = study.probes.get(_most(study, seed))
    if probes is None:
        return []
    raw, states = (probes.risk[probes.sources.index(source)] for source in ("P x", "P h1"))
    return [
        Check(f"risk of P x − P h1, {count} steps", *difference(raw.at(k), states.at(k)), 0.0, judged=bool(count > 0))
        for k, count in enumerate(probes.steps)
    ]


def better_features_of_heads(study: LoadedStudy, seed: int) -> list[Check]:
    names = _names(study, seed)
    probed = [study.probes.get(names[0]), study.probes.get(names[-1])]
    if len(names) < 2 or probed[0] is None or probed[1] is None:
        return []
    fewest, most = (probes.risk[probes.sources.index("P h1")] for probes in probed if probes is not None)
    return [
        Check(f"risk of P h1 of {names[0]} − {names[-1]}, {count} steps", *difference(fewest.at(k), most.at(k)), 0.0)
        for k, count in enumerate(probed[0].steps)
        if count > 0
    ]


def holds_preprocessed(study: LoadedStudy, seed: int) -> list[Check]:
    held = study.contents.get(_most(study, seed))
    if held is None:
        return []
    before, after = (held.pooled_r2.at((layer, held.contents.index("r̂x"))) for layer in (0, 1))
    others = [
        Check(f"R² of {content} after layer 1", *held.pooled_r2.at((1, k)), HALF, judged=False)
        for k, content in enumerate(held.contents)
        if content != "r̂x"
    ]
    return [
        Check("R² of r̂x after layer 1", *after, HALF),
        Check("R² of r̂x after layer 1 − before", *difference(after, before), 0.0),
        *others,
    ]


def like_steps(study: LoadedStudy, seed: int) -> list[Check]:
    found = study.correspondence.get(_most(study, seed))
    if found is None:
        return []
    cosine = found.preprocessed.cosine
    nearest = np.nan_to_num(cosine.value[:, 1:], nan=-np.inf).argmax(axis=1) + 1
    return [
        Check(f"cosine after layer {layer} with step {nearest[layer]}", *cosine.at((layer, nearest[layer])), SIMILAR)
        for layer in range(2, len(cosine.value))
    ]


def rather_preprocessed(study: LoadedStudy, seed: int) -> list[Check]:
    found = study.correspondence.get(_most(study, seed))
    if found is None:
        return []
    raw, preprocessed = found.raw.distance, found.preprocessed.distance
    return [
        Check(
            f"distance after layer {layer} from raw − preprocessed descent",
            *difference(_least(raw[layer]), _least(preprocessed[layer])),
            0.0,
        )
        for layer in range(2, len(raw.value))
    ]


def against(*estimators: Estimator) -> Tests:
    """Tests that the model of the most heads has a lower risk than each of the estimators."""

    def tests(study: LoadedStudy, seed: int) -> list[Check]:
        return _ratios(study.risk.get(seed), _most(study, seed), [name_of(estimator) for estimator in estimators])

    return tests


def _ratios(risk: Comparison | None, model: str, others: Iterable[str]) -> list[Check]:
    """That others have a greater risk than a model, the comparison's reference."""
    if risk is None or risk.reference != model:
        return []
    found = []
    for name in others:
        if name in risk.names:
            row = risk.names.index(name)
            found += _by_noise(risk, row, f"risk of {name} / {model}", 1.0, above=True, judged=True)
            found.append(Check(f"risk of {name} / {model}", *risk.pooled_ratio.at(row), 1.0, judged=False))
    return found


def _by_noise(comparison: Comparison, row: int, what: str, bound: float, *, above: bool, judged: bool) -> list[Check]:
    """That a ratio at the largest n, for each noise variance, is above or below a bound."""
    return [
        Check(f"{what}, {where}", *comparison.ratio.at((row, -1, k)), bound, above, judged)
        for k, where in enumerate(_conditions(comparison))
    ]


def _differences(comparison: Comparison, first: str, second: str, what: str) -> list[Check]:
    """That the first's risk at the largest n, for each noise variance, is above the second's."""
    return [
        Check(f"{what}, {where}", *difference(*(_risk(comparison, name, k) for name in (first, second))), 0.0)
        for k, where in enumerate(_conditions(comparison))
    ]


def _risk(comparison: Comparison, name: str, level: int) -> tuple[float, float]:
    """At the largest n for one noise variance."""
    known = name in comparison.names
    return comparison.risk.at((comparison.names.index(name), -1, level)) if known else UNKNOWN


def _conditions(comparison: Comparison) -> list[str]:
    n = comparison.context_lengths[-1]
    return [f"n = {n}, σ² = {level:g}" for level in comparison.noise_variance]


def _names(study: LoadedStudy, seed: int) -> list[str]:
    return [run_name(heads, seed) for heads in study.study.heads]


def _several_heads(study: LoadedStudy, seed: int) -> list[str]:
    """The most first, which alone are judged."""
    return [run_name(heads, seed) for heads in reversed(study.study.heads) if heads > 1]


def _most(study: LoadedStudy, seed: int) -> str:
    return run_name(study.study.heads[-1], seed)


def _least(estimate: Estimate) -> tuple[float, float]:
    return estimate.at(int(np.nan_to_num(estimate.value, nan=np.inf).argmin()))
