"""The main claim end to end: each task is taken by the head predicted from the start, at the loss that the ODE says."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from mhicl_fast.presets import preset
from mhicl_fast.train import RunConfig, run

# The demonstration's setting with fewer covariates and prompts.
SMALLER = preset("demo").with_settings(
    ["dim_x=10", "n_tasks=2", "start_size=0.03", "n_prompts=256", "steps=450", "eval_prompts=8192"]
)


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mhicl_fast.plots", types.SimpleNamespace(save_figures=lambda run: []))


def misses(config: RunConfig, path: Path) -> list[str]:
    """What a run does otherwise than predicted."""
    summary = run(config, path).summary
    assert summary is not None
    found = []
    if summary["allocation"] != summary["predicted_allocation"]:
        found.append(f"predicted heads {summary['predicted_allocation']}, observed {summary['allocation']}")
    expected = summary["ode"]["first"]["final_loss"]
    if abs(summary["eval_loss"] / expected - 1) > 0.15:
        found.append(f"loss {summary['eval_loss']:.4f} ± {summary['eval_loss_se']:.4f}, the ODE has {expected:.4f}")
    if summary["phases"]["emergence_end"] is None:
        found.append("emergence did not end")
    return [f"seed {config.seed}: {miss}" for miss in found]


@pytest.mark.parametrize("seed", [101, 102])
def test_heads_take_the_tasks_predicted(tmp_path: Path, seed: int) -> None:
    assert misses(SMALLER.with_settings([f"seed={seed}"]), tmp_path) == []


@pytest.mark.slow
def test_heads_take_the_tasks_predicted_for_twenty_seeds(tmp_path: Path) -> None:
    all_misses = [
        miss
        for seed in range(1000, 1020)
        for miss in misses(SMALLER.with_settings([f"seed={seed}", "n_heads=4"]), tmp_path / str(seed))
    ]
    print("\n".join(all_misses) or "no misses")
    assert all_misses == []
