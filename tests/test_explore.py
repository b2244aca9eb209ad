"""The page of sliders without a browser: scenarios, what is said of them, and what is drawn."""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mhicl_fast.explore import ExploreError, Scenario, ScenarioError, serve, solve_scenario
from mhicl_fast.explore.solution import solve_to
from mhicl_fast.explore.wording import cautions, code, headline, key_numbers, theory_lines, winners
from mhicl_fast.spectral import half_learnt, plateau_and_escape, predict_allocation, solve, theory

ROOT = Path(__file__).resolve().parent.parent

ESCAPE = Scenario(n_heads=4, flow="combined")
CORNERS = [
    Scenario(n_tasks, n_heads, length, noise, covariates, start_size=size, flow=flow, order=order)
    for (n_tasks, n_heads), (length, noise, covariates, size), (flow, order) in itertools.product(
        [(1, 1), (6, 1), (2, 8)],
        [(10, 0.0, 1, 1e-4), (10, 3.0, 50, 1.0), (10_000, 0.0, 50, 1e-4), (10_000, 3.0, 1, 1.0), (300, 0.1, 2, 0.01)],
        [("balanced", "leading"), ("combined", "first"), ("unbalanced", "first")],
    )
]


@pytest.fixture(scope="module")
def document():  # type: ignore[no-untyped-def]
    pytest.importorskip("bokeh", reason="the page needs Bokeh")
    from bokeh.document import Document

    return Document


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tasks": 0}, "n_tasks must lie between 1 and 6, got 0"),
        ({"n_heads": 9}, "n_heads must lie between 1 and 8"),
        ({"n_covariates": 51}, "n_covariates must lie between 1 and 50"),
        ({"context_length": 0}, "context_length must be positive"),
        ({"start_size": 0.0}, "start_size must be positive"),
        ({"start_size": float("nan")}, "start_size must be positive"),
        ({"imbalance": 1.0}, "imbalance must lie between 0 and 1"),
        ({"flow": "steep"}, "flow must be one of balanced, combined, unbalanced, got 'steep'"),
        ({"start": "big"}, "start must be one of"),
        ({"order": "second"}, "order must be one of"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenario(**changes)


def test_negative_noise_is_a_scenario_error() -> None:
    with pytest.raises(ScenarioError, match="noise_std"):
        solve_scenario(Scenario(noise_std=-1.0))


def test_starts() -> None:
    mu, omega = Scenario().start_values()
    assert mu.shape == omega.shape == (3, 3)
    again, other = Scenario().start_values()[0], Scenario(seed=1).start_values()[0]
    np.testing.assert_array_equal(mu, again)
    assert not np.array_equal(mu, other)
    assert mu.min() >= 0.01 / 4 - 1e-15
    assert mu.max() <= 0.01 * 4 + 1e-15
    assert np.ptp(Scenario(start="equal").start_values(), axis=(1, 2)) == pytest.approx(0)
    own = Scenario(n_heads=2, start="own").start_values()[0]
    np.testing.assert_allclose(own, 0.01 * np.array([[1.5, 1, 1.5], [1, 1.5, 1]]))
    shared = Scenario(start="shared").start_values()[0]
    np.testing.assert_allclose(shared, 0.01 * np.array([[1.5] * 3, [1] * 3, [1] * 3]))


def test_unbalanced_starts_multiply_to_the_balanced_one() -> None:
    scenario = Scenario(flow="unbalanced", imbalance=0.3)
    (v_o, v_v), (kappa_q, kappa_k) = scenario.start_arguments()
    mu, omega = replace(scenario, flow="balanced").start_arguments()
    np.testing.assert_allclose(v_o * v_v, mu, rtol=1e-14)
    np.testing.assert_allclose(kappa_q * kappa_k, omega, rtol=1e-14)
    ratio = np.sqrt(v_o / v_v)
    assert 1.1 < ratio.max() <= 1.3
    assert 0.7 <= ratio.min() < 0.9


@pytest.mark.parametrize("scenario", CORNERS, ids=str)
def test_extremes_solve_or_say_why(scenario: Scenario) -> None:
    try:
        solution = solve_scenario(scenario)
    except ScenarioError as error:
        reason = str(error)
    else:
        reason = None
    if reason is not None:
        assert scenario.order == "first"
        assert re.search(r"first.order", reason)
        return
    times = solution.times(100)
    loss = solution.trajectory(times).loss
    assert np.isfinite(loss).all()
    assert (np.diff(times) > 0).all()
    assert times[-1] == solution.t_last <= solution.trajectory.t[-1]
    text = headline(solution) + "".join(cautions(solution)) + str(key_numbers(solution)) + str(winners(solution))
    assert "nan" not in text
    assert len(winners(solution)) == scenario.n_tasks
    assert theory_lines(solution)["bayes"][1] == theory(scenario.task(), scenario.n_heads).bayes.loss


@pytest.mark.parametrize("scenario", [Scenario(), ESCAPE, Scenario(flow="unbalanced", order="first")], ids=str)
def test_numbers_are_those_of_solve(scenario: Scenario) -> None:
    """The code that the page shows gives the same to the bit, the solver's own tolerance the same to the eye."""
    solution = solve_scenario(scenario)
    names: dict[str, object] = {}
    exec(code(solution), names)
    again = names["trajectory"]
    np.testing.assert_array_equal(again.t, solution.trajectory.t)
    np.testing.assert_array_equal(again.loss, solution.trajectory.loss)
    exact = solve(
        scenario.task(),
        *scenario.start_arguments(),
        parameters={"balanced": "factored"}.get(scenario.flow, scenario.flow),
        order=scenario.order,
        t_end=float(solution.trajectory.t[-1]),
    )
    np.testing.assert_allclose(solution.observed.time, half_learnt(exact.t, exact.shares()), rtol=5e-4)
    np.testing.assert_allclose(solution.trajectory.loss[-1], exact.loss[-1], rtol=1e-6)
    _, escape = plateau_and_escape(exact.t, exact.loss, solution.reference.loss)
    assert (escape is None) == (solution.escape is None)
    if escape is not None:
        assert solution.escape.time == pytest.approx(escape.time, rel=5e-4)


def test_default_is_one_head_per_task() -> None:
    solution = solve_scenario(Scenario())
    assert solution.trajectory.loss[-1] == pytest.approx(0.8247, abs=1e-4)
    assert solution.settled
    assert solution.escape is None
    assert headline(solution) == (
        "Each task is taken by a head of its own. The loss settles at 0.825, the limit with one head per task."
    )
    assert cautions(solution) == []
    predicted = predict_allocation(Scenario().task(), *Scenario().start_values())
    np.testing.assert_array_equal(solution.predicted.head, predicted.head)
    np.testing.assert_array_equal(solution.observed.head, predicted.head)
    np.testing.assert_allclose(solution.observed.time, predicted.time, rtol=0.02)


def test_escape() -> None:
    solution = solve_scenario(ESCAPE)
    assert solution.log_time
    assert solution.plateau is not None
    assert solution.escape is not None
    assert solution.plateau.end < solution.escape.time < solution.t_last
    assert "escapes at t = " in headline(solution)
    assert {"plateau", "escape"} < {entry.name for entry in key_numbers(solution)}
    limit, infimum = (getattr(solution.theory, name).loss for name in ("one_head_per_task", "best_multi_head"))
    assert infimum < solution.trajectory.loss[-1] < infimum + 0.02 * (limit - infimum)


def test_cautions() -> None:
    def said(**changes: object) -> str:
        return " ".join(cautions(solve_scenario(Scenario(**changes))))

    assert "is an expansion for context lengths in the hundreds" in said(order="first", context_length=200)
    assert "fewer heads than tasks (2 heads, 3 tasks)" in said(n_heads=2)
    assert "Several tasks favour one head" in said(start="shared")
    equal = said(start="equal")
    assert "no winner is predicted" in equal
    assert "rounding alone" in equal
    assert "The start is not small" in said(start_size=1.0)
    assert "still moves" in said(n_tasks=6, n_heads=1, context_length=10, noise_std=3.0, n_covariates=50)
    assert said(flow="unbalanced") == ""


def test_first_order_compares_with_first_order() -> None:
    lines = theory_lines(solve_scenario(Scenario(order="first")))
    leading = theory_lines(solve_scenario(Scenario()))
    assert lines["one_head_per_task"] == ("one head per task", pytest.approx(0.98541, abs=1e-4))
    assert leading["one_head_per_task"] == ("one head per task", pytest.approx(0.82468, abs=1e-4))
    assert lines["best_multi_head"][0] == leading["best_multi_head"][0] + " *"  # there is none of the first order
    short = solve_scenario(Scenario(order="first", context_length=100))
    assert theory_lines(short)["one_head_per_task"][0] == "one head per task *"


@pytest.mark.parametrize("flow", ["balanced", "combined", "unbalanced"])
@pytest.mark.parametrize("start", ["random", "own", "shared"])
def test_picture_shows_emergence_and_the_limit(flow: str, start: str) -> None:
    solution = solve_scenario(Scenario(start=start, flow=flow, n_heads=4))
    loss = solution.trajectory.loss
    assert solution.trajectory(solution.t_last).loss == pytest.approx(loss[-1], rel=0.012)
    scale = np.log if solution.log_time else np.asarray
    times = solution.times(2000)[-2000:]
    at = solution.trajectory(times).loss
    moving = scale(times)[(at < loss[0] - 0.01 * np.ptp(loss)) & (at > 1.01 * loss[-1])]
    assert np.ptp(moving) / np.ptp(scale(times)) > 0.25


def test_trajectory_reaches_no_further_than_asked() -> None:
    assert solve_to(Scenario(), 12.5).t[-1] == 12.5


def test_what_was_solved_is_kept_where_it_cannot_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fails_later(scenario: Scenario, t_end: float):  # type: ignore[no-untyped-def]
        asked.append(t_end)
        if len(asked) > 1:
            raise RuntimeError("the flow could not be followed past t = 1.")
        return solve_to(scenario, 10.0)  # before anything is learnt

    monkeypatch.setattr("mhicl_fast.explore.solution.solve_to", fails_later)
    solution = solve_scenario(Scenario())
    assert asked[1] == pytest.approx(30 * asked[0], rel=0.05)
    assert not solution.settled
    assert solution.trajectory.t[-1] == 10
    assert cautions(solution)[0] == "the flow could not be followed past t = 1."
    assert headline(solution).startswith("No task is learnt by t = 10.")


def test_page_draws_the_trajectory(document) -> None:  # type: ignore[no-untyped-def]
    from mhicl_fast.explore.page import Page

    page = Page(document())
    solution = page.solution
    curve = page.loss.curve.data
    np.testing.assert_array_equal(curve["loss"], solution.trajectory(curve["t"]).loss)
    for task in range(3):
        share, mu, omega = (page.panels.curves[row, task].data for row in ("share", "mu", "omega"))
        state = solution.trajectory(mu["xs"][0])
        np.testing.assert_array_equal(np.transpose(mu["ys"]), state.mu[..., task])
        np.testing.assert_array_equal(np.transpose(omega["ys"]), state.omega[..., task])
        np.testing.assert_allclose(np.transpose(share["ys"][:-1]), (state.mu * state.omega)[..., task], rtol=1e-12)
        np.testing.assert_allclose(share["ys"][-1], np.sum(share["ys"][:-1], 0), rtol=1e-12)
        assert mu["colour"] == omega["colour"] == share["colour"][:-1]  # a head has one colour
    start, end = page.loss.phases.data["start"], page.loss.phases.data["end"]
    np.testing.assert_array_equal(start[1:], [solution.phases.warmup_end, solution.phases.emergence_end])
    np.testing.assert_array_equal(end[:2], start[1:])
    np.testing.assert_allclose(
        page.loss.theory.data["loss"], [loss for _, loss in theory_lines(solution).values()], rtol=0
    )
    assert "0.8247" in page.numbers.text
    assert "scenario = Scenario(" in page.call.text


def test_page_says_what_has_no_solution_and_recovers(document) -> None:  # type: ignore[no-untyped-def]
    from mhicl_fast.explore.page import Page

    page = Page(document(), Scenario(order="first", start_size=1.0, n_covariates=50))
    good, pictures = page.solution, page.loss.curve.data
    page.controls.show(Scenario(order="first", start_size=1.0, n_covariates=1))
    page.redraw()
    assert "This setting has no solution" in page.status.text
    assert "does not exist where 2 ω² ≥ 1" in page.status.text
    assert page.solution is good
    assert page.loss.curve.data is pictures
    assert page.numbers.styles["opacity"] == "0.3"
    page.controls.show(Scenario())
    page.redraw()
    assert page.solution.scenario == Scenario()
    assert page.numbers.styles["opacity"] == "1"


def test_a_defect_is_said_and_raised(document, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from mhicl_fast.explore import page as module

    page = module.Page(document())
    monkeypatch.setattr(module, "solve_scenario", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.redraw()
    assert "This is a defect of the page: ZeroDivisionError" in page.status.text
    assert page.status.tags == [2]


def test_controls_and_scenarios_are_the_same(document) -> None:  # type: ignore[no-untyped-def]
    from mhicl_fast.explore.controls import EXAMPLES, Controls

    changes = []
    controls = Controls(Scenario(), lambda: changes.append(1))
    assert controls.scenario() == Scenario()
    for scenario in (*EXAMPLES.values(), Scenario(6, 8, 10, 3.0, 50, "equal", 1.0, 99, "unbalanced", 0.5, "first")):
        controls.show(scenario)
        assert controls.scenario() == scenario
        assert controls.widgets["imbalance"].visible == (scenario.flow == "unbalanced")
    assert changes
    for name, widget in controls.widgets.items():
        for category in getattr(widget, "categories", []):
            widget.value = category
            assert f"{getattr(controls.scenario(), name):g}" == category


def test_corners_can_be_drawn(document) -> None:  # type: ignore[no-untyped-def]
    from mhicl_fast.explore.page import Page

    page = Page(document())
    for scenario in CORNERS[::6]:
        page.controls.show(scenario)
        page.redraw()
        assert page.document.to_json()
        if "no solution" in page.status.text:
            continue
        assert page.solution.scenario == scenario
        loss, in_view = page.loss.curve.data["loss"], page.loss.figure.y_range
        assert in_view.start < np.min(loss) <= np.max(loss) < in_view.end
        visible = [index for index, figure in page.panels.figures.items() if figure.visible]
        assert len(visible) == 3 * scenario.n_tasks


def test_port_that_cannot_be_had() -> None:
    pytest.importorskip("bokeh", reason="the page needs Bokeh")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ExploreError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            serve(port=port, open_browser=False)
    for port in (-1, 70_000):
        with pytest.raises(ExploreError, match=f"a port lies between 0, for a free one, and 65535, got {port}"):
            serve(port=port, open_browser=False)


def test_without_bokeh() -> None:
    program = """
import sys
sys.modules["bokeh"] = None
from mhicl_fast.explore import ExploreError, Scenario, serve, solve_scenario
assert solve_scenario(Scenario()).settled
try:
    serve()
except ExploreError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == 'the page needs Bokeh: pip install "mhicl_fast[explore]"\n'
