"""Figures of runs: what they show, that it can be read, and that files are the same for the same run."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from mhicl_fast.plots import (
    FIGURES,
    allocation_figure,
    examples_figure,
    lengths_figure,
    loss_figure,
    save_figures,
    values_figure,
    weights_figure,
)
from mhicl_fast.plots.labels import spread
from mhicl_fast.plots.style import round_numbers
from mhicl_fast.presets import preset
from mhicl_fast.spectral import half_learnt
from mhicl_fast.train import Combined, LoadedRun, load_run, run
from mhicl_fast.train.lengths import LengthCurve
from mhicl_fast.train.storage import StorageError

# Exact gradients where a run should learn; otherwise as few prompts and steps as make a run.
RUNS = {
    "demo": ("demo", "dim_x=12 estimator=asymptotic start_size=0.05 steps=160"),
    "single-task": ("single-task", "dim_x=6 n_prompts=64 steps=40 record_every=2"),
    "no-ode": ("superposition", "n_heads=1 n_prompts=64 steps=200 record_every=20"),
    "short": ("demo", "n_prompts=16 steps=1"),
    "many": ("demo", "dim_x=18 n_tasks=9 n_heads=9 n_prompts=8 steps=20"),
}
EARLY = "early"  # the demo as if emergence were over early, so that time is drawn logarithmically


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedRun]:
    folder = tmp_path_factory.mktemp("runs")
    done = {
        name: run(preset(base).with_settings([*settings.split(), "eval_prompts=256"]), folder / name)
        for name, (base, settings) in RUNS.items()
    }
    summary = done["demo"].summary
    assert summary is not None
    phases = {**summary["phases"], "warmup_end": {"flow_time": 0.1}, "emergence_end": {"flow_time": 0.2}}
    return {**done, EARLY: replace(done["demo"], summary={**summary, "phases": phases})}


def visible_texts(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn."""
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()
    for axes in figure.findobj(Axes):
        yield from (axes.title, *axes.texts)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            yield axis.label
            yield axis.get_offset_text()
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    yield from (label for label in (tick.label1, tick.label2) if label.get_visible())


