"""How far apart one head, one head per task, several heads and the best predictor are, over L, I and H.

Each state's excess loss falls like 1/L. The script takes theory's values for states and optima, the limits of the
spectral ODE from small starts, the loss of real attention in those states on drawn prompts, and real training, and
compares: over context lengths, over the number of tasks, and over the number of heads.

    python examples/separation/separation.py [--quick] [--out DIR]
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from figures import heads_figure, law_figure, tasks_figure

from mhicl_fast import spectral
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import (
    Combined,
    Evaluation,
    Factored,
    GradientFlow,
    Objective,
    balanced_decomposable,
    evaluate,
    pull_back,
)

SIZE, NOISE = 10, 1.0  # covariates of each task, standard deviation of the label noise: a signal-to-noise ratio of 10
EVALUATION_SEED, START_SEED = 1 << 40, 0
LATE = 1e6  # flow time at which the ODE has reached its limit
LONGEST = 3200  # context on which real attention is evaluated, over lengths
EVALUATED = 1000  # the context length over tasks and over heads
FLOW_TIME = 40.0  # of training


class Point(NamedTuple):
    """An excess loss: of which state, at which I, H and L, found how ("theory", "ode", "evaluated", "trained")."""

    state: str
    source: str
    n_tasks: int
    n_heads: int
    context_length: int
    excess: float
    standard_error: float = 0.0


def block_task(n_tasks: int, context_length: int) -> MultiTaskRegression:
    """Tasks that read SIZE covariates each; targets without noise, so that the loss is the excess loss."""
    support = np.kron(np.eye(n_tasks), np.ones(SIZE))
    return MultiTaskRegression(SIZE * n_tasks, n_tasks, context_length, support=support, noise_std=NOISE)


def small_start(n_heads: int, n_tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Small random μ, ω (H, I); task i starts ahead in head i mod H."""
    rng = np.random.default_rng(START_SEED)
    ahead = np.arange(n_heads)[:, None] == np.arange(n_tasks) % n_heads
    u, v = rng.uniform(0.01, 0.02, (2, n_heads, n_tasks)) + 0.02 * ahead
    return u, v / SIZE


def per_covariate(task: MultiTaskRegression, omega: np.ndarray) -> torch.Tensor:
    """ω per task (H, I) or per covariate (H, d) -> per covariate."""
    return torch.as_tensor(omega if omega.shape[1] == task.dim_x else omega @ np.asarray(task.support, dtype=float))


def real_loss(task: MultiTaskRegression, mu: np.ndarray, omega: np.ndarray, n_prompts: int) -> Evaluation:
    """Excess loss of real attention in a decomposable state, on drawn prompts."""
    kq = torch.zeros(len(mu), task.dim, task.dim)
    ov = torch.zeros(len(mu), task.n_tasks, task.dim)
    kq[:, : task.dim_x, : task.dim_x] = torch.diag_embed(per_covariate(task, omega))
    ov[:, :, task.dim_x :] = torch.diag_embed(torch.as_tensor(mu))
    return evaluate(task, kq, ov, n_prompts, seed=EVALUATION_SEED)


def theory_points(n_tasks: int, n_heads: int, context_length: int) -> list[Point]:
    """What theory knows: limits, optima, Bayes risk."""
    levels = spectral.theory(block_task(n_tasks, context_length), n_heads)
    states = {
        "one head per task": levels.one_head_per_task,
        "one head per task, 1st order": levels.one_head_per_task_first_order,
        "single head": levels.single_head,
        "single head, 1st order": levels.single_head_first_order,
        "shared heads": levels.best_shared_heads,
        "best multi-head": levels.best_multi_head,
    }
    points = [
        Point(name, "theory", n_tasks, n_heads, context_length, state.excess)
        for name, state in states.items()
        if state is not None
    ]
    bayes = levels.bayes
    return [*points, Point("Bayes", "theory", n_tasks, n_heads, context_length, bayes.excess, bayes.standard_error)]


def flow_points(
    state: str, parameters: str, n_tasks: int, n_heads: int, context_length: int, n_prompts: int
) -> list[Point]:
    """The end of the flow from a small start, and, with `n_prompts` > 0, real attention in the state where it ends."""
    task = block_task(n_tasks, context_length)
    end = spectral.solve(task, *small_start(n_heads, n_tasks), parameters=parameters, t_end=LATE, rtol=1e-6, atol=1e-9)(
        LATE
    )
    where = (n_tasks, n_heads, context_length)
    points = [Point(state, "ode", *where, float(end.loss))]
    if n_prompts:
        points.append(Point(state, "evaluated", *where, *real_loss(task, end.mu, end.omega, n_prompts)))
    return points


