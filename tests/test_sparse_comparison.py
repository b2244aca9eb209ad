"""The comparison of the algorithm with other estimators: its numbers against theory, its files and its settings."""

import csv
import json
import math
import sys
from itertools import pairwise

import pytest
import torch
from matplotlib.figure import Figure

from mhicl_fast.cli import main
from mhicl_fast.sparse.comparison import ComparisonConfig, compare, comparison_table, figures
from mhicl_fast.sparse.comparison.curves import numbers_of_heads
from mhicl_fast.sparse.comparison.estimators import (
    BEST_LASSO,
    BEST_RIDGE,
    CONSTANT,
    MINIMUM_NORM,
    RIDGE,
    SUPPORT,
    ZERO,
    algorithm,
    descent,
)
from mhicl_fast.sparse.comparison.measuring import STEP_FACTORS, measure
from mhicl_fast.sparse.comparison.regimes import verdict
from mhicl_fast.sparse.comparison.theory import parts_of_theory, theory_rows
from mhicl_fast.sparse.estimators import algorithm as algorithms
from mhicl_fast.sparse.estimators import baselines
from mhicl_fast.tasks import SparseRegression
from mhicl_fast.train.settings import ConfigError

SMALL = [
    "dim_x=5",
    "sparsity=2",
    "context_length=8",
    "sparsities=2",
    "noise_variances=0,0.5",
    "step_counts=1,4",
    "steps=3",
    "curve_lengths=1,5,9",
    "curve_sparsities=1,5",
    "curve_dims=2,4",
    "curve_noises=0,1",
    "curve_steps=0,2",
    "map_lengths=4,12",
    "map_sparsities=1,4",
    "map_noises=0,0.5",
    "theory_lengths=6",
    "theory_sparsities=2",
    "theory_draws=20",
    "n_prompts=40",
    "curve_prompts=30",
    "map_prompts=20",
    "tuning_prompts=25",
]
SMALL_LISTS = ["sparsities=2", "curve_sparsities=2", "curve_dims=4"]


def _config():
    return ComparisonConfig().with_settings(SMALL)


def _is_near(measured, estimator, expected):
    mean, error = measured.mean(estimator)
    return abs(mean - expected) < 5 * error


def test_risks_that_theory_knows():
    """w has s coefficients of variance 1; least squares on k covariates has the risk σ²k/(n − k − 1)."""
    task = SparseRegression(8, 3, 20, noise_variance=0.7)
    measured = measure(task, (ZERO, MINIMUM_NORM, SUPPORT), n_prompts=4000, tuning_prompts=10, seed=3)
    assert _is_near(measured, ZERO, 3)
    assert _is_near(measured, MINIMUM_NORM, 0.7 * 8 / (20 - 8 - 1))
    assert _is_near(measured, SUPPORT, 0.7 * 3 / (20 - 3 - 1))


def test_risks_with_correlated_covariates():
    covariance = torch.tensor([[1.0, 0.6, 0], [0.6, 2.0, 0], [0, 0, 0.5]], dtype=torch.float64)
    task = SparseRegression(3, 3, 20, noise_variance=0.7, covariance=covariance)
    measured = measure(task, (ZERO, MINIMUM_NORM), n_prompts=4000, tuning_prompts=10, seed=3)
    assert _is_near(measured, ZERO, float(covariance.trace()))
    assert _is_near(measured, MINIMUM_NORM, 0.7 * 3 / (20 - 3 - 1))


def test_each_estimator_is_measured_on_the_same_prompts():
    task = SparseRegression(6, 2, 10, noise_variance=0.3)
    measured = measure(task, (algorithm(5), descent(5, "c = 1"), RIDGE), n_prompts=50, tuning_prompts=20, seed=4)
    prompts = task.sample(50, n_queries=0, seed=4, dtype=torch.float64)
    expected = {
        algorithm(5): algorithms.preprocessed_descent(prompts.x, prompts.y, 5),
        descent(5, "c = 1"): algorithms.gradient_descent(prompts.x, prompts.y, 5),
        RIDGE: baselines.ridge(prompts.x, prompts.y, 0.3 * 6 / 2),
    }
    for estimator, beta in expected.items():
        risks = baselines.excess_risk(beta, prompts.coefficients)
        torch.testing.assert_close(measured.risks[estimator], risks)
    ours, theirs = (measured.risks[estimator] for estimator in (algorithm(5), RIDGE))
    mean, error = measured.difference(algorithm(5), RIDGE)
    assert mean == pytest.approx(float((ours - theirs).mean()))
    assert error == pytest.approx(float((ours - theirs).std()) / math.sqrt(50))


