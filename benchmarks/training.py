"""Times training steps on fresh prompts, natively and in PyTorch, and sets them against the floor.

    python benchmarks/training.py [--rounds 7] [--json FILE]

1. One step of 2000 fresh prompts (L = 100, d = 50, one task, 8 heads, float32): loss and gradients in KQ and OV.
2. The same at equal error of the gradient: time per prompt times the gradient's variance per prompt.
3. A step of the `demystified` preset with 4 heads, Adam included, and of the `multi-task` preset.
4. The floor of the first: operations at measured peak plus normals at their measured cost.
5. Peak memory of a process that trains, over its memory after the imports.

The native step is checked before anything is timed. Ratios hold within one run; times depend on the machine and on
what else it does.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mhicl_fast
from mhicl_fast import spectral
from mhicl_fast.bench import Timing, fma_peak, time_in_turns
from mhicl_fast.bench.prompt_formulations import COMPILED, EAGER, projected
from mhicl_fast.presets import preset
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Objective, RunConfig, balanced_decomposable
from mhicl_fast.train.stepping import make_stepper

N, LENGTH, DIM_X, HEADS = 2000, 100, 50, 8
STUDY = MultiTaskRegression(DIM_X, 1, LENGTH)
Model = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def draw(n_prompts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh prompts as study code draws them: context (N, L, D), query (N, D), target (N, 1)."""
    x = torch.randn(n_prompts, LENGTH + 1, DIM_X)
    y = x @ torch.randn(n_prompts, DIM_X, 1)
    tokens = torch.cat([x, y], -1)
    query = tokens[:, -1].clone()
    query[:, DIM_X:] = 0
    return tokens[:, :-1], query, y[:, -1]


def pytorch_step(model: Model, kq: Tensor, ov: Tensor) -> tuple[Tensor, ...]:
    context, query, target = draw(N)
    loss = (model(context, query, kq, ov) - target).square().sum(1).mean()
    return torch.autograd.grad(loss, (kq, ov))