def trained_point(
    state: str, parameters: str, n_tasks: int, n_heads: int, context_length: int, n_prompts: int
) -> Point:
    """Real attention trained on drawn prompts from the same small start, then evaluated.

    The last tenth of the flow time runs at a tenth of the step size, so that the prompts' noise settles.
    """
    task = block_task(n_tasks, context_length)
    mu, omega = small_start(n_heads, n_tasks)
    start = balanced_decomposable(task, torch.as_tensor(mu), per_covariate(task, omega), scale=1.0)
    weights: Factored | Combined = start.with_tensors({name: x.float() for name, x in start.tensors().items()})
    if parameters == "combined":
        weights = Combined(*weights.to_combined())
    objective = Objective(task, "conditional", n_prompts=128)
    step_size = 0.01 if parameters == "combined" else 0.03
    flow = GradientFlow(step_size, step_cap=0.05)
    t, step = 0.0, 0
    while t < FLOW_TIME:
        flow.learning_rate = step_size if t < 0.9 * FLOW_TIME else step_size / 10
        _, *gradients = objective(*weights.to_combined(), step)
        t += flow.step(weights.tensors(), pull_back(weights, *gradients))
        step += 1
    real = evaluate(task, *weights.to_combined(), n_prompts, seed=EVALUATION_SEED)
    return Point(state, "trained", n_tasks, n_heads, context_length, *real)


def over_lengths(lengths: Sequence[int], trained: Sequence[int], n_prompts: int) -> list[Point]:
    """Three tasks: one head, one head per task, and four heads whose flow is free to use opposite signs."""
    kinds = [("single head", "factored", 1), ("one head per task", "factored", 3), ("best multi-head", "combined", 4)]
    points = []
    for length in lengths:
        points += theory_points(3, 4, length)
        for state, parameters, heads in kinds:
            points += flow_points(state, parameters, 3, heads, length, n_prompts if length <= LONGEST else 0)
    for length in trained:
        points += [trained_point(*kind[:2], 3, kind[2], length, n_prompts) for kind in kinds]
    return points


def over_tasks(tasks: Sequence[int], lengths: Sequence[int], n_prompts: int) -> list[Point]:
    """Single head and one head per task for I tasks."""
    points = []
    for n_tasks in tasks:
        for length in lengths:
            points += theory_points(n_tasks, n_tasks, length)
        points += flow_points("single head", "factored", n_tasks, 1, EVALUATED, n_prompts)
        points += flow_points("one head per task", "factored", n_tasks, n_tasks, EVALUATED, n_prompts)
    return points


def over_heads(n_tasks: int, length: int, n_prompts: int) -> list[Point]:
    """From one head to one more than there are tasks: each head for itself (balanced flow), and heads together."""
    points = []
    for heads in range(1, n_tasks + 2):
        points += theory_points(n_tasks, heads, length)
        points += flow_points("each for itself", "factored", n_tasks, heads, length, n_prompts)
        if heads > 1:
            points += flow_points("best multi-head", "combined", n_tasks, heads, length, n_prompts)
    return points


def select(points: Sequence[Point], state: str, source: str, **where: int) -> list[Point]:
    """The points of a state from a source, at given n_tasks, n_heads or context_length."""
    return [
        point
        for point in points
        if (point.state, point.source) == (state, source)
        and all(getattr(point, name) == value for name, value in where.items())
    ]


def ratio(points: Sequence[Point], above: str, below: str, source: str, **where: int) -> tuple[float, float]:
    """Excess of one state over that of another, with its standard error."""
    (upper,), (lower,) = (select(points, state, source, **where) for state in (above, below))
    value = upper.excess / lower.excess
    return value, value * np.hypot(upper.standard_error / upper.excess, lower.standard_error / lower.excess)


def slope(points: Sequence[Point], shortest: int, longest: int) -> float:
    """d ln excess / d ln L over the points between two context lengths."""
    used = [point for point in points if shortest <= point.context_length <= longest]
    return float(np.polyfit(np.log([p.context_length for p in used]), np.log([p.excess for p in used]), 1)[0])


PAIRS = {
    "leading order": ("single head", "one head per task"),
    "1st order": ("single head, 1st order", "one head per task, 1st order"),
}


