"""The examples run from the command line, quickly, and find what their pages say."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from spectral_tasks import block_task

from mhicl_fast import spectral
from mhicl_fast.train import population_loss

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run_quickly(name: str, folder: Path) -> str:
    """What the example prints; it writes into the folder."""
    command = [sys.executable, str(EXAMPLES / name / f"{name}.py"), "--quick", "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    for figure in folder.glob("*.png"):
        assert 10_000 < figure.stat().st_size < 300_000
    return done.stdout


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def module(path: Path) -> ModuleType:
    """An example's file as a module."""
    specification = importlib.util.spec_from_file_location(f"examples_{path.parent.name}_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded


def test_escape(tmp_path: Path) -> None:
    printed = run_quickly("escape", tmp_path)
    assert "6 such directions" in printed  # three heads, two foreign tasks each
    assert {file.stem for file in tmp_path.glob("*.png")} == {"loss", "rate", "heads", "training"}
    flows = rows(tmp_path / "flows.csv")
    balanced, *unbalanced, combined = flows
    assert float(balanced["final_loss"]) == pytest.approx(0.8247, abs=5e-5)
    assert float(balanced["final_time"]) == 1e3
    assert float(combined["final_loss"]) < 0.5
    times = [float(flow["escape_time"]) for flow in unbalanced]
    losses = [float(flow["final_loss"]) for flow in unbalanced]
    assert all(0.4738 < loss < 0.49 for loss in losses)

    numbers: dict[str, Any] = json.loads((tmp_path / "numbers.json").read_text())
    rate = 2 / 1000 * 10.01 * 3.07851  # (2/L) (λ d + σ²) μ
    assert numbers["plateau_theory"] == pytest.approx(0.8247, abs=5e-5)
    assert numbers["infimum_theory"] == pytest.approx(0.4738, abs=5e-5)
    assert numbers["rate_theory"] == pytest.approx(rate, rel=1e-5)
    assert numbers["rate_measured"] == pytest.approx(rate, rel=0.01)
    np.testing.assert_allclose(np.diff(times) / np.log(100), 1 / rate, rtol=0.006)
    assert numbers["wait_measured_heads_alone"] == pytest.approx(1 / rate, rel=1e-4)
    heads = numbers["heads"]
    assert heads["four heads"]["final_loss"] < heads["three heads"]["final_loss"] - 0.1
    assert max(heads["three heads"]["balance"] + heads["four heads"]["balance"]) < 0.02  # Σ_h μ_i^h ≈ 0
    assert [run["lowest_mu"] > 0 for run in numbers["training"]] == [True] * 3  # there was no time to escape


def test_separation(tmp_path: Path) -> None:
    run_quickly("separation", tmp_path)
    assert {file.stem for file in tmp_path.glob("*.png")} == {"lengths", "tasks", "heads"}
    numbers: dict[str, Any] = json.loads((tmp_path / "numbers.json").read_text())
    long = {name: power for name, power in numbers["exponents of L"].items() if name.endswith("6400 to 25600")}
    assert len(long) == 6
    assert all(power == pytest.approx(-1, abs=0.015) for power in long.values())
    ratios = {name: dict(line) for name, line in numbers["single head over one head per task, theory, by I"].items()}
    assert ratios["leading order, L = 100"][1] == pytest.approx(1)
    assert ratios["leading order, L = 1000000"][3] == pytest.approx(3, rel=1e-3)
    n_tasks, real, error = numbers["the same, real attention at L = 1000, with standard errors"][-1]
    assert n_tasks == 3
    assert abs(real - ratios["1st order, L = 1000"][3]) < 2 * error

    points = [
        (p["figure"], p["state"], p["source"], int(p["n_heads"]), int(p["context_length"]), float(p["excess"]))
        for p in rows(tmp_path / "points.csv")
    ]
    excess = {key: value for *key_parts, value in points for key in [tuple(key_parts)]}
    for length in (100, 400, 1600, 6400, 25600):
        for state, heads in (("single head", 1), ("one head per task", 3)):
            limit, theory = (
                excess["lengths", state, source, h, length] for source, h in (("ode", heads), ("theory", 4))
            )
            assert limit == pytest.approx(theory, rel=1e-5)
        infimum = excess["lengths", "best multi-head", "theory", 4, length]
        assert infimum < excess["lengths", "best multi-head", "ode", 4, length] < 1.01 * infimum
    # Each for itself: a spare head buys nothing. Together: it does.
    alone = [excess["heads", "each for itself", "ode", heads, 1000] for heads in (1, 2, 3, 4)]
    together = [excess["heads", "best multi-head", "evaluated", heads, 1000] for heads in (2, 3, 4)]
    assert alone[0] > alone[1] > alone[2] == pytest.approx(alone[3], rel=1e-6)
    assert together[0] > together[1] > together[2]
    # Real attention in the theory's states does not beat the leading order by more than the noise of 512 prompts.
    for length in (100, 400, 1600):
        ratio = excess["lengths", "one head per task", "evaluated", 3, length]
        assert 0.9 < ratio / excess["lengths", "one head per task", "theory", 4, length] < 1.4


def test_winners(tmp_path: Path) -> None:
    printed = run_quickly("winners", tmp_path)
    assert "Heads as predicted, random starts" in printed
    assert "5×2, 2 heads, L = 200: predicted" in printed
    assert (tmp_path / "tables.md").read_text() in printed
    assert {file.stem for file in tmp_path.glob("*.png")} == {"confusion", "times", "margins"}
    random, favoured = rows(tmp_path / "random.csv"), rows(tmp_path / "favoured.csv")
    assert len(random) == len(favoured) == 8 * 2 + 4 * 3 + 2 * 4
    assert all(race["integrated_head"] == race["ode_head"] == race["owner"] for race in favoured)
    assert np.mean([race["integrated_head"] == race["ode_head"] for race in random]) >= 0.95
    trained = [race for race in random if race["trained_head"]]
    assert len(trained) == 4 * 2
    assert np.mean([race["ode_head"] == race["trained_head"] for race in trained]) >= 0.85
    for race in random + favoured:
        assert float(race["ode_time"]) / float(race["integrated_time"]) == pytest.approx(1, abs=0.08)
        if race["trained_time"]:
            assert float(race["trained_time"]) / float(race["ode_time"]) == pytest.approx(1, abs=0.08)


def test_losses_of_many_models_are_those_of_each() -> None:
    conditional_losses = module(EXAMPLES / "winners" / "training.py").conditional_losses
    task = block_task((2, 4, 1), 23, noise_std=0.4, signal=[1.0, 0.5, 2.0])
    rng = np.random.default_rng(0)
    block = torch.as_tensor(0.2 * rng.normal(size=(3, 2, 7, 7))).requires_grad_()
    labels = torch.as_tensor(rng.normal(size=(3, 2, 3, 3))).requires_grad_()
    losses = conditional_losses(task, block, labels, 300, seed=5, step=2)
    kq, ov = torch.zeros(3, 2, 10, 10, dtype=torch.float64), torch.zeros(3, 2, 3, 10, dtype=torch.float64)
    kq[:, :, :7, :7], ov[:, :, :, 7:] = block, labels
    expected = torch.stack([population_loss(task, *model, n_prompts=300, seed=5, step=2) for model in zip(kq, ov)])
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)
    weights = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    for actual, wanted in zip(
        torch.autograd.grad(weights @ losses, (block, labels)), torch.autograd.grad(weights @ expected, (block, labels))
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-10)


def test_weights_of_the_escape_hold_the_given_factors() -> None:
    weights = module(EXAMPLES / "escape" / "training.py").weights
    task = block_task((2, 3), 50)
    rng = np.random.default_rng(1)
    v, kappa = rng.normal(size=(2, 4, 2)), rng.normal(size=(2, 4, 2))
    values = spectral.diagonal(*weights(task, tuple(v), tuple(kappa)).to_combined(), task)
    np.testing.assert_allclose(values.mu, v[0] * v[1], rtol=1e-6)
    np.testing.assert_allclose(values.omega, np.repeat(kappa[0] * kappa[1], (2, 3), axis=1), rtol=1e-6)
    assert values.residual == 0


def test_multi_task(tmp_path: Path) -> None:
    printed = run_quickly("multi_task", tmp_path)
    assert printed.count("emergence") == 2
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(numbers) == 2
    for values in numbers.values():
        assert values["allocation"] == values["predicted_allocation"]
        assert abs(values["eval_loss"] - values["leading_order_limit"]) < 0.3 * values["leading_order_limit"]
    assert (tmp_path / "runs/multi-task/symmetric/summary.json").exists()
    again = run_quickly("multi_task", tmp_path)  # reads what is there
    assert again == printed
