"""Tables for the terminal, the names and numbers in them, and what a summary says about heads."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from mhicl_fast import spectral
from mhicl_fast.presets import PRESETS, preset
from mhicl_fast.spectral.roles import head_roles
from mhicl_fast.train import run
from mhicl_fast.train.odes import solve_ode
from mhicl_fast.train.summary import plateau_and_escape, prediction
from mhicl_fast.train.table import align, ode_table, results_table, theory_table
from mhicl_fast.train.wording import (
    STATES,
    count,
    number,
    ratio_label,
    several,
    shared_heads,
    state_label,
    uncertain,
    whole,
)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mhicl_fast.plots.save_figures", lambda run: [])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 4, "0"),
        (1.0, 4, "1"),
        (400.0, 3, "400"),
        (1234567.0, 3, "1234567"),
        (2.5, 4, "2.500"),
        (99.996, 4, "100.0"),
        (0.99996, 4, "1.000"),
        (-0.00012345, 3, "−0.000123"),
        (1.2345e-5, 3, "1.23e−05"),
        (-2.0e9, 2, "−2.0e+09"),
        (1234567.8, 3, "1230000"),
        (math.inf, 4, "∞"),
        (-math.inf, 4, "−∞"),
        (math.nan, 4, "–"),
    ],
)
def test_numbers(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.26795, 0.00702, "2.2679 ± 0.0070"),
        (1234.5, 56.7, "1234 ± 57"),
        (-0.5, 0.012, "−0.500 ± 0.012"),
        (0.030771406, 6.4e-7, "0.030771 ± 6e−07"),
        (2.5, 0.0, "2.500"),
        (0.0, 0.1, "0.00 ± 0.10"),
    ],
)
def test_numbers_with_errors(value: float, error: float, text: str) -> None:
    assert uncertain(value, error) == text


def test_rows_of_numbers_and_counts() -> None:
    assert several([0.5, 0.5, 0.50001]) == "0.5000 each"
    assert several([1.0, 2.5], 2) == "1, 2.5"
    assert several(np.arange(10.0), most=3) == "0, 1, 2, …"
    assert several([]) == ""
    assert (count(1, "head"), count(0, "head"), count(12000, "prompt")) == ("1 head", "0 heads", "12\u202f000 prompts")
    assert whole(1433600) == "1\u202f433\u202f600"
    assert align([("a", "b"), ("long", "c", "d"), ("x",)]) == "a     b\nlong  c  d\nx"


@pytest.mark.parametrize("name", PRESETS)
def test_theory_table_has_every_state_or_its_reason(name: str) -> None:
    config = preset(name)
    table = theory_table(config.task(), config.n_heads)
    theory = spectral.theory(config.task(), config.n_heads).to_dict()
    states, _, left_out = table.partition("left out")
    for state, label in STATES.items():
        if theory[state] is None:
            (line,) = [line for line in left_out.splitlines() if line.startswith(label + "  ")]
            assert line.endswith(theory["notes"][state].replace("one_head_per_task", STATES["one_head_per_task"]))
        else:
            line = next(line for line in states.splitlines() if line.startswith(label + "  "))
            cells = re.split(r"  +", line)
            error = theory[state].get("standard_error", 0.0)
            assert cells[1] == uncertain(theory[state]["loss"], error)
            assert cells[2] == uncertain(theory[state]["excess"], error)
            assert cells[3] == several(theory[state]["task_loss"])
            assert cells[6].startswith(theory[state]["source"])
            if theory[state].get("omega") is not None:
                root = np.sqrt(config.task().support_sizes.numpy())
                assert cells[4] == several(root * np.array(theory[state]["omega"]))
                assert cells[5] == several(theory[state]["mu"])
    for ratio, value in theory["ratios"].items():
        assert re.search(rf"^{re.escape(ratio_label(ratio))}  +{re.escape(number(value))}$", table, re.MULTILINE)


def test_ratios_are_named() -> None:
    assert ratio_label("one_head_per_task_over_best_multi_head") == "one head per task / best multi-head"
    assert ratio_label("best_multi_head_over_bayes") == "best multi-head / Bayes risk"


def test_shared_heads_of_an_allocation() -> None:
    assert shared_heads([2, -1, 0, 2, -1, 0, 1]) == {0: [2, 5], 2: [0, 3]}
    assert shared_heads([-1, -1, 0]) == {}


def test_the_infimum_is_named_as_what_is_known_of_it() -> None:
    assert state_label("best_multi_head", {"source": "closed form"}) == "best multi-head (infimum)"
    assert state_label("single_head", {"source": "numerical"}) == "single head"
    overlapping = preset("demo").with_settings(["dim_x=6", "n_tasks=2", "n_heads=2", "support=0:4,2:6"])
    table = theory_table(overlapping.task(), 2)
    assert re.search(r"^best multi-head found \(upper bound on the infimum\) .* numerical$", table, re.MULTILINE)
    assert "best multi-head (infimum)" not in table.split("notes")[0]


def test_a_plateau_is_not_told_from_the_loss_of_adam_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"plateau": None, "escape": None, "asked": True}
    monkeypatch.setattr("mhicl_fast.train.summary.plateau_and_escape", lambda *_: seen)
    config = preset("superposition").with_settings(["steps=2", "eval_prompts=8", "n_prompts=8"])
    assert "asked" not in (run(config, tmp_path / "adam").summary or {})
    follows = preset("demo").with_settings(["dim_x=6", "steps=2", "eval_prompts=8", "n_prompts=8"])
    assert "asked" in (run(follows, tmp_path / "flow").summary or {})


def test_theory_table_refuses_what_theory_refuses() -> None:
    with pytest.raises(ValueError, match="n_heads must be a positive integer"):
        theory_table(preset("demo").task(), 0)


def test_ode_table_compares_predicted_with_observed_winners() -> None:
    config = preset("demo").with_settings(["dim_x=12"])
    trajectory = solve_ode(config, "leading", 60.0)
    table = ode_table(config, "leading", trajectory)
    predicted = prediction(config)
    observed = spectral.half_learnt(trajectory.t, trajectory.shares())
    for task in range(3):
        head, time = predicted["predicted_allocation"][task], predicted["predicted_times"][task]
        assert f"predicted by head {head} at {time:.4g}; observed by head {head} at {observed[task]:.4g}" in table
        assert time == pytest.approx(observed[task], rel=0.05)
    assert "plateau" in table
    assert "escape" not in table


def test_ode_table_shows_plateau_and_escape_and_why_nothing_is_predicted() -> None:
    config = preset("demo").with_settings(["dim_x=12", "n_tasks=2", "parameters=combined", "start_size=0.001"])
    trajectory = solve_ode(config, "first", 40.0)
    table = ode_table(config, "first", trajectory)
    seen = plateau_and_escape(trajectory.t, trajectory.loss, spectral.theory(trajectory.task, 3), "first")
    assert f"at {seen['escape']['time']:.4g}, to a loss of {trajectory.loss[-1]:.4f}" in table
    assert "predicted by no single head at" in table
    overlapping = preset("demo").with_settings(["dim_x=6", "n_tasks=2", "n_heads=2", "support=0:4,2:6"])
    table = ode_table(overlapping, "leading", solve_ode(overlapping, "leading", 5.0))
    assert "no prediction: tasks that share covariates drive each other from the start" in table


def test_summary_tells_the_roles_of_heads_and_their_attention(tmp_path: Path) -> None:
    config = preset("demo").with_settings(
        ["dim_x=12", "n_heads=2", "estimator=asymptotic", "start_size=0.05", "steps=300", "eval_prompts=64"]
    )
    finished = run(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    task, (mu, omega) = config.task(), (finished.metrics[name][-1] for name in ("mu", "omega"))
    roles = head_roles(task, mu, omega)
    assert summary["head_roles"]["winner"] == summary["allocation"] == roles.winner
    shared = shared_heads(summary["allocation"])
    assert summary["head_roles"]["shared"] == {str(head): tasks for head, tasks in shared.items()}
    assert len(shared) == 1
    assert summary["head_roles"]["superposed"] == {str(head): tasks for head, tasks in roles.superposed.items()}
    assert summary["head_roles"]["pairs"] == [list(pair) for pair in roles.pairs]
    assert summary["head_roles"]["cost"] == pytest.approx(roles.cost)
    expected = 400 * np.prod((1 + 2 * omega**2) ** -2.0, axis=1)
    assert summary["predicted_effective_examples"] == pytest.approx(expected.tolist())
    assert summary["effective_examples"] == pytest.approx(expected.tolist(), rel=0.2)
    table = results_table(finished)
    assert "theory: one head per task, first order    none: there are fewer heads than tasks" in table
    assert "is shared by tasks" in table


def test_summary_without_identity_covariance(tmp_path: Path) -> None:
    settings = ["dim_x=6", "covariance=ar:0.3", "estimator=sampled", "n_prompts=16", "steps=2", "eval_prompts=16"]
    summary = run(preset("demo").with_settings(settings), tmp_path).summary
    assert summary is not None
    assert summary["head_roles"] is summary["predicted_effective_examples"] is None
    assert summary["prediction_note"] == "the ODE is for covariates whose covariance is the identity"
