"""Checks prompt_attention's results, then times a training step's forward and backward pass against plain PyTorch.

    python benchmarks/prompt_attention.py [--rounds 15] [--projected] [--json FILE]

Gradients are those of kq and ov; the context is data. Ratios hold within one run; times depend on the machine and on
what else it does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from formulations import COMPILED, EAGER, ours, projected
from measure import Timing, fma_peak, read_bandwidth, time_in_turns
from torch import Tensor

import mhicl_fast

Model = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Prompts, context length, covariates, tasks (outputs), heads."""

    n: int
    length: int
    dim_x: int
    n_tasks: int
    heads: int

    @property
    def dim(self) -> int:
        return self.dim_x + self.n_tasks

    @property
    def operations(self) -> int:
        """Useful ones of a forward and backward pass: 8 N H L D + 4 N H D², nothing recomputed."""
        return 8 * self.n * self.heads * self.length * self.dim + 4 * self.n * self.heads * self.dim**2


SHAPES = [Shape(2000, 100, 50, 1, 8), Shape(1000, 200, 30, 3, 4), Shape(4000, 40, 5, 1, 2), Shape(500, 1000, 20, 2, 2)]


def make_inputs(shape: Shape, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [
        (shape.n, shape.length, shape.dim),
        (shape.n, shape.dim),
        (shape.heads, shape.dim, shape.dim),
        (shape.heads, shape.n_tasks, shape.dim),
    ]
    context, query, kq, ov = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    grad_out = torch.randn(shape.n, shape.n_tasks, generator=generator, dtype=torch.float64).to(dtype)
    return [context, query, (kq / shape.dim).requires_grad_(), ov.requires_grad_()], grad_out


def step(model: Model, inputs: list[Tensor], grad_out: Tensor) -> list[Tensor]:
    out = model(*inputs)
    return [out, *torch.autograd.grad(out, inputs[2:], grad_out)]


def check(name: str, model: Model, inputs: list[Tensor], grad_out: Tensor, bound: float) -> float:
    """The largest relative error against the projected form in float64, on the first prompts; fails above `bound`."""
    few = min(len(grad_out), 64)
    small = [inputs[0][:few], inputs[1][:few], *inputs[2:]]
    exact_inputs = [x.detach().double().requires_grad_(i >= 2) for i, x in enumerate(small)]
    exact = step(projected, exact_inputs, grad_out[:few].double())
    error = max(
        float((a.double() - b).norm() / b.norm())
        for a, b in zip(step(model, small, grad_out[:few]), exact, strict=True)
    )
    if not error <= bound:
        raise SystemExit(f"{name}: relative error {error:.2e} exceeds {bound:.0e}")
    return error


def compare(shape: Shape, dtype: torch.dtype, rounds: int, with_projected: bool) -> dict[str, Timing]:
    inputs, grad_out = make_inputs(shape, dtype)
    torch._dynamo.reset()
    models: dict[str, Model] = {"mhicl_fast": ours} | EAGER
    models |= {name: torch.compile(model, dynamic=False) for name, model in COMPILED.items()}
    if with_projected:
        models["projected eager"] = projected
    bound = 1e-11 if dtype == torch.float64 else 2e-5
    for name, model in models.items():
        check(name, model, inputs, grad_out, bound)
    return time_in_turns(
        {name: lambda model=model: step(model, inputs, grad_out) for name, model in models.items()}, rounds
    )


def peak_memory_of_a_step(shape: Shape) -> float:
    """Extra resident memory of a float32 training step in a fresh process, in multiples of the context's size."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import prompt_attention as b, torch;"
        f"shape = b.Shape(*{tuple(shape)}); small = b.Shape(2, *shape[1:]);"
        "b.step(b.ours, *b.make_inputs(small, torch.float32)); inputs, grad = b.make_inputs(shape, torch.float32);"
        "torch.ones(1); before = b.resident(); b.reset_peak(); b.step(b.ours, inputs, grad);"
        "print((b.peak_resident() - before) / (inputs[0].numel() * 4))"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True)
    return float(done.stdout)


def resident() -> int:
    """Bytes of this process that are in memory now (Linux)."""
    return _status("VmRSS")


def peak_resident() -> int:
    return _status("VmHWM")


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--projected", action="store_true", help="also time the form that projects every token (slow)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    info = mhicl_fast.build_info()
    peaks = {dtype: fma_peak(dtype) for dtype in (torch.float32, torch.float64)}
    print(f"mhicl_fast {info['version']}, torch {torch.__version__}, {info['instruction_sets']['active']}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print(f"peak {peaks[torch.float32] / 1e9:.0f} GFLOP/s in float32, {peaks[torch.float64] / 1e9:.0f} in float64; "
          f"memory {read_bandwidth() / 1e9:.1f} GB/s\n")  # fmt: skip
    results = []
    for shape in SHAPES:
        for dtype in peaks:
            results.append(report(shape, dtype, peaks[dtype], arguments.rounds, arguments.projected))
    for shape in SHAPES:
        print(
            f"peak extra memory of a step at {tuple(shape)}: {peak_memory_of_a_step(shape):.2f} of the context's size"
        )
    print(
        f"peak resident memory of this benchmark: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


def report(shape: Shape, dtype: torch.dtype, peak: float, rounds: int, with_projected: bool) -> dict:
    timings = compare(shape, dtype, rounds, with_projected)
    own = timings["mhicl_fast"]
    rivals = {name: timing for name, timing in timings.items() if name not in ("mhicl_fast", "projected eager")}
    best = min(rivals, key=lambda name: rivals[name].median)
    share = shape.operations / own.median / peak
    print(f"N={shape.n} L={shape.length} d={shape.dim_x} I={shape.n_tasks} H={shape.heads} {str(dtype)[6:]}: "
          f"{share:.0%} of peak, {rivals[best].median / own.median:.2f} times faster than {best}")  # fmt: skip
    for name, timing in timings.items():
        print(f"    {name:<20} {timing.median * 1e3:8.2f} ms   ({timing.low * 1e3:.2f} to {timing.high * 1e3:.2f})"
              f"   {timing.median / own.median:6.2f}")  # fmt: skip
    return {
        "shape": shape._asdict(),
        "dtype": str(dtype)[6:],
        "share_of_peak": share,
        "ratio_to_best": rivals[best].median / own.median,
        "milliseconds": {name: [second * 1e3 for second in timing] for name, timing in timings.items()},
    }


if __name__ == "__main__":
    main()
