"""Times products of the population loss's Hessian with a vector, by hand and by differentiating the loss twice.

    python benchmarks/hessian.py [--rounds 5]

L = 100, d = 50, one task, 8 heads, float32. Both ways draw their prompts; results are compared before anything is
timed. Peak memory is that of a process that computes one way, over its memory before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch
from torch import Tensor

from mhicl_fast.bench.memory import peak_resident, reset_peak, resident
from mhicl_fast.bench.timing import time_in_turns
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import hessian_vector_product, population_loss

TASK, HEADS = MultiTaskRegression(50, 1, 100, noise_std=0.3), 8


def weights(seed: int, kq_size: float, ov_size: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kq = kq_size * torch.randn(HEADS, TASK.dim, TASK.dim, generator=generator)
    kq[:, TASK.dim_x :, : TASK.dim_x] = 0
    return kq, ov_size * torch.randn(HEADS, 1, TASK.dim, generator=generator)


WEIGHTS, ALONG = weights(0, 0.05, 0.3), weights(1, 1.0, 1.0)


def by_hand(estimator: str, n_prompts: int) -> tuple[Tensor, ...]:
    return hessian_vector_product(TASK, *WEIGHTS, *ALONG, estimator=estimator, n_prompts=n_prompts)[3:]


def backwards_twice(estimator: str, n_prompts: int) -> tuple[Tensor, ...]:
    leaves = [w.clone().requires_grad_() for w in WEIGHTS]
    loss = population_loss(TASK, *leaves, estimator=estimator, n_prompts=n_prompts)
    return torch.autograd.grad(torch.autograd.grad(loss, leaves, create_graph=True), leaves, ALONG)


def gradient(estimator: str, n_prompts: int) -> tuple[Tensor, ...]:
    leaves = [w.clone().requires_grad_() for w in WEIGHTS]
    return torch.autograd.grad(population_loss(TASK, *leaves, estimator=estimator, n_prompts=n_prompts), leaves)


WAYS = {"by hand": by_hand, "backwards twice": backwards_twice, "gradient alone": gradient}


def peak_mib(way: str, estimator: str, n_prompts: int) -> float:
    command = [sys.executable, __file__, "--memory", way, estimator, str(n_prompts)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory(way: str, estimator: str, n_prompts: int) -> None:
    reset_peak()
    before = resident()
    WAYS[way](estimator, n_prompts)
    print((peak_resident() - before) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs=3, metavar=("WAY", "ESTIMATOR", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        way, estimator, n_prompts = arguments.memory
        print_memory(way, estimator, int(n_prompts))
        return
    for estimator in ("sampled", "conditional"):
        for n_prompts in (2000, 10_000):
            for one, other in zip(by_hand(estimator, n_prompts), backwards_twice(estimator, n_prompts), strict=True):
                assert (one - other).norm() < 1e-4 * other.norm()
            calls = {way: lambda f=f, e=estimator, n=n_prompts: f(e, n) for way, f in WAYS.items()}
            for way, timing in time_in_turns(calls, arguments.rounds, block=1).items():
                memory = peak_mib(way, estimator, n_prompts)
                print(f"{estimator:12} N = {n_prompts:6} {way:16} {1e3 * timing.median:8.1f} ms {memory:6.0f} MiB")


if __name__ == "__main__":
    main()
