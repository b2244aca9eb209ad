"""How noisy estimates of the gradient are for each prompt, and what a gradient of 5 % error costs with each.

Weights at three moments of a flow (its start, half emergence, its limit) in three settings; at each the variance of the
gradient in KQ and OV from single prompts is measured for every estimate, and multiplied by what a prompt costs.

    python examples/precision/precision.py [--quick] [--out DIR]
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from estimates import ESTIMATES, Blocks, Estimate, draw_symmetry
from figures import times_figure
from gradients import Attention

from mhicl_fast.presets import preset
from mhicl_fast.train import RunConfig
from mhicl_fast.train.odes import solve_ode

ERROR = 0.05  # relative, of the gradient in KQ and in OV
RESIDUAL = 0.01  # size of random entries beside the decomposable ones, as sampled training leaves them
MOMENTS = ("start", "half emergence", "limit")
_SMALL = ["start=small", "start_size=0.02", "scale=1", "optimizer=flow", "estimator=conditional"]
SETTINGS = {
    "multi-task": (preset("multi-task"), 1000.0),
    "single-task": (preset("single-task").with_settings(_SMALL), 60.0),
    "demystified, decomposable": (preset("demystified").with_settings([*_SMALL, "noisy_target=false"]), 150.0),
}


class Row(NamedTuple):
    """E|ĝ₁ − g|²/|g|² for one prompt, in KQ and in OV, with its cost; at the limit |g| is that of half emergence."""

    setting: str
    moment: str
    estimate: str
    kq: float
    ov: float
    nanoseconds: float
    prompts: float
    milliseconds: float


def states(config: RunConfig, t_end: float) -> dict[str, Attention]:
    """The weights at the three moments of the leading-order flow, with small random entries beside."""
    task = config.task()
    flow = solve_ode(config, "leading", t_end)
    times = np.linspace(0, t_end, 4001)
    mu, omega = (np.array([getattr(flow(t), name) for t in times]) for name in ("mu", "omega"))
    support = task.support.double().numpy()
    per_task = omega if omega.shape[-1] == task.n_tasks else omega @ support.T / support.sum(1)
    share = np.einsum("thi,thi->ti", mu, per_task)
    half = int(np.argmax((share / share[-1]).mean(1) >= 0.5))
    generator = torch.Generator().manual_seed(0)

    def beside(matrices: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(matrices.shape, generator=generator, dtype=torch.float64)
        return matrices + RESIDUAL * matrices.norm() / noise.norm() * noise

    def attention(index: int) -> Attention:
        covariates = omega[index] if omega.shape[-1] == task.dim_x else omega[index] @ support
        w, u = (torch.diag_embed(torch.as_tensor(values)) for values in (covariates, mu[index]))
        return Attention(task, beside(w), beside(u))

    return dict(zip(MOMENTS, (attention(0), attention(half), attention(len(times) - 1))))


def moments(estimate: Estimate, model: Attention, n_prompts: int) -> tuple[Blocks, tuple[float, float]]:
    """The mean gradient, and E|ĝ₁ − g|² per prompt in KQ and in OV, from about `n_prompts` prompts."""
    generator = torch.Generator().manual_seed(1)
    size = estimate.group(model.task.dim_x)
    portion = size * max(1, 128 // size)
    sums, squares, groups = [0.0, 0.0], [0.0, 0.0], 0
    for _ in range(max(2, n_prompts // portion)):
        blocks = estimate.draw(model, portion, generator)
        groups += len(blocks.kq)
        for index, block in enumerate(blocks):
            sums[index] = sums[index] + block.sum(0)
            squares[index] += float(block.square().sum())
    means = Blocks(*(total / groups for total in sums))
    variances = [
        (square / groups - float(mean.square().sum())) * groups / (groups - 1) for square, mean in zip(squares, means)
    ]
    return means, (size * variances[0], size * variances[1])


SYMMETRY = next(estimate for estimate in ESTIMATES if estimate.draw is draw_symmetry)


def measure(setting: str, config: RunConfig, t_end: float, n_prompts: int) -> list[Row]:
    """All estimates at the three moments of a setting."""
    rows = []
    norms = (0.0, 0.0)
    for moment, model in states(config, t_end).items():
        if moment != "limit":  # where the gradient vanishes, and with it all meaning of a relative error
            mean, noise = moments(SYMMETRY, model, 4 * n_prompts)  # the least noisy one
            kq, ov = (float(block.square().sum()) - v / (4 * n_prompts) for block, v in zip(mean, noise))
            norms = (kq, ov)
        for estimate in ESTIMATES:
            _, noise = moments(estimate, model, n_prompts)
            kq, ov = (value / norm for value, norm in zip(noise, norms))
            prompts = max(kq, ov) / ERROR**2
            cost = estimate.cost(model)
            rows.append(Row(setting, moment, estimate.name, kq, ov, cost, prompts, 1e-6 * prompts * cost))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Relative variances (KQ, OV) by estimate and moment, and milliseconds for the error, one table per setting."""
    lines = []
    for setting in dict.fromkeys(row.setting for row in rows):
        lines += [
            "",
            f"**{setting}**",
            "",
            "| estimate | µs | " + " | ".join(f"{m}: KQ, OV, ms" for m in MOMENTS) + " |",
        ]
        lines.append("| --- " * 5 + "|")
        for name in (estimate.name for estimate in ESTIMATES):
            found = [row for row in rows if (row.setting, row.estimate) == (setting, name)]
            cells = [f"{row.kq:.2g}, {row.ov:.2g}, {row.milliseconds:.2g}" for row in found]
            lines.append(f"| {name} | {found[0].nanoseconds / 1000:.2g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest setting and few prompts")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"), help="folder for the figure and numbers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    rows = []
    for setting, (config, t_end) in SETTINGS.items():
        if not options.quick or config.preset == "demystified":
            rows += measure(setting, config, t_end, 1024 if options.quick else 4096)
            print(f"{setting}: {time.perf_counter() - clock:.0f} s", flush=True)
    print(markdown(rows))
    with (options.out / "variance.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
    times_figure(rows, ERROR).savefig(options.out / "times.png")
    print(f"\n{time.perf_counter() - clock:.0f} s, the figure and all numbers are in {options.out}")


if __name__ == "__main__":
    main()
