"""What each process of tests/test_distributed_steps.py does: run by torchrun, it writes what it found to `rank.json`.

torchrun … distributed_steps.py trained | lost FOLDER
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mhicl_fast.processes import ALONE, Processes, launched
from mhicl_fast.train import RunConfig
from mhicl_fast.train.stepping import PythonStepper, Span, Stepper, make_stepper

STEPS = 20
FOREVER = 1e9
RULES: dict[str, dict[str, Any]] = {
    "flow, steps limited": {"optimizer": "flow", "learning_rate": 0.1, "step_cap": 0.005},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.005},
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.3},
}
PLAIN = RunConfig(
    dim_x=5, n_tasks=2, context_length=13, support="0:4,2:5", signal="0.7,1.6", n_heads=3, start="small",
    start_size=0.3, learning_rate=0.02, steps=STEPS, seed=11,
)  # fmt: skip
NOISY = dataclasses.replace(PLAIN, noise_std=0.5, noisy_target=True, covariance="ar:0.4")
WIDE = dataclasses.replace(NOISY, dim_x=24, n_heads=56, support="all")  # messages that three do not gather
SYMMETRIC = dataclasses.replace(PLAIN, noise_std=0.5, symmetric=True)
# One prompt and fewer than processes, whole chunks of 16 and a prompt more, more chunks than slices.
COUNTS = (200, 1, 37, 2, 17, 1100, 48)


def cases() -> Iterator[tuple[str, RunConfig]]:
    """Every estimate, rule, parameterisation and type; tasks and numbers of prompts by turns."""
    tasks = itertools.cycle({"plain": PLAIN, "noisy": NOISY, "symmetric": SYMMETRIC}.items())
    counts = itertools.cycle(COUNTS)
    estimates = ("sampled", "conditional", "subspace")
    for estimator, (rule, options) in itertools.product(estimates, RULES.items()):
        for parameters, dtype in itertools.product(("combined", "factored"), ("float32", "float64")):
            (task, config), n_prompts = next(tasks), next(counts)
            start = "random" if estimator == "sampled" and task != "symmetric" else "small"
            several = {"parameters": parameters, "dtype": dtype, "n_prompts": n_prompts, "start": start}
            name = f"{estimator}, {rule}, {parameters}, {dtype}, {task}, {n_prompts} prompts"
            yield name, dataclasses.replace(config, estimator=estimator, **several, **options)


def wide_cases() -> Iterator[tuple[str, RunConfig]]:
    """Messages that are large for the engine."""
    for dtype in ("float32", "float64"):
        start = {"start": "random", "estimator": "sampled", "optimizer": "adam"}
        yield f"wide, {dtype}", dataclasses.replace(WIDE, dtype=dtype, n_prompts=40, **start)


def all_cases() -> dict[str, RunConfig]:
    """By name."""
    return dict([*cases(), *wide_cases()])


def difference(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest of any entry."""
    return max(float((mine[name] - theirs[name]).abs().max()) for name in theirs)


class Training:
    """Weights and an update rule on their way, alone or with other processes."""

    def __init__(self, config: RunConfig, processes: Processes = ALONE, kind: str = "all-reduce") -> None:
        self.parameters, self.optimizer = config.start_parameters(), config.make_optimizer()
        objective = config.objective()
        self.stepper: Stepper
        if kind == "python":
            share = objective.share(processes.rank, processes.size)
            self.stepper = PythonStepper(share, self.parameters, self.optimizer, processes)
        else:
            self.stepper = make_stepper(objective, self.parameters, self.optimizer, processes, kind)
        self.spans: list[Span] = []

    def advance(self, n_steps: int, stop: bool = False) -> Span:
        flow_time = self.spans[-1].flow_time if self.spans else 0.0
        step = sum(span.steps for span in self.spans)
        self.spans.append(self.stepper.advance(step, n_steps, flow_time, FOREVER, stop))
        return self.spans[-1]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that later steps depend on."""
        return dict(self.parameters.tensors()) | self.optimizer.state()

    def digest(self) -> str:
        """Of the weights and the rule's state, and of the last loss and flow time."""
        found = hashlib.sha256(repr(self.spans[-1][4:7]).encode())
        for tensor in self.tensors().values():
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


