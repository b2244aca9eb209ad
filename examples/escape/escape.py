"""How gradient flow leaves the plateau on which every task has one head.

Balanced flow ends there; for unbalanced flow the same state is a saddle. The script integrates the spectral ODE from
one start with imbalances between W_O and W_V from 1e-2 to 1e-12 and with none, compares growth and escape times with
linear stability, shows what the heads become, and trains real attention with and without an imbalance.

    python examples/escape/escape.py [--quick] [--out DIR]
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from figures import heads_figure, loss_figure, rate_figure, training_figure
from matplotlib.figure import Figure
from training import train, weights

from mhicl_fast import spectral
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Objective

SIZE = 10  # covariates of each task
STEADY = {"rtol": 1e-9, "atol": 1e-20}  # the imbalance grows from 1e-14: absolute errors must stay below that
IMBALANCES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
EARLY, LATE = 100, 1000  # flow times at which heads are looked at

Figures = dict[str, Figure]


class Start(NamedTuple):
    """A balanced start, mu and omega (H, I), and the direction (H, I) in which it is put out of balance."""

    mu: np.ndarray
    omega: np.ndarray
    direction: np.ndarray

    def factors(self, imbalance: float) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """((v_O, v_V), (κ_Q, κ_K)) with v_O, v_V = √μ (1 ± imbalance · direction) and κ_Q = κ_K."""
        v, kappa = np.sqrt(self.mu), np.sqrt(self.omega)
        tilt = imbalance * self.direction
        return (v * (1 + tilt), v * (1 - tilt)), (kappa, kappa)


class Outcome(NamedTuple):
    """An unbalanced flow: its imbalance and trajectory, and when it left the plateau, at which mean loss."""

    imbalance: float
    trajectory: spectral.Trajectory
    plateau_loss: float
    escape_time: float


def block_task(n_tasks: int, context_length: int) -> MultiTaskRegression:
    """Tasks that read SIZE covariates each, label noise 0.1 in context and target."""
    return MultiTaskRegression(
        SIZE * n_tasks,
        n_tasks,
        context_length,
        support=np.kron(np.eye(n_tasks), np.ones(SIZE)),
        noise_std=0.1,
        noisy_target=True,
    )


def small_start(n_heads: int, n_tasks: int, seed: int = 0) -> Start:
    """Small random values in which head i is ahead on task i, so that every task has a head of its own."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(0.01, 0.02, (2, n_heads, n_tasks)) + 0.02 * np.eye(n_heads, n_tasks)
    direction = rng.normal(size=(n_heads, n_tasks))
    return Start(u, v / SIZE, direction / np.abs(direction).max())


def unbalanced_flow(task: MultiTaskRegression, start: Start, imbalance: float, t_end: float) -> Outcome:
    """The flow of the four factors from a start put out of balance."""
    trajectory = spectral.solve(task, *start.factors(imbalance), parameters="unbalanced", t_end=t_end, **STEADY)
    level = spectral.theory(task, len(start.mu)).one_head_per_task.loss
    plateau, escape = spectral.plateau_and_escape(trajectory.t, trajectory.loss, level)
    if plateau is None or escape is None:
        raise RuntimeError(f"no escape from {level:.4f} before flow time {t_end:g} at imbalance {imbalance:g}")
    return Outcome(imbalance, trajectory, plateau.loss, escape.time)


def growing(trajectory: spectral.Trajectory, head: int, task: int) -> np.ndarray:
    """|v_O − v_V| / √2 of one head on one task over time, (T,)."""
    return np.abs(trajectory.factors.v_o - trajectory.factors.v_v)[:, head, task] / np.sqrt(2)


def growth_rate(outcome: Outcome, head: int, task: int) -> float:
    """How fast the growing direction grew from three to seven tenths of the escape time."""
    t, end = outcome.trajectory.t, outcome.escape_time
    inside = (t > 0.3 * end) & (t < 0.7 * end)
    return slope(t[inside], np.log(growing(outcome.trajectory, head, task)[inside]))


