"""Which head learns which task, and when: predicted from random starts, and observed.

For many random balanced starts at three sizes of the problem: the heads and times that the short formula and the
integrated form predict, those of the spectral ODE, and those of real attention trained from the same starts. Then where
predictions miss, and what became of the heads later.

    python examples/winners/winners.py [--quick] [--out DIR]
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from figures import confusion_figure, margins_figure, times_figure
from measures import FAVOURED, TABLES, by_margin, confusion, confusion_markdown, margin_labels, markdown, time_ratios
from training import train_from

from mhicl_fast import spectral
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import initial_parameters

LOW, HIGH = 0.01, 0.05  # u = μ and v = d_i ω are drawn uniformly from here, for every head and task by itself
LATER = 20  # the ODE runs on to this many times the last task's time, to see whether heads keep what they won


class Size(NamedTuple):
    """A size of the problem, and how many starts are integrated and trained."""

    covariates: int  # of each task
    n_tasks: int
    n_heads: int
    context_length: int
    starts: int
    trained: int
    n_prompts: int

    @property
    def name(self) -> str:
        return f"{self.covariates}×{self.n_tasks}, {self.n_heads} heads, L = {self.context_length}"

    def task(self) -> MultiTaskRegression:
        support = np.kron(np.eye(self.n_tasks), np.ones(self.covariates))
        dim_x = self.covariates * self.n_tasks
        return MultiTaskRegression(dim_x, self.n_tasks, self.context_length, support=support, noise_std=0.1)


SIZES = (Size(5, 2, 2, 200, 200, 200, 128), Size(10, 3, 3, 400, 200, 200, 128), Size(20, 4, 4, 1000, 200, 200, 64))
QUICK = (Size(5, 2, 2, 200, 8, 4, 16), Size(10, 3, 3, 400, 4, 0, 16), Size(20, 4, 4, 1000, 2, 0, 16))


class Starts(NamedTuple):
    """M starts: mu, omega (M, H, I)."""

    mu: np.ndarray
    omega: np.ndarray


class Race(NamedTuple):
    """What is predicted and seen of one task from one start; heads −1 and times inf where there is none.

    margin: how much later, relatively, the second head is by the short formula. busy: whether the predicted head had
    learnt another task before, in the ODE. owner: the head that has the task at the end of the ODE.
    """

    size: str
    start: int
    task: int
    short_head: int
    short_time: float
    integrated_head: int
    integrated_time: float
    ode_head: int
    ode_time: float
    owner: int
    margin: float
    busy: bool
    trained_head: int | None
    trained_time: float | None


def random_starts(size: Size, seed: int = 0) -> Starts:
    """u and v uniform, all heads alike: several tasks may have the same best head."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(LOW, HIGH, (2, size.starts, size.n_heads, size.n_tasks))
    return Starts(u, v / size.covariates)


def favoured_starts(size: Size) -> Starts:
    """The presets' `small` start, in which every task has a head of its own that is well ahead."""
    mu, omega = [], []
    for seed in range(size.starts):
        weights = initial_parameters(size.task(), size.n_heads, start="small", seed=seed, scale=1.0, size=0.02)
        values = spectral.diagonal(*weights.to_combined(), size.task())
        mu.append(values.mu)
        omega.append(values.omega[:, :: size.covariates])
    return Starts(np.stack(mu), np.stack(omega))


