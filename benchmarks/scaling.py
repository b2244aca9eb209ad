"""Times training steps on one and two processes of one thread each, and models more of them.

    python benchmarks/scaling.py [--rounds 7] [--json FILE] [--figure FILE]

For growing numbers of prompts N, all in turns within one launch of torchrun:

1. one process with N prompts, on one thread and on two, and with N/2, while the other waits;
2. both processes with N/2 each at the same time, without messages: what they take from each other;
3. both together, with one message a step: the efficiency, and what is lost where;
4. messages alone, of growing size, between two, three and four processes.

The model puts the first and the last together: a step of P processes takes a + b N/P, fitted to 1, plus a message,
hops of gloo's ring, fitted to 4, for processes that have a machine each. It is a model: nothing of it has run on more
than the processors here, which share a machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import mhicl_fast
from mhicl_fast.presets import preset
from mhicl_fast.processes import ALONE, Processes, launched
from mhicl_fast.train.stepping import make_stepper

PROMPTS = (64, 256, 1024, 4096, 16384, 65536)
SETTINGS = ("n_heads=8", "estimator=sampled")  # of the single-task preset: L = 100, d = 50, one task
MESSAGE_BYTES = (64, 1 << 10, 1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
SPAN = 0.25  # seconds of steps that one time is taken from
MODELLED = (2, 8, 64, 1024)
BYTES_ON_THE_WAY = 1 << 16  # by which training decides whether to gather, csrc/cpu/training/peers.cpp
ENOUGH = 0.95  # the efficiency at which messages no longer matter


def steps_of(n_prompts: int, processes: Processes) -> Callable[[int], None]:
    """Makes so many steps of a run."""
    config = preset("single-task").with_settings([*SETTINGS, f"n_prompts={n_prompts}"])
    stepper = make_stepper(config.objective(), config.start_parameters(), config.make_optimizer(), processes)

    def advance(count: int) -> None:
        span = stepper.advance(0, count, 0.0, math.inf)
        if span.lost or not span.finite:
            raise SystemExit(f"the steps failed: {span}")

    return advance


def nothing(count: int) -> None:
    """What a process does that leaves the machine to the other."""


def seconds_a_step(advance: Callable[[int], None], count: int) -> float:
    """The mean of `count` steps that all processes begin at the same time, of the process that takes longest."""
    dist.barrier()
    start = time.perf_counter()
    advance(count)
    seconds = torch.tensor((time.perf_counter() - start) / count)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds)


def measure_steps(processes: Processes, n_prompts: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step in each situation, round by round."""
    alone, half = steps_of(n_prompts, ALONE), steps_of(n_prompts // 2, ALONE)
    together = steps_of(n_prompts, processes)

    def threaded(count: int) -> None:
        torch.set_num_threads(2)
        alone(count)
        torch.set_num_threads(1)

    situations = {
        "one process": alone if processes.leads else nothing,
        "two threads": threaded if processes.leads else nothing,
        "half the prompts": half if processes.leads else nothing,
        "halves at once": half,
        "together": together,
    }
    count = steps_in_a_span(alone)
    times: dict[str, list[float]] = {name: [] for name in situations}
    for _ in range(rounds + 1):
        for name, advance in situations.items():
            times[name].append(seconds_a_step(advance, count))
    return {name: found[1:] for name, found in times.items()}  # the first round warms up


def steps_in_a_span(advance: Callable[[int], None]) -> int:
    """How many steps fill one, the same number on all processes."""
    advance(1)
    start = time.perf_counter()
    advance(2)
    count = torch.tensor([max(2.0, SPAN * 2 / (time.perf_counter() - start))])
    dist.broadcast(count, 0)
    return int(count)


def measure_messages(rounds: int) -> dict[str, dict[int, list[float]]]:
    """Seconds of a message of so many bytes by either collective, round by round."""
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in MESSAGE_BYTES} for name in COLLECTIVES}
    for _ in range(rounds + 1):
        for size in MESSAGE_BYTES:
            buffer = torch.zeros(size // 8, dtype=torch.float64)
            for name, send in COLLECTIVES.items():
                times[name][size].append(seconds_a_step(functools.partial(send, buffer), 50))
    return {name: {size: found[1:] for size, found in by_size.items()} for name, by_size in times.items()}


def gather(buffer: Tensor, count: int) -> None:
    everyones = [torch.empty_like(buffer) for _ in range(dist.get_world_size())]
    for _ in range(count):
        dist.all_gather(everyones, buffer)


def all_reduce(buffer: Tensor, count: int) -> None:
    for _ in range(count):
        dist.all_reduce(buffer)


COLLECTIVES = {"gather": gather, "all-reduce": all_reduce}


def child(rounds: int, file: Path) -> None:
    """One of the processes; the leader writes what it has measured."""
    torch.set_num_threads(1)
    with launched() as processes:
        found: dict[str, Any] = {"messages": measure_messages(rounds)}
        if processes.size == 2:
            found["steps"] = {n: measure_steps(processes, n, rounds) for n in PROMPTS}
        if processes.leads:
            file.write_text(json.dumps(found))


def launch(n_processes: int, rounds: int) -> dict[str, Any]:
    """What that many processes measure."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
        arguments = ["--rounds", str(rounds), "--child", str(file)]
        subprocess.run([*torchrun, __file__, *arguments], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def quartiles(times: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(times, n=4)
    return low, middle, high


def show_steps(steps: dict[str, dict[str, list[float]]], message: float) -> list[dict[str, float]]:
    """Efficiencies, and the shares of two processes' time that go to each loss."""
    print(
        f"\nsteps in ms, median (quartiles), one thread for each process; a message alone takes {message * 1e3:.2f} ms"
    )
    losses = ("fixed", "shared", "message", "waiting")
    heads = " ".join(f"{name:>8}" for name in losses)
    print(f"{'N':>7} {'one':>24} {'two threads':>24} {'two processes':>24} {'efficiency':>11}  lost: {heads}")
    rows = []
    for n, times in steps.items():
        one, threads, half, at_once, together = (quartiles(times[name])[1] for name in times)
        parts = {
            "fixed": half - one / 2,  # what a step takes whatever its prompts
            "shared": at_once - half,  # memory and clock rate, which the processors share
            "message": message,
            "waiting": together - at_once - message,  # for the slower one of each step, and for being woken up
        }
        shares = {name: parts[name] / together for name in losses}
        measured = {"one": one, "threads": threads, "together": together, "efficiency": one / (2 * together)}
        rows.append({"N": int(n), **measured, **shares})
        lost = " ".join(f"{shares[name]:>8.0%}" for name in losses)
        shown = " ".join(f"{spread(times[name]):>24}" for name in ("one process", "two threads", "together"))
        print(f"{n:>7} {shown} {measured['efficiency']:>11.0%}        {lost}")
    return rows


def spread(times: list[float]) -> str:
    low, middle, high = (1e3 * value for value in quartiles(times))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


class StepModel:
    """Seconds of a step of P processes: a + b N/P, and one message. Fitted to what one and two processes take."""

    def __init__(self, steps: dict[str, dict[str, list[float]]], messages: dict[str, dict[str, list[float]]]) -> None:
        prompts = [float(n) / share for n in steps for share in (1, 2)]
        times = [quartiles(found[name])[1] for found in steps.values() for name in ("one process", "half the prompts")]
        # Relative errors, so that small steps count as much as large ones.
        design = np.array([[1 / t, n / t] for n, t in zip(prompts, times, strict=True)])
        self.fixed, self.per_prompt = np.linalg.lstsq(design, np.ones(len(times)), rcond=None)[0]
        self.hop, self.per_byte = fit_hop(
            {int(size): quartiles(found)[1] for size, found in messages["gather"].items()}
        )
        self.bytes = message_bytes()

    def message(self, size: int) -> float:
        """gloo's ring: P − 1 hops one after another with all bytes, or twice as many with 1/P of them."""
        if self.bytes * (size - 2) <= BYTES_ON_THE_WAY * size:
            return (size - 1) * (self.hop + self.per_byte * self.bytes)
        return 2 * (size - 1) * (self.hop + self.per_byte * self.bytes / size)

    def efficiency(self, n_prompts: float, size: int) -> float:
        together = self.fixed + self.per_prompt * n_prompts / size + self.message(size)
        return (self.fixed + self.per_prompt * n_prompts) / (size * together)

    def enough_prompts(self, size: int) -> float:
        """N at which the efficiency reaches ENOUGH."""
        spare = ENOUGH * size * (self.fixed + self.message(size)) - self.fixed
        return spare / (self.per_prompt * (1 - ENOUGH))


def fit_hop(times: dict[int, float]) -> tuple[float, float]:
    """Seconds of a hop and of a byte in it, from what two processes take to gather: one hop."""
    design = np.array([[1 / t, size / t] for size, t in times.items()])
    hop, per_byte = np.linalg.lstsq(design, np.ones(len(times)), rcond=None)[0]
    return float(hop), float(per_byte)


def message_bytes() -> int:
    """Those of a step here: sums of the gradients in KQ's columns of covariates and in OV, in double, and the loss."""
    config = preset("single-task").with_settings(SETTINGS)
    dim = config.dim_x + config.n_tasks
    return 8 * (config.n_heads * dim * (config.dim_x + config.n_tasks) + 2)


def show_model(model: StepModel) -> list[dict[str, float]]:
    print(
        f"\nmodel: a step takes {model.fixed * 1e6:.0f} us + {model.per_prompt * 1e6:.2f} us a prompt; a message has "
        f"{model.bytes / 1e3:.0f} kB; a hop of the ring takes {model.hop * 1e6:.0f} us + {model.per_byte * 1e9:.2f} "
        "ns a byte"
    )
    prompts = [4**k for k in range(4, 15)]
    print(f"{'P':>6} {'message ms':>11} {'N for 95 %':>11}  " + " ".join(f"{n:>9}" for n in prompts))
    rows = []
    for size in MODELLED:
        efficiencies = [model.efficiency(n, size) for n in prompts]
        rows.append({"processes": size, "message": model.message(size), "enough": model.enough_prompts(size)}
                    | {str(n): value for n, value in zip(prompts, efficiencies, strict=True)})  # fmt: skip
        print(f"{size:>6} {model.message(size) * 1e3:>11.2f} {model.enough_prompts(size):>11.2g}  "
              + " ".join(f"{value:>9.0%}" for value in efficiencies))  # fmt: skip
    return rows


def draw(model: StepModel, rows: list[dict[str, float]], file: str) -> None:
    """Modelled efficiency over N for each number of processes, and what was measured of two processes and threads."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    prompts = np.logspace(1.8, 9, 200)
    for size in MODELLED:
        axes.plot(prompts, [model.efficiency(n, size) for n in prompts], label=f"{size} machines, model")
    numbers = [row["N"] for row in rows]
    axes.plot(numbers, [row["efficiency"] for row in rows], "ko", label="2 processes, 1 machine")
    threads = [row["one"] / (2 * row["threads"]) for row in rows]
    axes.plot(numbers, threads, "ko", mfc="none", label="2 threads, 1 machine")
    axes.axhline(ENOUGH, color="0.7", linewidth=0.8)
    axes.set(xscale="log", ylim=(0, 1.05), xlabel="prompts per step, N", ylabel="efficiency")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--figure", metavar="FILE", help="draw the efficiencies there")
    parser.add_argument("--child", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.rounds, arguments.child)
        return
    info = mhicl_fast.build_info()
    print(f"mhicl_fast {info['version']}, torch {torch.__version__}, {info['instruction_sets']['active']}")
    found = {size: launch(size, arguments.rounds) for size in (2, 3, 4)}
    messages = {size: result["messages"] for size, result in found.items()}
    model = StepModel(found[2]["steps"], messages[2])
    rows = show_steps(found[2]["steps"], model.message(2))
    show_messages(messages)
    modelled = show_model(model)
    if arguments.figure:
        draw(model, rows, arguments.figure)
    if arguments.json:
        results = {"steps": rows, "model": modelled, "measured": found}
        Path(arguments.json).write_text(json.dumps(results, indent=1))


def show_messages(messages: dict[int, dict[str, dict[str, list[float]]]]) -> None:
    print("\nmessages alone, in ms; more processes than processors wait for each other")
    print(f"{'processes':>10} {'':>10} " + " ".join(f"{size:>9}" for size in MESSAGE_BYTES) + " bytes")
    for processes, by_name in messages.items():
        for name, found in by_name.items():
            times = " ".join(f"{quartiles(times)[1] * 1e3:>9.2f}" for times in found.values())
            print(f"{processes:>10} {name:>10} {times}")


if __name__ == "__main__":
    main()
