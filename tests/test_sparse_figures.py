"""Figures of the study of sparse linear regression: what their titles say is so, whatever models there are."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from sparse_results import (
    LAYERS,
    LENGTHS,
    LEVELS,
    PRUNED,
    contents,
    correspondence,
    estimate,
    importance,
    probes,
    pruning,
)

from mhicl_fast.plots import save_png
from mhicl_fast.sparse.analysis.correspondence import Agreement
from mhicl_fast.sparse.analysis.statistics import Estimate
from mhicl_fast.sparse.figures.correspondence import contents_figure, nearest_steps, steps_figure
from mhicl_fast.sparse.figures.importance import dominance_figure, importance_figure
from mhicl_fast.sparse.figures.probing import probing_figure
from mhicl_fast.sparse.figures.pruning import pruning_figure
from mhicl_fast.sparse.figures.risk import RiskCurves, risk_figure

SETTING = "d = 4, s = 2"


def models(make: Any, counts: tuple[int, ...], seeds: tuple[int, ...] = (3, 4)) -> dict[int, dict[int, Any]]:
    rng = np.random.default_rng(sum(counts))
    return {heads: {seed: make(rng, heads) for seed in seeds} for heads in counts}


def words(figure: Figure) -> tuple[str, str]:
    """Title and subtitle."""
    title, subtitle = (text.get_text() for text in figure.texts[-2:])
    return title, subtitle


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+\.\d+|\d+", text)]


def drawn(figure: Figure) -> None:
    """Draw it: no text or legend may stick out at the sides."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    for artist in (*figure.texts, *figure.legends):
        box = artist.get_window_extent(renderer)
        assert box.x0 >= 0, artist
        assert box.x1 <= figure.bbox.width, artist


def all_figures(layers: int) -> dict[str, Figure]:
    counts = (1, 2, 4, 8)
    risk = models(lambda rng, _: estimate(rng, len(LENGTHS), len(LEVELS)), counts)
    assessed = models(lambda rng, heads: importance(rng, heads, layers), counts)
    return {
        "risk": risk_figure(RiskCurves(LENGTHS, LEVELS, risk, {}), SETTING),
        "importance": importance_figure(assessed, SETTING),
        "dominance": dominance_figure(assessed, SETTING),
        "pruning": pruning_figure(models(lambda rng, _: pruning(rng, PRUNED), (2, 4, 8)), SETTING),
        "probing": probing_figure(models(lambda rng, _: probes(rng, layers), (1, 8)), SETTING),
        "contents": contents_figure(models(lambda rng, _: contents(rng, layers), (1, 8)), SETTING),
        "steps": steps_figure(models(lambda rng, _: correspondence(rng, layers), (1, 8)), SETTING),
    }


@pytest.mark.parametrize("layers", [2, 6])
def test_figures_fit(layers: int) -> None:
    before = dict(matplotlib.rcParams)
    for figure in all_figures(layers).values():
        drawn(figure)
    assert dict(matplotlib.rcParams) == before


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    found = models(importance, (1, 4))
    first, second = (
        save_png(importance_figure(found, SETTING), tmp_path / name / "importance.png") for name in ("one", "other")
    )
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("counts", [(1,), (8,), (1, 2)])
def test_one_seed_and_few_models(counts: tuple[int, ...]) -> None:
    seeds = (0,)
    several = tuple(heads for heads in counts if heads > 1)
    made = [
        importance_figure(models(importance, counts, seeds), SETTING),
        probing_figure(models(lambda rng, _: probes(rng), counts, seeds), SETTING),
        contents_figure(models(lambda rng, _: contents(rng), counts, seeds), SETTING),
        steps_figure(models(lambda rng, _: correspondence(rng), counts, seeds), SETTING),
    ]
    if several:
        made.append(dominance_figure(models(importance, counts, seeds), SETTING))
        made.append(pruning_figure(models(lambda rng, _: pruning(rng, ("full", "pruned")), several, seeds), SETTING))
    else:
        with pytest.raises(ValueError, match="no model has several heads"):
            dominance_figure(models(importance, counts, seeds), SETTING)
    for figure in made:
        drawn(figure)
    assert "one seed" in words(made[1])[1]