def head_times(task: MultiTaskRegression, mu: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """When each head would learn each task if it were alone, by the short formula, (H, I)."""
    return np.stack(
        [spectral.predict_allocation(task, mu[[h]], omega[[h]], formula="short").time for h in range(len(mu))]
    )


def follow(task: MultiTaskRegression, mu: np.ndarray, omega: np.ndarray, t_end: float) -> tuple[np.ndarray, ...]:
    """From the ODE: the head ahead when half of each task is learnt, that time, and the head that has it at the end."""
    flow = spectral.solve(task, mu, omega, t_end=t_end, rtol=1e-6, atol=1e-8)
    fine = np.linspace(0, t_end / LATER * 2, 4000)
    state = flow(fine)
    times = spectral.half_learnt(fine, spectral.shares(task, state.mu, state.omega))
    then = flow(np.minimum(times, t_end))
    ahead = spectral.head_shares(task, then.mu, then.omega).argmax(1).diagonal()
    owner = spectral.observed_allocation(task, flow.mu[-1], flow.omega[-1])
    return np.where(np.isfinite(times), ahead, -1), times, owner


def races(size: Size, starts: Starts) -> list[Race]:
    """Predictions and the ODE for all starts, and real training from the first ones."""
    task = size.task()
    found = []
    trained_heads, trained_times = [], []
    if size.trained:
        first = (values[: size.trained] for values in starts)
        trained_heads, trained_times = train_from(task, *first, n_prompts=size.n_prompts, step_size=0.04, t_end=100.0)
    for m, (mu, omega) in enumerate(zip(*starts)):
        short, integrated = (
            spectral.predict_allocation(task, mu, omega, formula=formula) for formula in ("short", "integrated")
        )
        head, times, owner = follow(task, mu, omega, LATER * integrated.time.max())
        best, second = np.sort(head_times(task, mu, omega), axis=0)[:2]
        for i in range(size.n_tasks):
            found.append(Race(
                size.name, m, i, int(short.head[i]), short.time[i], int(integrated.head[i]), integrated.time[i],
                int(head[i]), times[i], int(owner[i]), second[i] / best[i] - 1,
                bool((head[times < times[i]] == integrated.head[i]).any()),
                int(trained_heads[m][i]) if m < size.trained else None,
                float(trained_times[m][i]) if m < size.trained else None,
            ))  # fmt: skip
    return found


def write(drawn: dict[str, list[Race]], favoured: dict[str, list[Race]], folder: Path) -> None:
    """Tables, figures and all races, by size, into the folder; prints the tables."""
    kinds = {"the ODE": "ode_head", "training": "trained_head"}
    counts = {kind: {size: confusion(found, field) for size, found in drawn.items()} for kind, field in kinds.items()}
    ratios = {
        formula: {
            f"{size}; {kind}": time_ratios(found, f"{formula}_time", field)
            for size, found in drawn.items()
            for kind, field in (("ODE", "ode_time"), ("training", "trained_time"))
        }
        for formula in ("short", "integrated")
    }
    margins = {kind: {size: by_margin(found, field) for size, found in drawn.items()} for kind, field in kinds.items()}

    tables = [markdown(f"{title}, random starts", columns, drawn) for title, columns in TABLES.items()]
    tables += [confusion_markdown(size, counts["the ODE"][size], counts["training"][size]) for size in drawn]
    tables.append(markdown("Starts with a favoured head for each task", FAVOURED, favoured))
    (folder / "tables.md").write_text("\n".join(tables))
    print("\n" + "\n".join(tables))

    confusion_figure(counts).savefig(folder / "confusion.png")
    times_figure(ratios).savefig(folder / "times.png")
    margins_figure(margins, margin_labels()).savefig(folder / "margins.png")
    for starts, by_size in (("random", drawn), ("favoured", favoured)):
        with (folder / f"{starts}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Race._fields)
            for race in (race for found in by_size.values() for race in found):
                writer.writerow([f"{x:.5g}" if isinstance(x, float) else x for x in race])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few starts, training for four of them")
    parser.add_argument("--out", type=Path, default=Path("runs/winners"), help="folder for figures and numbers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    drawn: dict[str, list[Race]] = {}
    favoured: dict[str, list[Race]] = {}
    for size in QUICK if options.quick else SIZES:
        print(f"{size.name}: {size.starts} random starts, {size.trained} of them trained", end="", flush=True)
        drawn[size.name] = races(size, random_starts(size))
        favoured[size.name] = races(size._replace(trained=0), favoured_starts(size))
        print(f", {time.perf_counter() - clock:.0f} s", flush=True)
    write(drawn, favoured, options.out)
    print(f"{time.perf_counter() - clock:.0f} s, figures, tables and numbers are in {options.out}")


if __name__ == "__main__":
    main()