def test_risk_falls_with_the_number_of_heads():
    """On the same prompts; with one for each covariate it is that of the algorithm."""
    task = SparseRegression(12, 3, 30, noise_variance=0.4)
    numbers = numbers_of_heads(12)
    assert numbers == [1, 2, 4, 8, 12]
    estimators = [algorithm(10, heads=heads) for heads in numbers]
    measured = measure(task, [*estimators, algorithm(10)], n_prompts=2000, tuning_prompts=10, seed=5)
    for fewer, more in pairwise(estimators):
        mean, error = measured.difference(fewer, more)
        assert mean > 4 * error
    torch.testing.assert_close(measured.risks[estimators[-1]], measured.risks[algorithm(10)])
    prompts = task.sample(2000, n_queries=0, seed=5, dtype=torch.float64)
    beta = algorithms.preprocessed_descent(prompts.x, prompts.y, 10, heads=4)
    expected = baselines.excess_risk(beta, prompts.coefficients)
    torch.testing.assert_close(measured.risks[algorithm(10, heads=4)], expected)


def test_what_is_best_was_chosen_on_other_prompts():
    """The choice depends on the prompts for tuning, and not on those measured."""
    task = SparseRegression(6, 2, 10, noise_variance=0.3)
    tuned = (BEST_RIDGE, BEST_LASSO, algorithm(5, "best c"), descent(5, "best c"), algorithm(5, CONSTANT))
    few, many = (measure(task, tuned, n_prompts=size, tuning_prompts=30, seed=4) for size in (10, 500))
    assert few.parameters == many.parameters
    other = measure(task, tuned, n_prompts=10, tuning_prompts=300, seed=4)
    assert other.parameters != few.parameters


def test_the_best_step_size_is_small_where_noise_is_large_and_steps_are_many():
    """More and smaller steps go almost the same way, and end where fewer do."""
    task = SparseRegression(16, 1, 10, noise_variance=1.6)
    estimators = [descent(count) for count in (10, 50, 100)]
    measured = measure(task, estimators, n_prompts=500, tuning_prompts=500, seed=5)
    risks = [measured.mean(estimator)[0] for estimator in estimators]
    assert max(risks) < 1.05 * min(risks)
    assert all(measured.parameters[estimator] > STEP_FACTORS[0] for estimator in estimators)


def test_a_penalty_is_best_on_the_prompts_for_tuning_and_not_on_those_measured():
    task = SparseRegression(6, 2, 10, noise_variance=0.3)
    chosen = measure(task, [BEST_RIDGE], n_prompts=30, tuning_prompts=30, seed=4).parameters[BEST_RIDGE]
    around = chosen * 10 ** torch.tensor([[-0.2], [0.0], [0.2]], dtype=torch.float64)
    best = []
    for step in (0, 1):
        prompts = task.sample(30, n_queries=0, seed=4, step=step, dtype=torch.float64)
        risks = baselines.excess_risk(baselines.ridge(prompts.x, prompts.y, around), prompts.coefficients)
        best.append(int(risks.mean(1).argmin()))
    measured, tuning = best
    assert tuning == 1
    assert measured != 1


def test_infinite_risks_are_named():
    task = SparseRegression(6, 2, 6, noise_variance=0.3)
    measured = measure(task, (MINIMUM_NORM, SUPPORT), n_prompts=10, tuning_prompts=10, seed=0)
    assert measured.mean(MINIMUM_NORM)[0] == math.inf
    assert math.isfinite(measured.mean(SUPPORT)[0])
    quiet = measure(task.replace(noise_variance=0.0), (MINIMUM_NORM,), n_prompts=10, tuning_prompts=10, seed=0)
    assert quiet.mean(MINIMUM_NORM)[0] < 1e-12


def test_theory_is_near_what_is_measured():
    """Gradient descent's risk is exact, and the algorithm's is too without noise."""
    lists = ["map_lengths=9", "map_sparsities=2", "map_noises=0,0.4", "theory_lengths=9", "theory_sparsities=2"]
    settings = ["dim_x=6", "sparsity=2", "theory_draws=4000", "steps=5", *lists, *SMALL_LISTS]
    config = ComparisonConfig().with_settings(settings)
    ticks = []
    quiet, noisy = theory_rows(config, lambda: ticks.append(1))
    assert len(ticks) == parts_of_theory(config)
    for row in (quiet, noisy):
        noise = row["noise_variance"]
        task = config.task(context_length=9, noise_variance=noise)
        measured = measure(task, [algorithm(5)], n_prompts=4000, tuning_prompts=10, seed=1)
        prompts = task.sample(4000, n_queries=0, seed=1, dtype=torch.float64)
        beta = algorithms.gradient_descent(prompts.x, prompts.y, 5, c=row["descent_c"])
        risks = baselines.excess_risk(beta, prompts.coefficients)
        error = math.hypot(float(risks.std()) / 4000**0.5, row["descent_error"])
        assert abs(float(risks.mean()) - row["descent_risk"]) < 4 * error
        for name in ("descent", "algorithm", "algorithm_gaussian"):
            assert row[f"{name}_risk"] == pytest.approx(row[f"{name}_bias"] + row[f"{name}_variance"])
        risk, error = measured.mean(algorithm(5))
        if noise == 0:
            assert abs(risk - row["algorithm_risk"]) < 4 * math.hypot(error, row["algorithm_error"])
        else:
            assert 0.6 * risk < row["algorithm_risk"] < risk