def task_ratios(tasks: Sequence[Point]) -> dict[str, list[tuple[int, float]]]:
    """Theory's (I, single head over one head per task) by order and context length, where the order applies."""
    ratios: dict[str, list[tuple[int, float]]] = {}
    for order, pair in PAIRS.items():
        for point in tasks:
            where = {"n_tasks": point.n_tasks, "context_length": point.context_length}
            if point.state == pair[0] and point.source == "theory":
                line = ratios.setdefault(f"{order}, L = {point.context_length}", [])
                line.append((point.n_tasks, ratio(tasks, *pair, "theory", **where)[0]))
    return ratios


def real_ratios(tasks: Sequence[Point]) -> list[tuple[int, float, float]]:
    """(I, the same ratio for real attention in these states, its standard error)."""
    counts = sorted({point.n_tasks for point in tasks})
    return [(n, *ratio(tasks, *PAIRS["leading order"], "evaluated", n_tasks=n)) for n in counts]


def exponents(law: Sequence[Point]) -> dict[str, float]:
    """The powers of L that excess losses follow over moderate and over long contexts."""
    longest = max(point.context_length for point in law)
    ranges = (
        ("theory", 400, LONGEST),
        ("evaluated", 400, LONGEST),
        ("theory", longest // 4, longest),
        ("ode", longest // 4, longest),
    )
    return {
        f"{state}, {source}, L = {low} to {high}": slope(select(law, state, source), low, high)
        for state in ("single head", "one head per task", "best multi-head")
        for source, low, high in ranges
    }


def each_for_itself(points: Sequence[Point], n_tasks: int) -> list[Point]:
    """Theory's values for every H where each task is served by one head alone: the limits of balanced flows."""

    def state(heads: int) -> str:
        return "single head" if heads == 1 else "shared heads" if heads < n_tasks else "one head per task"

    return [select(points, state(heads), "theory", n_heads=heads)[0] for heads in range(1, n_tasks + 2)]


def markdown(law: Sequence[Point]) -> str:
    """Excess losses by context length as a Markdown table: theory at leading order, real attention ± s.e."""
    states = ("single head", "one head per task", "best multi-head", "Bayes")
    lines = [["L", *states], ["---"] * 5]
    for length in sorted({point.context_length for point in law}):
        cells = []
        for state in states:
            cell = f"{select(law, state, 'theory', context_length=length)[0].excess:.4g}"
            for source in ("evaluated", "trained"):
                for point in select(law, state, source, context_length=length):
                    cell += f"; {source} {point.excess:.4g} ± {point.standard_error:.1g}"
            cells.append(cell)
        lines.append([str(length), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(law: Sequence[Point], tasks: Sequence[Point], heads: Sequence[Point], folder: Path) -> None:
    """Figures, all points and the numbers that follow from them, into the folder; prints the latter."""
    numbers = {
        "exponents of L": exponents(law),
        "single head over one head per task, theory, by I": task_ratios(tasks),
        f"the same, real attention at L = {EVALUATED}, with standard errors": real_ratios(tasks),
    }
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers, indent=2))
    law_figure(law).savefig(folder / "lengths.png")
    tasks_figure(task_ratios(tasks), real_ratios(tasks), EVALUATED).savefig(folder / "tasks.png")
    heads_figure(heads, each_for_itself(heads, 3)).savefig(folder / "heads.png")
    with (folder / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["figure", *Point._fields])
        for name, points in (("lengths", law), ("tasks", tasks), ("heads", heads)):
            writer.writerows([name, *point] for point in points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few lengths, tasks and prompts, no training")
    parser.add_argument("--out", type=Path, default=Path("runs/separation"), help="folder for figures and numbers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    lengths, trained, counts, n_prompts = [50 * 2**k for k in range(12)], [100, 200, 400], list(range(1, 9)), 4096
    if options.quick:
        lengths, trained, counts, n_prompts = [100, 400, 1600, 6400, 25600], [], [1, 3], 512

    print("Over context lengths: theory, ODE limits, real attention, real training", flush=True)
    law = over_lengths(lengths, trained, n_prompts)
    print(f"{markdown(law)}\n{time.perf_counter() - clock:.0f} s\n\nOver the number of tasks", flush=True)
    tasks = over_tasks(counts, (100, EVALUATED, 1_000_000), n_prompts)
    print(f"{time.perf_counter() - clock:.0f} s\n\nOver the number of heads", flush=True)
    heads = over_heads(3, EVALUATED, n_prompts)
    write(law, tasks, heads, options.out)
    print(f"\n{time.perf_counter() - clock:.0f} s, figures and numbers are in {options.out}")


if __name__ == "__main__":
    main()