def compared(config: RunConfig, processes: Processes, kinds: Sequence[str]) -> dict[str, Any]:
    """Steps of all processes beside those of this one by itself, in calls that differ from process to process."""
    torch.set_num_threads(1)
    alone = Training(config)
    alone.advance(STEPS)
    torch.set_num_threads(1 + processes.rank)
    start = config.start_parameters().tensors()
    theirs = alone.parameters.tensors()
    found: dict[str, Any] = {
        "alone": alone.digest(),
        "loss": alone.spans[-1].last_loss,
        "moved": max(float((theirs[name] - start[name]).abs().max()) for name in theirs),
    }
    for kind in kinds:
        together = Training(config, processes, kind)
        first = 3 + processes.rank
        for steps in (first, STEPS - first):
            span = together.advance(steps)
            assert (span.steps, span.finite, span.stopped, span.lost) == (steps, True, False, "")
        found[kind] = {
            "digest": together.digest(),
            "difference": difference(together.parameters.tensors(), theirs),
            "loss": together.spans[-1].last_loss,
        }
    return found


def evaluated(config: RunConfig, processes: Processes, kind: str) -> dict[str, Any]:
    """An evaluation, which changes nothing, and the one that a single process makes."""
    together, alone = Training(config, processes, kind), Training(config)
    before = {name: tensor.clone() for name, tensor in together.tensors().items()}
    spans = [training.advance(0) for training in (together, alone)]
    assert all(tensor.equal(before[name]) for name, tensor in together.tensors().items())
    return {"together": spans[0], "alone": spans[1]}


def stopped(config: RunConfig, processes: Processes, kind: str) -> dict[str, Any]:
    """The last process asks to stop before its sixth step; the first hears of it in the middle of a long call."""
    training = Training(config, processes, kind)
    asks = processes.rank == processes.size - 1
    if asks:
        training.advance(5)
    span = training.advance(1000, stop=asks)
    return {"steps": sum(span.steps for span in training.spans), "stopped": span.stopped, "digest": training.digest()}


def bad_arguments(processes: Processes) -> list[str]:
    """What the stepper says to arguments that cannot be."""
    said = []
    for changes in ({"rank": processes.size}, {"group": ""}, {"rank": 0, "size": 1}):
        try:
            Training(PLAIN, dataclasses.replace(processes, **changes)).advance(1)
        except ValueError as error:
            said.append(str(error))
    return said


def trained(processes: Processes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, config in all_cases().items():
        kinds = ["all-reduce", "tree"] + (["python"] if config.optimizer == "adam" else [])
        found[name] = compared(config, processes, kinds)
    for kind in ("all-reduce", "tree", "python"):
        config = dataclasses.replace(NOISY, n_prompts=48, dtype="float64")
        found[f"evaluated {kind}"] = evaluated(config, processes, kind)
        found[f"stopped {kind}"] = stopped(config, processes, kind)
        # With less prompts than processes, the one that asks has none.
        found[f"stopped by one without prompts {kind}"] = stopped(
            dataclasses.replace(config, n_prompts=1), processes, kind
        )
    found["bad arguments"] = bad_arguments(processes)
    return found


def lost(processes: Processes) -> dict[str, Any]:
    """Of two pairs of processes, one of each dies or sleeps after five steps; the other goes on."""
    pairs = [dist.new_group([first, first + 1], timeout=timedelta(seconds=2)) for first in (0, 2)]
    pair, place = divmod(processes.rank, 2)
    couple = dataclasses.replace(processes, rank=place, size=2, group=pairs[pair].group_name)
    training, expected = Training(NOISY, couple, "all-reduce" if pair else "tree"), Training(NOISY)
    if place == 1:
        training.advance(5)
        if pair == 1:
            time.sleep(5)
        os._exit(0)
    expected.advance(5)
    begin = time.monotonic()
    span = training.advance(1000)
    seconds = time.monotonic() - begin
    again = training.advance(1)
    in_python = Training(NOISY, dataclasses.replace(processes, rank=0), "python").advance(3)
    return {
        "span": span,
        "seconds": seconds,
        "again": again,
        "in_python": in_python,
        "difference": difference(training.tensors(), expected.tensors()),
    }


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    with launched(3 if what == "lost" else 60) as processes:
        found = {"trained": trained, "lost": lost}[what](processes)
        (folder / f"{processes.rank}.json").write_text(json.dumps(found))
        if what == "lost":
            sys.stdout.flush()
            os._exit(0)  # there is no group to leave in good order


if __name__ == "__main__":
    main()