def test_verdicts():
    assert [verdict(difference, 0.1) for difference in (-0.21, -0.2, 0.0, 0.2, 0.21)] == [1, 0, 0, 0, -1]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "out"
    return folder, compare(_config(), folder)


def test_the_folder_holds_everything(compared):
    folder, results = compared
    stored = json.loads((folder / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    with open(folder / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(stored["table"])
    for row, known in zip(rows, stored["table"]):
        assert (row["risk"] == "") == (known["risk"] is None)
        assert known["risk"] is None or float(row["risk"]) == known["risk"]
    assert {path.stem for path in (folder / "figures").iterdir()} == set(figures.FIGURES)


def test_the_same_configuration_gives_the_same_bytes(compared, tmp_path):
    folder, _ = compared
    state = torch.random.get_rng_state()
    compare(_config(), tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), state)
    for path in [path for path in folder.rglob("*") if path.is_file() and path.name != "comparison.json"]:
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


def test_curves_and_map_hold_all_that_was_asked_for(compared):
    _, results = compared
    curves = results["curves"]
    assert set(curves) == {"context_length", "sparsity", "dim_x", "noise_variance", "steps", "heads"}
    for curve in curves.values():
        for line in curve["lines"]:
            assert len(line["risk"]) == len(line["standard_error"]) == len(curve["values"])
    support = next(line for line in curves["context_length"]["lines"] if line["method"] == "support")
    assert [risk is None for risk in support["risk"]] == [True, False, False]  # n = 1 is within one of s = 2
    assert len(results["map"]) == 2 * 2 * 2 * 2 * 2 * 3
    for row in results["map"]:
        assert row["verdict"] == verdict(row["difference"], row["standard_error"])


def test_nothing_to_learn_and_nothing_to_learn_it_from(tmp_path):
    """One covariate, no examples, no coefficient, no steps: finite or named all the same."""
    least = ["dim_x=1", "sparsity=0", "context_length=0", "sparsities=0,1", "steps=0", "noise_variances=0.5"]
    lists = ["curve_lengths=0,1", "curve_sparsities=0", "curve_dims=1", "curve_noises=0", "curve_steps=0"]
    maps = ["map_lengths=0,1", "map_sparsities=0,1", "map_noises=0,1", "theory_lengths=1", "theory_sparsities=0"]
    config = _config().with_settings([*least, *lists, *maps])
    results = compare(config, tmp_path / "out")
    assert all(math.isfinite(row["risk"]) for row in results["table"])
    assert "∞" not in comparison_table(config, results).partition("The step size")[0]


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_figures_need_the_results_alone(compared, name):
    folder, _ = compared
    stored = json.loads((folder / "results.json").read_text())
    assert isinstance(figures.FIGURES[name](stored), Figure)


def test_the_command_prints_the_table(compared, tmp_path, capsys):
    _, results = compared
    command = ["sparse", "algorithm", "--set", *SMALL, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr()
    out = printed.out
    assert out == f"{comparison_table(_config(), results)}\nfigures: {tmp_path / 'out' / 'figures'}\n"
    assert printed.err == ""  # quiet where there is no terminal
    assert "algorithm, c = 1, 4 steps" in out
    assert "s = 2  " in out
    assert "won / lost / undecided" in out
    assert main(command) == 2
    assert (
        f"holds this very comparison already; its page: mhicl sparse report {tmp_path}/out" in capsys.readouterr().err
    )
    assert main([*command, "--set", "n_prompts=21"]) == 2
    assert "is not empty (it has comparison.json, figures, results.json, …)" in capsys.readouterr().err


def test_an_interrupted_comparison_starts_again(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    command = ["sparse", "algorithm", "--set", *SMALL, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[compare.__module__], "table_rows", interrupted)
        assert main(command) == 130
    assert capsys.readouterr().err == "mhicl: interrupted; give the same command again\n"
    assert main([*command, "--set", "n_prompts=21"]) == 2
    assert "is not empty (it has comparison.json, figures); choose another folder" in capsys.readouterr().err
    assert main(command) == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sparsities=2,x", "sparsities must be numbers separated by commas, got '2,x'"),
        ("curve_lengths=2.5", "curve_lengths must be integers of at least 0"),
        ("curve_dims=0", "curve_dims must be integers of at least 1"),
        ("map_noises=-1", "map_noises must be numbers of at least 0"),
        ("map_sparsities=17", "sparsity must be at most dim_x = 16, got 17"),
        ("curve_dims=3", "sparsity must be at most dim_x = 3, got 4"),
        ("covariance=ar:2", "covariance"),
        ("n_promts=3", "unknown key 'n_promts'; the nearest valid one is 'n_prompts'"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        ComparisonConfig().with_settings([setting])