def weights(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dim = DIM_X + 1
    kq = torch.randn(HEADS, dim, dim, generator=generator) / dim
    return kq.requires_grad_(), torch.randn(HEADS, 1, dim, generator=generator).requires_grad_()


def check() -> None:
    """The native step against the projected form in float64 on the very prompts that it draws."""
    kq, ov = weights()
    few = 64
    result = Objective(STUDY, "sampled", few, 0)(kq.detach(), ov.detach(), 0)
    prompts = STUDY.sample(few, seed=0, step=0, dtype=torch.float64)
    exact_kq, exact_ov = (weight.detach().double().requires_grad_() for weight in (kq, ov))
    loss = (projected(prompts.context, prompts.query, exact_kq, exact_ov) - prompts.target).square().sum(1).mean()
    exact = torch.autograd.grad(loss, (exact_kq, exact_ov))
    for mine, theirs in zip((result.grad_kq, result.grad_ov), exact, strict=True):
        error = float((mine.double() - theirs).norm() / theirs.norm())
        if not error <= 2e-5:
            raise SystemExit(f"the native step is wrong: relative error {error:.2e}")


def steps(rounds: int) -> dict[str, Timing]:
    """Seconds of one step with fresh data, each contestant in its turn."""
    kq, ov = weights()
    contestants: dict[str, Callable[[], object]] = {}
    for name in ("sampled", "conditional", "subspace"):
        objective = Objective(STUDY, name, N, 0)
        start = native_start(name, kq, ov)
        contestants[f"native {name}"] = lambda objective=objective, start=start: objective(*start, 0)
    compiled = {name: torch.compile(model, dynamic=False) for name, model in COMPILED.items()}
    models = EAGER | compiled | {"projected eager": projected}
    for name, model in models.items():
        contestants[name] = lambda model=model: pytorch_step(model, kq, ov)
    contestants["data alone"] = lambda: draw(N)
    return time_in_turns(contestants, rounds, block=2)


def native_start(estimator: str, kq: Tensor, ov: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that the estimate can take."""
    kq, ov = kq.detach().clone(), ov.detach().clone()
    if estimator != "sampled":
        kq[:, DIM_X:, :DIM_X] = 0
        ov[:, :, :DIM_X] = 0
    return kq, ov


def show_steps(timings: dict[str, Timing]) -> dict[str, float]:
    own = timings["native sampled"].median
    rivals = {name: timing for name, timing in timings.items() if name in EAGER or name in COMPILED}
    best = min(rivals, key=lambda name: rivals[name].median)
    print(f"\nstep with fresh data, N={N} L={LENGTH} d={DIM_X} I=1 H={HEADS} float32")
    for name, timing in timings.items():
        print(f"    {name:<20} {timing.median * 1e3:8.2f} ms   ({timing.low * 1e3:.2f} to {timing.high * 1e3:.2f})"
              f"   {timing.median / own:7.2f}")  # fmt: skip
    ratios = {
        "to_best_pytorch": rivals[best].median / own,
        "to_projected_eager": timings["projected eager"].median / own,
    }
    print(f"  native sampled is {ratios['to_best_pytorch']:.1f} times faster than {best}, the best PyTorch, and "
          f"{ratios['to_projected_eager']:.0f} times faster than projected eager")  # fmt: skip
    return ratios


def moments_of_training() -> dict[str, tuple[Tensor, Tensor]]:
    """Combined weights of the `single-task` preset's flow at its start, half emergence and limit, by the ODE."""
    config = preset("single-task")
    kq, ov = (matrix.double() for matrix in config.start_parameters(torch.float64).to_combined())
    values = spectral.diagonal(kq, ov, STUDY)
    scale = (DIM_X + 1) ** -0.5
    path = spectral.solve(STUDY, values.mu, values.omega, parameters="factored", scale=scale, t_end=1e4)
    shares = path.shares()[:, 0]
    half = float(path.t[(shares >= shares[-1] / 2).argmax()])
    found = {}
    for name, time in (("start", 0.0), ("half emergence", half), ("limit", 1e4)):
        mu, omega = (torch.as_tensor(value) for value in path(time)[:2])
        found[name] = balanced_decomposable(STUDY, mu, omega, scale).to_combined()
    return found


def relative_variance(estimator: str, kq: Tensor, ov: Tensor, exact: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Variance of one prompt's gradient in KQ and OV over the squared norm of the gradient."""
    prompts, batches = 64, 64
    errors = [0.0, 0.0]
    for seed in range(batches):
        result = Objective(STUDY, estimator, prompts, 1000 + seed)(kq, ov, 0)
        for i, (mine, right) in enumerate(zip(result[1:], exact, strict=True)):
            errors[i] += float((mine - right).double().square().sum()) * prompts / batches
    return tuple(error / float(right.double().square().sum()) for error, right in zip(errors, exact, strict=True))


def equal_precision(timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """Time for the same gradient error, as a ratio to sampled prompts in the projected eager form."""
    print("\nat equal gradient error (single-task preset): variance per prompt / |gradient|², KQ and OV, "
          "and times faster than projected eager")  # fmt: skip
    rows = []
    for moment, (kq, ov) in moments_of_training().items():
        exact = Objective(STUDY, "subspace", 200_000, 7)(kq, ov, 0)[1:]
        variances = {name: relative_variance(name, kq, ov, exact) for name in ("sampled", "conditional", "subspace")}
        for name, variance in variances.items():
            speed = timings["projected eager"].median / timings[f"native {name}"].median
            faster = [speed * base / own for base, own in zip(variances["sampled"], variance, strict=True)]
            rows.append({"moment": moment, "estimator": name, "variance": variance, "times_faster": faster})
            print(f"    {moment:<16} {name:<12} {variance[0]:9.3g} {variance[1]:9.3g}   "
                  f"{faster[0]:9.3g} {faster[1]:9.3g}")  # fmt: skip
    return rows


class EagerDemystified:
    """The `demystified` step with 4 heads as a short PyTorch script has it: projections of every token, Adam."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.task = config, config.task()
        start = config.start_parameters()
        self.weights = {name: tensor.clone().requires_grad_() for name, tensor in start.tensors().items()}
        self.scale = start.logit_scale
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=config.learning_rate)

    def __call__(self) -> None:
        n, d, length = self.config.n_prompts, self.task.dim_x, self.task.context_length
        noise = self.task.noise_std
        x = torch.randn(n, length + 1, d)
        y = x @ (torch.randn(n, d, 1) / math.sqrt(d)) + noise * torch.randn(n, length + 1, 1)
        query = torch.cat([x[:, -1], torch.zeros(n, 1)], -1)
        context = torch.cat([x[:, :-1], y[:, :-1]], -1)
        w = self.weights
        queries = torch.einsum("hed,nd->nhe", w["w_q"], query)
        keys = torch.einsum("hed,nld->nhle", w["w_k"], context)
        values = torch.einsum("hed,nld->nhle", w["w_v"], context)
        probabilities = (self.scale * torch.einsum("nhe,nhle->nhl", queries, keys)).softmax(-1)
        heads = torch.einsum("nhl,nhle->nhe", probabilities, values)
        prediction = torch.einsum("nhe,hoe->no", heads, w["w_o"])
        loss = (prediction - y[:, -1]).square().sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def native_steps(config: RunConfig, count: int) -> Callable[[], object]:
    """`count` steps of a run in one native call."""
    stepper = make_stepper(config.objective(), config.start_parameters(), config.make_optimizer())

    def advance() -> object:
        return stepper.advance(0, count, 0.0, math.inf)

    return advance


def presets(rounds: int) -> dict[str, dict[str, float]]:
    """Steps of whole runs: seconds each, and what all the steps of the preset come to."""
    demystified = preset("demystified").with_settings(["n_heads=4"])
    multi_task = preset("multi-task")
    calls = {"demystified": (demystified, 2000), "multi-task": (multi_task, 100)}
    timings = time_in_turns(
        {name: native_steps(config, count) for name, (config, count) in calls.items()}
        | {"demystified eager": EagerDemystified(demystified)},
        rounds,
        block=2,
    )
    eager = timings["demystified eager"].median
    rows = {}
    print("\nwhole runs")
    for name, (config, count) in calls.items():
        step = timings[name].median / count
        rows[name] = {"step_s": step, "all_steps_s": step * config.steps}
        print(f"    {name:<12} {step * 1e6:9.1f} us a step, {config.steps} steps in {step * config.steps:.0f} s")
    rows["demystified"]["to_eager"] = eager / rows["demystified"]["step_s"]
    ratio = rows["demystified"]["to_eager"]
    print(f"  demystified: {ratio:.0f} times faster than eager PyTorch ({eager * 1e3:.2f} ms)")
    return rows


def floor(measured: float) -> dict[str, float]:
    """Operations at the measured peak and normals at their measured cost, against the step."""
    dim = DIM_X + 1
    operations = 8 * N * HEADS * LENGTH * dim + 4 * N * HEADS * dim**2
    peak = fma_peak(torch.float32)
    normals = N * (LENGTH * DIM_X + 2 * DIM_X)
    threads = torch.get_num_threads()
    each = seconds_a_normal()
    parts = {"operations_s": operations / peak, "normals_s": normals * each / threads}
    share = sum(parts.values()) / measured
    print(f"\nfloor of the native sampled step: {operations / 1e9:.2f} GFLOP at {peak / 1e9:.0f} GFLOP/s = "
          f"{parts['operations_s'] * 1e3:.2f} ms, {normals / 1e6:.1f} M normals at {each * 1e9:.2f} ns "
          f"on {threads} threads = {parts['normals_s'] * 1e3:.2f} ms: {share:.0%} of the step")  # fmt: skip
    return parts | {"share": share}


def seconds_a_normal() -> float:
    """Of one thread, by the difference of two calls, so that what a call costs drops out."""
    address = {"seed": 0, "step": 0, "prompt": 0, "stream": 0, "first_element": 0}
    few, many = torch.empty(1 << 12), torch.empty(3 << 12)  # both stay in the caches next to the core
    timings = time_in_turns(
        {
            "few": lambda: torch.ops.mhicl.philox_normals(few, **address),
            "many": lambda: torch.ops.mhicl.philox_normals(many, **address),
        },
        200,
    )
    return (timings["many"].median - timings["few"].median) / (many.numel() - few.numel())


MEMORY = """
import mhicl_fast.plots
from mhicl_fast.presets import preset
from mhicl_fast.train.stepping import make_stepper
from mhicl_fast.bench.memory import peak_resident, reset_peak, resident
before = resident()
reset_peak()
config = preset({name!r}).with_settings(["n_prompts={prompts}"])
stepper = make_stepper(config.objective(), config.start_parameters(), config.make_optimizer())
stepper.advance(0, {steps}, 0.0, float("inf"))
print((peak_resident() - before) / 1e6)
"""


def memory() -> dict[str, float]:
    """Megabytes by which training's peak exceeds what a process that has imported everything holds (Linux)."""
    rows = {}
    for name, prompts, count in (("single-task", 10_000, 3), ("single-task", 100_000, 1), ("demystified", 256, 20_000)):
        code = MEMORY.format(name=name, prompts=prompts, steps=count)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        rows[f"{name}, N={prompts}, {count} steps"] = float(done.stdout)
    print("\npeak memory over the imports: " + "; ".join(f"{name}: {size:.0f} MB" for name, size in rows.items()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    info = mhicl_fast.build_info()
    print(f"mhicl_fast {info['version']}, torch {torch.__version__}, {info['instruction_sets']['active']}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    check()
    timings = steps(arguments.rounds)
    results = {
        "ratios": show_steps(timings),
        "milliseconds": {name: [second * 1e3 for second in timing] for name, timing in timings.items()},
        "floor": floor(timings["native sampled"].median),
        "equal_precision": equal_precision(timings),
        "presets": presets(arguments.rounds),
        "memory_mb": memory(),
    }
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