def drawn(figure: Figure) -> Any:
    """Lay the figure out as for drawing, and return the renderer that would."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    return renderer


def line(axes: Axes, label: str) -> np.ndarray:
    """The data of the one line with this label, (points, 2)."""
    (found,) = (line for line in axes.get_lines() if line.get_label() == label)
    return np.asarray(found.get_xydata())


def texts(figure: Figure) -> list[str]:
    drawn(figure)
    return [text.get_text() for text in visible_texts(figure)]


@pytest.mark.parametrize("name", [*RUNS, EARLY])
@pytest.mark.parametrize("figure_name", FIGURES)
def test_texts_are_large_inside_and_apart(runs: dict[str, LoadedRun], name: str, figure_name: str) -> None:
    figure = FIGURES[figure_name](runs[name])
    renderer = drawn(figure)
    shown = {text for text in visible_texts(figure) if text.get_text().strip() and text.get_visible()}
    assert len(shown) > 10
    boxes = {text: text.get_window_extent(renderer) for text in shown}
    for text, box in boxes.items():
        assert text.get_fontsize() >= 9, text
        assert box.x0 >= 0 and box.y0 >= 0, text  # noqa: PT018
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text  # noqa: PT018
    for one, other in itertools.combinations(shown, 2):
        a, b = boxes[one].padded(-2), boxes[other].padded(-2)
        assert not a.overlaps(b), (one, other)


def test_loss_figure_shows_the_run(runs: dict[str, LoadedRun]) -> None:
    loaded = runs["demo"]
    summary = loaded.summary
    assert summary is not None
    figure = loss_figure(loaded)
    axes = figure.axes[0]
    np.testing.assert_array_equal(line(axes, "run"), np.stack([loaded.metrics[k] for k in ("flow_time", "loss")], 1))
    for order, label in (("leading", "ODE, leading order"), ("first", "ODE, 1st order")):
        ode = loaded.trajectories[order]
        np.testing.assert_array_equal(line(axes, label), np.stack([ode.t, ode.loss], 1))
    assert (axes.get_xlabel(), axes.get_ylabel(), figure.axes[1].get_xlabel()) == ("flow time", "loss", "step")
    (marker,) = axes.containers
    ((x, y),) = marker.lines[0].get_xydata()
    assert (x, y) == (summary["flow_time"], summary["eval_loss"])
    ((_, low), (_, high)) = marker.lines[2][0].get_segments()[0]
    assert high - low == pytest.approx(4 * summary["eval_loss_se"])
    levels = [entry.get_ydata()[0] for entry in axes.get_lines() if len(set(entry.get_ydata())) == 1]
    for state in ("one_head_per_task", "one_head_per_task_first_order", "single_head", "best_multi_head"):
        assert summary["theory"][state]["loss"] in levels
    shown = texts(figure)
    assert "in three phases" in " ".join(shown)
    assert {"warm-up", "emergence", "convergence"} <= set(shown)
    (bayes,) = (text for text in shown if text.startswith("Bayes risk"))
    assert bayes.endswith("↓ below")
    bands = [patch.get_extents() for patch in axes.patches]
    ends = [summary["phases"][end]["flow_time"] for end in ("warmup_end", "emergence_end")]
    edges = axes.transData.transform([(end, 1) for end in ends])[:, 0]
    np.testing.assert_allclose([bands[1].x0, bands[1].x1], edges)


def test_steps_stand_at_their_flow_times(runs: dict[str, LoadedRun]) -> None:
    loaded = runs[EARLY]  # whose steps differ in length
    figure = loss_figure(loaded)
    drawn(figure)
    axes, upper = figure.axes
    assert axes.get_xscale() == "symlog"
    ticks = [(int(label.get_text().replace("\u202f", "")), label) for label in upper.get_xticklabels()]
    assert len(ticks) >= 3
    for step, label in ticks:
        time = np.interp(step, loaded.metrics["step"], loaded.metrics["flow_time"])
        place = axes.transData.transform((time, 1))[0]
        assert upper.transData.transform(label.get_position())[0] == pytest.approx(place)


def test_values_figure_shows_the_run(runs: dict[str, LoadedRun]) -> None:
    loaded = runs["demo"]
    figure = values_figure(loaded)
    ode, time = loaded.trajectories["first"], loaded.metrics["flow_time"]
    colours = set()
    for k, (name, task) in enumerate(itertools.product(("mu", "omega"), range(3))):
        axes = figure.axes[k]
        for head in range(3):
            values = loaded.metrics[name][:, head, task]
            np.testing.assert_array_equal(line(axes, f"head {head}"), np.stack([time, values], 1))
            np.testing.assert_array_equal(
                line(axes, f"ODE {head}"), np.stack([ode.t, getattr(ode, name)[:, head, task]], 1)
            )
        colours.add(tuple(entry.get_color() for entry in axes.get_lines()))
    assert len(colours) == 1
    assert [axes.get_ylabel() for axes in figure.axes] == ["μ", "", "", "ω", "", ""]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["task 0", "task 1", "task 2"]
    shown = texts(figure)
    assert {"head 0", "head 1", "head 2", "run", "ODE, 1st order", "theory: one head per task, 1st order"} <= set(shown)
    assert "Each task is taken by a head of its own" in shown


def test_allocation_figure_shows_the_run(runs: dict[str, LoadedRun]) -> None:
    loaded = runs["demo"]
    summary = loaded.summary
    assert summary is not None
    figure = allocation_figure(loaded)
    axes = figure.axes[0]
    shares = loaded.metrics["mu"][-1] * loaded.metrics["omega"][-1]
    np.testing.assert_array_equal(axes.images[0].get_array(), shares)
    outlined = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    winners = [(patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2) for patch in outlined]
    np.testing.assert_allclose(winners, list(enumerate(summary["allocation"])), atol=1e-12)
    stars = [tuple(np.round(entry.get_xydata()[0])) for entry in axes.get_lines()]
    assert stars == list(enumerate(summary["predicted_allocation"]))
    shown = texts(figure)
    assert "Each task is taken by a head of its own, as predicted" in shown
    observed = half_learnt(loaded.metrics["flow_time"], loaded.metrics["share"])
    for time in (*observed, *summary["predicted_times"]):
        assert f"{time:#.3g}" in shown
    for share in shares.flat:
        assert f"{share:.2f}".replace("-0.00", "0.00") in shown


def test_weights_figure_shows_the_run(runs: dict[str, LoadedRun]) -> None:
    kq, ov = (matrix.clone() for matrix in runs["demo"].parameters.to_combined())
    kq[:, :, 12:] = 7.0  # without effect on the model, and on the scale
    figure = weights_figure(replace(runs["demo"], parameters=Combined(kq, ov)))
    matrices = kq, ov
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 6
    limits = [float(matrices[0][:, :, :12].abs().max()), float(matrices[1].abs().max())]
    for k, axes in enumerate(panels):
        head, kind = divmod(k, 2)
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), matrices[kind][head].numpy(), rtol=1e-6)
        assert (image.norm.vmin, image.norm.vmax) == (-limits[kind], limits[kind])


def test_examples_figure_shows_the_run(runs: dict[str, LoadedRun]) -> None:
    loaded = runs["demo"]
    figure = examples_figure(loaded)
    (axes,) = figure.axes
    time, measured = loaded.metrics["flow_time"], loaded.metrics["effective_examples"]
    for head in range(3):
        np.testing.assert_array_equal(line(axes, f"head {head}"), np.stack([time, measured[:, head]], 1))
    dashed = [entry.get_ydata() for entry in axes.get_lines() if entry.get_linestyle() == "--"]
    # Four covariates per task with one ω each: the mean over queries of L e^{−|r|²}.
    expected = 400 * np.prod((1 + 2 * loaded.metrics["omega"] ** 2) ** -2.0, axis=2)
    np.testing.assert_allclose(np.stack(dashed, 1), expected, rtol=1e-10)
    assert np.abs(expected / measured - 1).max() < 0.2
    assert axes.get_ylim()[1] > 400
    shown = texts(figure)
    assert {"all 400 examples", "predicted from ω", "head 2"} <= set(shown)
    low, high = measured[-1].min(), measured[-1].max()
    assert f"In the end heads attend to {low:.0f} to {high:.0f} of 400 examples" in shown


def test_no_prediction_of_examples_without_values(runs: dict[str, LoadedRun]) -> None:
    assert "predicted from ω" not in texts(examples_figure(runs["no-ode"]))  # overlapping supports
    metrics = {**runs["demo"].metrics, "residual": np.linspace(1, 0, len(runs["demo"].metrics["step"]))}
    axes = examples_figure(replace(runs["demo"], metrics=metrics)).axes[0]
    dashed = next(entry.get_ydata() for entry in axes.get_lines() if entry.get_linestyle() == "--")
    np.testing.assert_array_equal(np.isnan(dashed), metrics["residual"] >= 0.1)


def test_examples_are_drawn_logarithmically_where_attention_condenses(runs: dict[str, LoadedRun]) -> None:
    measured = np.array(runs["demo"].metrics["effective_examples"])
    measured[-1] = [3, 200, 400]
    figure = examples_figure(replace(runs["demo"], metrics={**runs["demo"].metrics, "effective_examples": measured}))
    assert figure.axes[0].get_yscale() == "log"
    assert {"√L = 20", "In the end heads attend to 3 to 400 of 400 examples"} <= set(texts(figure))


LENGTHS = LengthCurve(np.array([100, 400, 1600]), np.array([8.0, 2.2, 0.7]), np.array([0.1, 0.03, 0.01]))


def test_lengths_figure_shows_the_losses(runs: dict[str, LoadedRun]) -> None:
    predicted = {"leading": LENGTHS.loss - 0.2, "first": LENGTHS.loss + 0.1}
    figure = lengths_figure(runs["demo"], LENGTHS, predicted)
    axes = figure.axes[0]
    for order, label in (("leading", "predicted, leading order"), ("first", "predicted, 1st order")):
        np.testing.assert_array_equal(line(axes, label), np.stack([LENGTHS.lengths, predicted[order]], 1))
    (points,) = axes.containers
    np.testing.assert_array_equal(points.lines[0].get_xydata(), np.stack([LENGTHS.lengths, LENGTHS.loss], 1))
    segments = np.array(points.lines[2][0].get_segments())
    np.testing.assert_allclose(np.ptp(segments[:, :, 1], axis=1), 4 * LENGTHS.standard_error)
    shown = texts(figure)
    assert {"100", "400", "1600", "trained at 400", "measured, ± 2 s.e."} <= set(shown)
    assert "Contexts 4 times as long lower the loss from 2.2 to 0.7" in shown


@pytest.mark.parametrize(
    ("loss", "lengths", "title"),
    [
        ([2.0, 2.2, 2.25], [100, 400, 1600], "Longer contexts change the loss by less than its error"),
        ([2.0, 2.2, 3.0], [100, 400, 1600], "Contexts 4 times as long raise the loss from 2.2 to 3"),
        ([2.0, 2.2, 3.0], [100, 200, 400], "Loss at other context lengths"),
        ([0.0, 2.2, 3.0], [100, 200, 400], "Loss at other context lengths"),
    ],
)
def test_titles_of_lengths(runs: dict[str, LoadedRun], loss: list[float], lengths: list[int], title: str) -> None:
    curve = LengthCurve(np.array(lengths), np.array(loss), np.full(3, 0.03))
    assert title in texts(lengths_figure(runs["demo"], curve, {}))


def test_heads_have_the_same_colours_everywhere(runs: dict[str, LoadedRun]) -> None:
    for name in ("demo", "single-task", "many"):
        values, weights = values_figure(runs[name]), weights_figure(runs[name])
        of_values = [entry.get_color() for entry in values.axes[0].get_lines() if entry.get_label().startswith("head")]
        of_weights = [axes.title.get_color() for axes in weights.axes if axes.get_title()]
        assert [tuple(np.atleast_1d(c)) for c in of_values] == [tuple(np.atleast_1d(c)) for c in of_weights]
        assert len({tuple(np.atleast_1d(c)) for c in of_values}) == runs[name].config.n_heads


def test_what_does_not_apply_is_left_out(runs: dict[str, LoadedRun]) -> None:
    loaded = runs["no-ode"]
    assert not loaded.trajectories
    assert not any("ODE" in text for name in FIGURES for text in texts(FIGURES[name](loaded)))
    summary = loaded.summary
    assert summary is not None
    assert summary["theory"]["one_head_per_task"] is None  # for fewer heads than tasks
    assert not any("per task" in text for text in texts(loss_figure(loaded)))


def test_nothing_learnt(runs: dict[str, LoadedRun]) -> None:
    loaded = runs["short"]
    summary = loaded.summary
    assert summary is not None
    assert summary["allocation"] == [-1, -1, -1]
    figure = loss_figure(loaded)
    assert not {"warm-up", "emergence", "convergence"} & set(texts(figure))
    assert "No task is learnt" in " ".join(texts(figure))
    assert not figure.axes[0].patches
    allocation = allocation_figure(loaded)
    assert not allocation.axes[0].patches
    shown = texts(allocation)
    assert "No head has taken any of the tasks" in shown
    assert "observed winner" not in shown
    assert shown.count("–") == 6  # the ODE's and the run's times


def changed(loaded: LoadedRun, allocation: list[int], shares: list[list[float]]) -> LoadedRun:
    """The run with other final shares (H, I) and winners."""
    assert loaded.summary is not None
    mu = np.array(loaded.metrics["mu"])
    mu[-1] = np.array(shares)
    omega = np.array(loaded.metrics["omega"])
    omega[-1] = 1.0
    metrics = MappingProxyType({**loaded.metrics, "mu": mu, "omega": omega})
    return replace(loaded, metrics=metrics, summary={**loaded.summary, "allocation": allocation})


@pytest.mark.parametrize(
    ("allocation", "shares", "title"),
    [
        ([0, 1, 0], [[0.9, 0, 0.9], [0, 0.9, 0], [0, 0, 0]], "Some heads serve several tasks"),
        ([2, 2, 2], [[0, 0, 0], [0, 0, 0], [0.9, 0.9, 0.9]], "One head serves all tasks"),
        ([0, -1, 2], [[0.9, 0, 0], [0, 0, 0], [0, 0, 0.9]], "2 of 3 tasks are taken by one head each"),
        ([0, -1, 0], [[0.9, 0, 0.9], [0, 0, 0], [0, 0, 0]], "2 of 3 tasks are taken, all by one head"),
        ([-1, 1, -1], [[0, 0, 0], [0, 0.9, 0], [0, 0, 0]], "1 of 3 tasks is taken by one head"),
        (
            [0, 1, 2],
            [[0.5, 0.3, 0.1], [0.3, 0.5, 0.3], [0.1, 0.1, 0.5]],
            "Heads share the tasks, with one that leads in each",
        ),
        ([0, 1, 2], [[0.9, 0, -0.2], [0, 0.9, 0], [0, 0, 1.1]], "Each task is taken by a head of its own"),
    ],
)
def test_titles_say_what_happened(
    runs: dict[str, LoadedRun], allocation: list[int], shares: list[list[float]], title: str
) -> None:
    loaded = changed(runs["demo"], allocation, shares)
    assert loaded.summary is not None
    predicted = loaded.summary["predicted_allocation"]
    right = sum(a == p for a, p in zip(allocation, predicted))
    assert title in texts(values_figure(loaded))
    assert f"{title} ({right} of 3 as predicted)" in texts(allocation_figure(loaded))


def test_only_so_many_tasks_are_drawn_and_the_title_says_so(runs: dict[str, LoadedRun]) -> None:
    figure = values_figure(runs["many"])
    assert len(figure.axes) == 16
    assert any("(first 8 of 9 tasks)" in text for text in texts(figure))


def test_one_record(runs: dict[str, LoadedRun]) -> None:
    loaded = runs["short"]
    first = replace(loaded, metrics={name: values[:1] for name, values in loaded.metrics.items()}, trajectories={})
    for draw in FIGURES.values():
        drawn(draw(first))


def test_files(runs: dict[str, LoadedRun]) -> None:
    for name in RUNS:
        loaded = runs[name]
        files = sorted((loaded.path / "figures").iterdir())
        assert [file.name for file in files] == [f"{name}.png" for name in sorted(FIGURES)]
        for file in files:
            pixels = imread(file)
            assert min(pixels.shape[:2]) > 400
            assert 0.001 < (pixels[::2, ::2, :3].min(-1) < 0.6).mean() < 0.7  # ink


def test_same_run_same_bytes_whatever_the_callers_settings(runs: dict[str, LoadedRun]) -> None:
    path = runs["demo"].path
    before = {file.name: file.read_bytes() for file in (path / "figures").iterdir()}
    settings = {"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "black", "savefig.dpi": 10}
    with matplotlib.rc_context(settings):
        saved = save_figures(load_run(path))
        assert all(matplotlib.rcParams[key] == value for key, value in settings.items())
    assert {file.name: file.read_bytes() for file in saved} == before
    assert not any(b"Software" in data or b"tIME" in data for data in before.values())


def test_pyplot_is_not_loaded() -> None:
    code = "import sys, mhicl_fast.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_bad_input(runs: dict[str, LoadedRun], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="run must be a LoadedRun, as load_run gives, got PosixPath"):
        save_figures(tmp_path)  # type: ignore[arg-type]
    for draw in (save_figures, *FIGURES.values()):
        with pytest.raises(ValueError, match="figures are of finished runs"):
            draw(replace(runs["short"], summary=None))
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(StorageError, match="figures"):
        save_figures(replace(runs["short"], path=tmp_path))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.2)), max_size=5),
)
def test_spread_keeps_labels_apart(labels: list[tuple[float, float]]) -> None:
    centres, sizes = [c for c, _ in labels], [s for _, s in labels]
    places = spread(centres, sizes, 0.0, 1.0)
    assert places.shape == (len(labels),)
    for place, size in zip(places, sizes):
        assert size / 2 - 1e-9 <= place <= 1 - size / 2 + 1e-9
    for (p, s, c), (q, r, d) in itertools.combinations(zip(places, sizes, centres), 2):
        assert abs(p - q) >= (s + r) / 2 - 1e-9
        assert c == d or (p < q) == (c < d)


def test_spread_moves_no_more_than_needed() -> None:
    np.testing.assert_allclose(spread([0.2, 0.8, 0.5], [0.1] * 3, 0, 1), [0.2, 0.8, 0.5])
    np.testing.assert_allclose(spread([0.5, 0.5], [0.1, 0.1], 0, 1), [0.45, 0.55])
    np.testing.assert_allclose(spread([0.0, 0.9], [0.2, 0.2], 0, 1), [0.1, 0.9])
    np.testing.assert_allclose(spread([0.5, 0.5, 0.5], [1.0] * 3, 0, 1), [0.5, 1.5, 2.5])  # do not fit


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.9, 31, 9, [1, 2, 5, 10, 20]),
        (0.3, 300, 4, [1, 10, 100]),
        (1, 1e6, 4, [1, 100, 10_000, 1_000_000]),
        (3, 4, 5, []),
    ],
)
def test_round_numbers(low: float, high: float, most: int, expected: list[float]) -> None:
    assert round_numbers(low, high, most) == pytest.approx(expected)
