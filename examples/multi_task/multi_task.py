"""The multi-task preset at full length: 10⁵ steps as the study has them, and again with less noise for less work.

    python examples/multi_task/multi_task.py [--quick] [--out DIR] [--runs DIR]

Runs that are in the folder of runs already are read, or gone on with, rather than run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from figures import comparison_figure

from mhicl_fast.presets import preset
from mhicl_fast.train import LoadedRun, RunConfig, resume, run

# Each run's name in the figure, its folder and what it changes of the preset.
RUNS = {
    "the preset: 1000 prompts, conditional": ("preset", []),
    "64 prompts, subspace, symmetric": (
        "symmetric",
        ["estimator=subspace", "symmetric=true", "n_prompts=64"],
    ),
}
NUMBERS = ("final_loss", "eval_loss", "eval_loss_se", "phases", "allocation", "predicted_allocation", "predicted_times",
           "residual", "ode_distance", "prompts_seen", "wall_s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a larger start, few and larger steps: less than a minute")
    parser.add_argument("--out", type=Path, default=Path(), help="where the figure and the numbers go")
    parser.add_argument("--runs", type=Path, default=Path("runs/multi-task"), help="where the runs go")
    options = parser.parse_args()
    runs = {
        name: completed(configuration(changes, options.quick), options.runs / folder)
        for name, (folder, changes) in RUNS.items()
    }
    comparison_figure(runs).savefig(options.out / "loss.png", dpi=110)
    numbers = {name: described(finished) for name, finished in runs.items()}
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    for name, values in numbers.items():
        phases = values["phases"]
        print(f"{name}: loss {values['eval_loss']:.3f} ± {values['eval_loss_se']:.3f}, warm-up ends "
              f"{phases['warmup_end']}, emergence {phases['emergence_end']}, {values['wall_s']:.0f} s")  # fmt: skip


def configuration(changes: list[str], quick: bool) -> RunConfig:
    short = ["start=small", "start_size=0.2", "learning_rate=0.1", "steps=400", "record_every=4", "eval_prompts=512"]
    return preset("multi-task").with_settings([*changes, *(short if quick else [])])


def completed(config: RunConfig, folder: Path) -> LoadedRun:
    """The finished run in the folder, new or not."""
    return resume(folder) if (folder / "config.json").exists() else run(config, folder)


def described(finished: LoadedRun) -> dict[str, Any]:
    assert finished.summary is not None
    ode = finished.summary["ode"]
    limits = {f"{order}_order_limit": ode[order] and ode[order]["final_loss"] for order in ("leading", "first")}
    return {name: finished.summary[name] for name in NUMBERS} | limits


if __name__ == "__main__":
    main()