@pytest.mark.parametrize(
    ("risks", "words_of_title"),
    [
        ({1: 0.8, 2: 0.5, 8: 0.3}, "Each larger head count has less risk: from 0.80 with 1 head to 0.30 with 8"),
        ({1: 0.8, 2: 0.2, 8: 0.3}, "Risk goes from 0.80 with 1 head to 0.30 with 8; least with 2 heads"),
        ({1: 0.2, 8: 0.3}, "Risk goes from 0.20 with 1 head to 0.30 with 8; least with 1 head"),
        ({4: 0.2}, "Excess risk with 4 heads: 0.20"),
    ],
)
def test_title_of_the_risk_curves(risks: dict[int, float], words_of_title: str) -> None:
    def each(risk: float, shift: float) -> Estimate:
        values = np.full((3, 2), 9.0)
        values[-1] = risk + shift + np.array([-0.1, 0.1])  # the title has the mean over noise and seeds at the last n
        return Estimate(values, np.zeros_like(values))

    found = {heads: {0: each(risk, -0.05), 1: each(risk, 0.05)} for heads, risk in risks.items()}
    title, subtitle = words(risk_figure(RiskCurves([5, 10, 20], LEVELS, found, {}), SETTING))
    assert title.startswith(words_of_title)
    assert "at n = 20" in title
    assert subtitle.startswith(SETTING)


def test_zero_and_infinite_risks_leave_the_axis() -> None:
    found = models(lambda rng, _: estimate(rng, 3, 2), (1, 2))
    zero, infinite = np.zeros((3, 2)), np.full((3, 2), np.nan)
    others = {name: [Estimate(values, zero)] for name, values in (("ridge, Bayes", zero), ("Lasso, best", infinite))}
    figure = risk_figure(RiskCurves(LENGTHS, LEVELS, found, others), SETTING)
    drawn(figure)
    low = min(each.value.min() for seeds in found.values() for each in seeds.values())
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        assert low / 4 < axes.get_ylim()[0] < low
    nothing = models(lambda rng, _: Estimate(zero, zero), (1, 2))
    drawn(risk_figure(RiskCurves(LENGTHS, LEVELS, nothing, {}), SETTING))


def test_shares_in_the_map_and_in_its_title() -> None:
    found = models(importance, (2, 8))
    figure = importance_figure(found, SETTING)
    shown = [float(text.get_text()) for axes in figure.axes for text in axes.texts]
    shares = [each.pooled_share.value.ravel() for seeds in found.values() for each in seeds.values()]
    np.testing.assert_allclose(sorted(shown), np.sort(100 * np.concatenate(shares)), atol=0.51)
    dominant = [[each.dominant_share(layer)[0] for each in found[8].values()] for layer in range(LAYERS)]  # type: ignore[index]
    title, subtitle = words(figure)
    for told, each in zip(title.partition(": ")[2].split(", "), dominant, strict=True):
        assert numbers(told) == sorted({round(100 * share) for share in each})
    assert "chosen on other prompts" in subtitle


def test_layers_within_noise_are_hatched_and_said_so() -> None:
    found = models(importance, (4,), (0,))
    share = found[4][0].pooled_share
    value = share.value.copy()
    value[1] = np.nan
    found[4][0] = replace(found[4][0], pooled_share=Estimate(value, share.se))
    figure = importance_figure(found, SETTING)
    assert sum(patch.get_hatch() is not None for patch in figure.axes[0].patches) == 4
    assert words(figure)[0].split(", ")[-2] == "within noise"
    assert "in 0 of 1 model" in words(dominance_figure(found, SETTING))[0]


def test_title_of_pruning_has_the_ratios_of_the_most_heads() -> None:
    found = models(lambda rng, _: pruning(rng, ("full", "pruned", "trained on")), (2, 8))
    title = words(pruning_figure(found, SETTING))[0]
    ratios = np.mean([each.against["full"].pooled_ratio.value for each in found[8].values()], axis=0)
    assert numbers(title)[1:] == pytest.approx(ratios[1:], abs=0.001)
    assert numbers(title)[0] == 8


def test_title_of_probing_is_about_as_many_steps_as_later_layers() -> None:
    found = models(lambda rng, _: probes(rng), (1, 8))
    title = words(probing_figure(found, SETTING))[0]
    row = {source: k for k, source in enumerate(found[1][3].sources)}

    def risk(heads: int, source: str) -> float:
        return float(np.mean([each.risk.value[row[source], 1] for each in found[heads].values()]))

    steps, on_x, *after = numbers(title)
    assert steps == LAYERS - 1
    assert [on_x, after[0], after[2]] == pytest.approx([risk(8, "x"), risk(8, "P h1"), risk(1, "P h1")], abs=0.006)
    assert (after[1], after[3]) == (8, 1)


def test_nearest_steps() -> None:
    cosine = np.array([[np.nan, 0.5, 0.9, 0.7], [np.nan, 0.8, 0.1, 0.2]])
    agreement = Agreement(*[Estimate(cosine, np.zeros_like(cosine))] * 3)
    assert nearest_steps(agreement, np.array([0, 1, 2, 3])) == [(2, 0.9), (1, 0.8)]
