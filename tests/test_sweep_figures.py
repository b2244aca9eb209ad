"""Figures of sweeps: what they show of given results, and that it can be read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_plots import drawn, visible_texts

from mhicl_fast import spectral
from mhicl_fast.plots.style import BLUE, FAINT, INK, ORANGE
from mhicl_fast.presets import preset
from mhicl_fast.sweep import LoadedSweep, expand
from mhicl_fast.sweep.figures import MOST_PANELS, save_sweep_figures, sweep_figure
from mhicl_fast.sweep.results import MEASURED
from mhicl_fast.train import RunConfig
from mhicl_fast.train.summary import prediction

DEMO = preset("demo")


def sweep(
    axes: list[str], loss: Callable[[RunConfig], float], *settings: str, late: float = 1.0, failed: tuple[int, ...] = ()
) -> LoadedSweep:
    """A sweep whose runs have given losses, and emerge `late` times the predicted time after the start."""
    configs = expand(DEMO, axes, settings)
    keys = [axis.partition("=")[0].split("/") for axis in axes]
    rows = []
    for number, config in enumerate(configs):
        theory = spectral.theory(config.task(), config.n_heads)
        several = config.n_heads >= config.n_tasks
        limit = theory.one_head_per_task if several else (theory.best_shared_heads or theory.single_head)
        first = theory.one_head_per_task_first_order if several else None
        times = prediction(config)["predicted_times"]
        measured: dict[str, Any] = dict.fromkeys(MEASURED)
        if number not in failed:
            measured |= {
                "eval_loss": loss(config), "eval_loss_se": 0.01 * loss(config), "excess": loss(config) - 0.03,
                "limit": limit and limit.loss, "limit_first_order": first and first.loss,
                "single_head": theory.single_head and theory.single_head.loss,
                "best_multi_head": theory.best_multi_head and theory.best_multi_head.loss, "bayes": theory.bayes.loss,
                "predicted_time": times and max(times), "half_learnt": times and late * max(times),
                "emergence_end": late,
            }  # fmt: skip
        settings_ = {key: getattr(config, key) for key in itertools.chain(*keys)}
        status = "failed" if number in failed else "finished"
        rows.append({"run": number, "status": status, **settings_, **measured, "failure": None})
    return LoadedSweep(Path("nowhere"), configs, rows)


def measured(axes: Axes) -> dict[str, np.ndarray]:
    """(points, 3) of each error bar: where, mean, error; by colour."""
    found = {}
    for container in axes.containers:
        points = np.asarray(container.lines[0].get_xydata())  # type: ignore[attr-defined]
        ends = np.array(container.lines[2][0].get_segments())  # type: ignore[attr-defined]
        errors = (ends[:, 1, 1] - ends[:, 0, 1]) / 2
        found[to_hex(container.lines[0].get_color()).upper()] = np.column_stack([points, errors])  # type: ignore[attr-defined]
    return found


def curves(axes: Axes, colour: str) -> list[np.ndarray]:
    """The dashed and dotted curves of a colour, and those of single marks."""
    inside = {id(line) for container in axes.containers for line in container.lines[1] + (container.lines[0],)}  # type: ignore[attr-defined]
    return [
        np.asarray(line.get_xydata())
        for line in axes.get_lines()
        if to_hex(line.get_color()).upper() == colour.upper() and id(line) not in inside and line.get_marker() != "."
    ]


def title(figure: Figure) -> str:
    return figure.texts[0].get_text()


def assert_readable(figure: Figure) -> None:
    renderer = drawn(figure)
    shown = {text for text in visible_texts(figure) if text.get_text().strip() and text.get_visible()}
    boxes = {text: text.get_window_extent(renderer) for text in shown}
    for text, box in boxes.items():
        assert text.get_fontsize() >= 9, text
        assert box.x0 >= 0 and box.y0 >= 0, text  # noqa: PT018
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text  # noqa: PT018
    for one, other in itertools.combinations(shown, 2):
        assert not boxes[one].padded(-2).overlaps(boxes[other].padded(-2)), (one, other)


def test_separation_of_one_head_from_many() -> None:
    found = sweep(["n_heads=1,2,3", "n_tasks/dim_x=2/20,3/30"], lambda c: 6.0 * c.n_tasks / min(c.n_heads, c.n_tasks))
    figure = sweep_figure(found, "n_heads")
    (axes,) = figure.axes
    assert title(figure) == "A single head has 2.00 to 3.00 times the loss of one head per task"
    found.rows[0]["emergence_end"] = None  # of a run that ended before it had learnt its tasks nothing is said
    assert title(sweep_figure(found, "n_heads")) == "A single head has 3.00 times the loss of one head per task"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("heads H", "evaluated loss")
    points = measured(axes)
    assert list(points) == [BLUE.upper(), ORANGE.upper()]
    np.testing.assert_allclose(points[ORANGE], [[1, 18, 0.18], [2, 9, 0.09], [3, 6, 0.06]])
    for n_tasks, colour in ((2, BLUE), (3, ORANGE)):
        rows = [row for row in found.rows if row["n_tasks"] == n_tasks]
        for name in ("limit", "limit_first_order", "single_head", "best_multi_head"):
            expected = np.array([(row["n_heads"], row[name]) for row in rows if row[name] is not None])
            assert any(
                curve.shape == expected.shape and np.allclose(curve, expected) for curve in curves(axes, colour)
            ), (name, n_tasks)
    assert_readable(figure)
    over_tasks = sweep_figure(found, "n_tasks")
    assert over_tasks.axes[0].get_xlabel() == "tasks I (with covariates d)"
    levels = [(row["n_tasks"], row["single_head"]) for row in found.rows if row["n_heads"] == 2]
    assert any(np.allclose(curve, levels) for curve in curves(over_tasks.axes[0], INK))  # the same for every H: once
    assert_readable(over_tasks)


def test_power_of_the_context_length() -> None:
    lengths = [100, 200, 400, 800]
    axis = "context_length=" + ",".join(map(str, lengths))
    figure = sweep_figure(sweep([axis], lambda c: 0.03 + 700 / c.context_length), "context_length")
    (axes,) = figure.axes
    assert title(figure) == "The excess loss goes like L to the power −1.00"
    assert axes.get_xscale() == axes.get_yscale() == "log"
    np.testing.assert_allclose(measured(axes)[INK.upper()][:, :2], [(length, 700 / length) for length in lengths])
    guides = [np.log(line.get_xydata()) for line in axes.get_lines() if to_hex(line.get_color()).upper() == FAINT]
    assert len(guides) > 3
    assert all(np.allclose(np.diff(guide[:, 1]) / np.diff(guide[:, 0]), -1) for guide in guides)
    low, high = axes.get_ylim()
    assert low < 700 / 800 and high > 700 / 100 and high / low < 1000  # noqa: PT018  guides do not stretch the axis
    rows = sweep([axis], lambda c: 1.0).rows
    expected = [(row["context_length"], row["limit"] - 0.03) for row in rows]
    assert any(len(curve) == 4 and np.allclose(curve, expected) for curve in curves(axes, BLUE))
    assert_readable(figure)
    two = sweep_figure(
        sweep([axis, "n_heads=1,3"], lambda c: 0.03 + c.context_length ** (-0.5 if c.n_heads == 1 else -0.75)),
        "context_length",
    )
    assert title(two) == "The excess loss goes like L to the power −0.50 to −0.75"
    assert_readable(two)


def test_time_of_emergence_over_the_size_of_the_start() -> None:
    found = sweep(["start_size=0.01,0.03,0.1", "seed=0:3"], lambda c: 1.0, late=1.04)
    figure = sweep_figure(found, "start_size")
    (axes,) = figure.axes
    assert title(figure) == "Emergence comes at 1.04 times the predicted time"
    points = measured(axes)[INK.upper()]
    times = np.array([row["predicted_time"] for row in found.rows]).reshape(3, 3)
    np.testing.assert_allclose(points[:, 0], [0.01, 0.03, 0.1])
    np.testing.assert_allclose(points[:, 1], 1.04 * times.mean(1))
    np.testing.assert_allclose(points[:, 2], 1.04 * times.std(1, ddof=1) / math.sqrt(3))
    (curve,) = curves(axes, BLUE)
    np.testing.assert_allclose(curve[[0, -1]], [(0.01, times[0].mean()), (0.1, times[2].mean())])
    assert np.all(np.diff(curve[:, 1]) < 0)
    seeds = [line for line in axes.get_lines() if line.get_marker() == "."]
    np.testing.assert_allclose([line.get_ydata() for line in seeds], 1.04 * times)
    assert_readable(figure)


def test_no_emergence() -> None:
    found = sweep(["start_size=0.01,0.1", "seed=0:2"], lambda c: 1.0, "start=random", "estimator=sampled")
    assert all(row["predicted_time"] is None for row in found.rows)
    figure = sweep_figure(found, "start_size")
    assert title(figure) == "No run has learnt half of every task"
    assert_readable(figure)


def test_noise_in_panels_and_colours() -> None:
    found = sweep(["noise_std=0,0.5,1", "n_heads=1,3", "context_length=100,400", "seed=0:2"], lambda c: 1 + c.noise_std)
    figure = sweep_figure(found, "noise_std")
    assert [axes.get_title() for axes in figure.axes] == ["L = 100", "L = 400"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    for axes in figure.axes:
        assert [point[:, 1].tolist() for point in measured(axes).values()] == [[1, 1.5, 2]] * 2
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"H = 1", "H = 3", "mean over seeds ± s.e.", "one seed", "single head, leading order"} <= set(shown)
    assert_readable(figure)


def test_too_many_panels_are_left_out_and_told() -> None:
    figure = sweep_figure(sweep(["n_heads=1,3", "n_prompts=10,20", "dim_x=21:30"], lambda c: 1.0), "n_heads")
    assert [axes.get_title() for axes in figure.axes] == [f"N = {n}" for n in (10, 20)]  # and nine colours
    assert_readable(figure)
    figure = sweep_figure(sweep(["n_heads=1,3", "n_prompts=10:18", "dim_x=21,30"], lambda c: 1.0), "n_heads")
    assert [axes.get_title() for axes in figure.axes] == [f"N = {n}" for n in range(10, 10 + MOST_PANELS)]
    assert title(figure).endswith(f"(first {MOST_PANELS} of 8 panels)")
    assert_readable(figure)


@pytest.mark.parametrize(
    ("axes", "key", "ticks"),
    [
        (["estimator=sampled,conditional"], "estimator", ["sampled", "conditional"]),
        (["covariance=identity;ar:0.5;[[1,0],[0,1]]"], "covariance", ["identity", "ar:0.5", "[[1,0],[0,1]]"]),
        (["step_cap=none,0.1", "n_heads=1,2"], "step_cap", ["None", "0.1"]),
        (["seed=0:3"], "seed", ["0", "1", "2"]),
        (["learning_rate=0.001,0.01,0.1"], "learning_rate", ["0.001", "0.01", "0.1"]),
        (["n_prompts=100,101,102,103,1000"], "n_prompts", ["100", "1000"]),
    ],
)  # fmt: skip
def test_any_key_can_be_an_axis(axes: list[str], key: str, ticks: list[str]) -> None:
    figure = sweep_figure(sweep(axes, lambda c: 1.0 + c.seed, "dim_x=2", "n_tasks=1"), key)
    drawn(figure)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ticks
    assert_readable(figure)


def test_failed_runs_are_left_out() -> None:
    figure = sweep_figure(sweep(["n_heads=1,2,3", "seed=0:2"], lambda c: 1.0 + c.seed, failed=(0, 2, 3)), "n_heads")
    np.testing.assert_allclose(measured(figure.axes[0])[INK.upper()], [[1, 2, 0.02], [3, 1.5, 0.5]])
    assert "3 of 6 runs" in figure.texts[1].get_text()


def test_what_cannot_be_drawn() -> None:
    found = sweep(["n_tasks/dim_x=2/20,3/30"], lambda c: 1.0)
    with pytest.raises(ValueError, match=r"key must be an axis of the sweep \(n_tasks\), got 'dim_x'"):
        sweep_figure(found, "dim_x")
    with pytest.raises(ValueError, match="has finished"):
        sweep_figure(sweep(["seed=0:2"], lambda c: 1.0, failed=(0, 1)), "seed")


def test_files(tmp_path: Path) -> None:
    found = replace(sweep(["n_heads=1,3", "start_size=0.01,0.1", "seed=0:2"], lambda c: 1.0), path=tmp_path)
    before = dict(matplotlib.rcParams)
    paths = save_sweep_figures(found)
    assert dict(matplotlib.rcParams) == before
    assert [path.name for path in paths] == ["n_heads.png", "start_size.png"]
    contents = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in save_sweep_figures(found)] == contents
    none = sweep(["seed=0:2"], lambda c: 1.0, failed=(0, 1))
    assert save_sweep_figures(none) == []
