"""Excess risk of the models for each number of heads, with other estimators beside it."""

from __future__ import annotations

import numpy as np

from ...report.content import Block, Paragraph, Picture, Section, Table
from ...report.drawing import inline_svg
from ..analysis.statistics import Estimate
from ..figures.panels import heads_label
from ..figures.risk import RiskCurves, risk_figure
from ..study.config import run_name
from .cells import CAPTION, over_seeds
from .findings import Findings


def risks(found: Findings) -> Section | None:
    """Curves over n and the table at the greatest n; None where nothing was measured yet."""
    curves = risk_curves(found)
    if curves is None:
        return None
    caption = (
        "Excess risk over the number of context examples, a panel for each noise variance. Points: seeds, with bars "
        "of ± 2 standard errors over prompts; solid lines: their means; broken lines: estimators that are not "
        "trained. Lines leave the axis where their risk is below it or infinite. Where a bar reaches the foot of "
        "the axis, a few prompts with huge errors make the mean."
    )
    n = curves.context_lengths[-1]
    blocks: list[Block] = [Picture(inline_svg(risk_figure(curves, found.setting), "risk", caption), caption)]
    named = {
        **{heads_label(heads): list(seeds.values()) for heads, seeds in curves.models.items()},
        **curves.estimators,
    }
    rows = [
        (name, *(over_seeds(each[-1, k] for each in seeds) for k in range(len(curves.noise_variance))))
        for name, seeds in named.items()
    ]
    header = ("", *(f"σ² = {level:g}" for level in curves.noise_variance))
    blocks.append(Table(f"Excess risk at n = {n}. {CAPTION}", header, rows, numeric=True))
    if curves.estimators:
        blocks.append(
            Paragraph(
                "Steps are of size c / λ, with λ the greatest eigenvalue of the prompt's XᵀX/n. The best c and the "
                "best penalty were chosen on other prompts; least squares on the true support knows which "
                "coefficients are not zero. A model of L layers has a layer to preprocess and L − 1 for steps, so "
                "the algorithm with as many steps is the fair comparison; those with more steps show what more "
                "layers could do."
            )
        )
    return Section("risk", "Excess risk for each number of heads", blocks)


def risk_curves(found: Findings) -> RiskCurves | None:
    """The study's; of a single run, or where these are missing, those of the finished runs' own evaluations."""
    if found.risk:
        return _measured(found)
    summaries = {
        heads: {seed: run.summary for seed, run in seeds.items() if run.summary is not None}
        for heads, seeds in found.runs.items()
    }
    models = {
        heads: {
            seed: Estimate(*(np.array(summary["risk_by_length"][key]) for key in ("excess_risk", "excess_risk_se")))
            for seed, summary in seeds.items()
        }
        for heads, seeds in summaries.items()
        if seeds
    }
    if not models:
        return None
    first = next(summary for seeds in summaries.values() for summary in seeds.values())
    return RiskCurves(first["risk_by_length"]["context_length"], first["noise_variance"], models, {})


def _measured(found: Findings) -> RiskCurves:
    first = next(iter(found.risk.values()))
    models: dict[int, dict[int, Estimate]] = {}
    for heads in found.runs:
        for seed, comparison in found.risk.items():
            name = run_name(heads, seed)
            if name in comparison.names:
                models.setdefault(heads, {})[seed] = comparison.risk[comparison.names.index(name)]
    ours = {run_name(heads, seed) for heads in models for seed in models[heads]}
    estimators = {
        name: [each.risk[each.names.index(name)] for each in found.risk.values()]
        for name in first.names
        if name not in ours
    }
    return RiskCurves(list(first.context_lengths), list(first.noise_variance), models, estimators)