def wait(outcomes: Sequence[Outcome]) -> float:
    """By how much the escape is later for an e-th of the imbalance: the slope over ln(1 / imbalance)."""
    return slope(-np.log([o.imbalance for o in outcomes]), np.array([o.escape_time for o in outcomes]))


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the least-squares line."""
    return float(np.polyfit(x, y, 1)[0])


def time_near(trajectory: spectral.Trajectory, loss: float, tolerance: float = 0.1) -> float:
    """How much of the first 1000 time units the loss spends within a relative tolerance of a value."""
    t = np.linspace(0, min(trajectory.t[-1], 1000), 100_001)
    return float((np.abs(trajectory(t).loss / loss - 1) <= tolerance).mean() * t[-1])


def table(
    balanced: spectral.Trajectory, outcomes: Sequence[Outcome], combined: spectral.Trajectory
) -> list[dict[str, Any]]:
    """One row for each flow."""

    def row(flow: str, imbalance: float | None, trajectory: spectral.Trajectory, *seen: float | None) -> dict[str, Any]:
        end = {"final_loss": trajectory.loss[-1], "final_time": trajectory.t[-1]}
        return {"flow": flow, "imbalance": imbalance, "plateau_loss": seen[0], "escape_time": seen[1]} | end

    return [
        row("balanced", 0.0, balanced, balanced.loss[-1], None),
        *(row("unbalanced", o.imbalance, o.trajectory, o.plateau_loss, o.escape_time) for o in outcomes),
        row("combined", None, combined, None, None),
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""

    def text(value: Any) -> str:
        return "–" if value is None else value if isinstance(value, str) else f"{value:.4g}"

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compare_flows(t_end: float, imbalances: Sequence[float]) -> tuple[list[dict[str, Any]], dict[str, Any], Figures]:
    """Three tasks and heads, L = 1000: the balanced, unbalanced and combined flows against linear stability."""
    task, start = block_task(n_tasks=3, context_length=1000), small_start(n_heads=3, n_tasks=3)
    levels = spectral.theory(task, n_heads=3)
    plateau = levels.one_head_per_task
    linear = spectral.stability(task, *plateau.values, parameters="unbalanced")
    rate = float(linear.rates[0])
    print(f"Linear stability at the plateau: {linear.labels[0]}, {len(linear.unstable)} such directions")

    balanced = spectral.solve(task, start.mu, start.omega, t_end=t_end)
    combined = spectral.solve(task, start.mu, start.omega, parameters="combined", t_end=t_end)
    outcomes = [unbalanced_flow(task, start, imbalance, t_end) for imbalance in imbalances]
    alone = start._replace(omega=start.omega * np.eye(3))  # heads attend by nothing but their own task
    shown = outcomes[len(outcomes) // 2]
    head, its_task = np.unravel_index(shown.trajectory(shown.escape_time).mu.argmin(), start.mu.shape)
    numbers = {
        "plateau_theory": plateau.loss,
        "infimum_theory": levels.best_multi_head.loss,
        "rate_theory": rate,
        "rate_measured": growth_rate(shown, head, its_task),
        "wait_theory": 1 / rate,
        "wait_measured": wait(outcomes),
        "wait_measured_heads_alone": wait([unbalanced_flow(task, alone, x, 1e3) for x in imbalances[:3]]),
        "combined_time_near_plateau": time_near(combined, plateau.loss),
    }
    figures = {
        "loss": loss_figure(levels, outcomes, {"balanced": balanced, "combined": combined}),
        "rate": rate_figure(outcomes, rate, numbers["wait_measured"], shown, head, its_task),
    }
    return table(balanced, outcomes, combined), numbers, figures


def compare_heads(t_end: float) -> tuple[dict[str, Any], Figures]:
    """What the heads of three tasks become, with and without a spare one."""
    task, imbalance = block_task(n_tasks=3, context_length=1000), 1e-4
    three, four = (
        unbalanced_flow(task, small_start(n_heads, n_tasks=3), imbalance, t_end).trajectory for n_heads in (3, 4)
    )
    numbers: dict[str, Any] = {}
    for name, trajectory in (("three heads", three), ("four heads", four)):
        roles = spectral.head_roles(task, trajectory.mu[-1], trajectory.omega[-1]).to_dict()
        numbers[name] = {key: roles[key] for key in ("winner", "serving", "pairs", "zero_sum", "balance")} | {
            "final_loss": trajectory.loss[-1],
            "infimum": spectral.theory(task, trajectory.mu.shape[1]).best_multi_head.loss,
        }
    states = {
        f"on the plateau, t = {EARLY}": three(EARLY).mu,
        f"after the escape, t = {LATE}": three(LATE).mu,
        f"the same with a spare head, t = {LATE}": four(LATE).mu,
    }
    return numbers, {"heads": heads_figure(states)}


def compare_training(t_end: float) -> tuple[list[dict[str, Any]], Figures]:
    """Real attention on two tasks with three heads, L = 400, under two estimates of the gradient."""
    task, start = block_task(n_tasks=2, context_length=400), small_start(n_heads=3, n_tasks=2)
    conditional, sampled = Objective(task, "conditional", 64), Objective(task, "sampled", 128)
    balanced, tilted = start.factors(0.0), start.factors(1e-2)
    runs = [
        train("conditional, balanced", weights(task, *balanced), conditional, 0.03, t_end),
        train("conditional, imbalance 0.01", weights(task, *tilted), conditional, 0.03, t_end),
        train("sampled, balanced", weights(task, *balanced), sampled, 0.005, t_end),
    ]
    ode = spectral.solve(task, *tilted, parameters="unbalanced", order="first", t_end=t_end, **STEADY)
    numbers = [{"name": run.name, "final_loss": run.loss[-1], "lowest_mu": run.lowest_mu[-1]} for run in runs]
    return numbers, {"training": training_figure(runs, ode)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer imbalances, shorter flows, hardly any training")
    parser.add_argument("--out", type=Path, default=Path("runs/escape"), help="folder for figures and numbers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()

    t_end = 1e3 if options.quick else 1e5
    print("The balanced, unbalanced and combined flows from one start", flush=True)
    rows, numbers, figures = compare_flows(t_end, IMBALANCES[:3] if options.quick else IMBALANCES)
    print(f"{markdown(rows)}\n{time.perf_counter() - clock:.0f} s\n\nWhat the heads become", flush=True)
    numbers["heads"], drawn = compare_heads(t_end)
    figures |= drawn
    print(f"{time.perf_counter() - clock:.0f} s\n\nTraining real attention", flush=True)
    numbers["training"], drawn = compare_training(1.0 if options.quick else 120.0)
    figures |= drawn
    for name, value in numbers.items():
        print(f"{name}: {value}")

    for name, figure in figures.items():
        figure.savefig(options.out / f"{name}.png")
    with (options.out / "flows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"\n{time.perf_counter() - clock:.0f} s, figures and numbers are in {options.out}")


if __name__ == "__main__":
    main()
