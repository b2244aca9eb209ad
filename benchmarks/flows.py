"""Times of noise-free flows to their limits, and how the matrix flow compares with SciPy's DOP853 on the same velocity.

    python benchmarks/flows.py [--quick]

Ten covariates for each of three tasks, four heads, L = 1000, σ = 0.1, from a small random start. Each result is checked
before it is timed: the spectral ODE and the matrix flow must come to the same loss.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.integrate import solve_ivp

from mhicl_fast.spectral import solve
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Combined, Factored, balanced_decomposable, matrix_flow
from mhicl_fast.train.matrix.velocity import Velocity

HEADS, SIZE, N_TASKS = 4, 10, 3
TOLERANCE = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="follow the matrix flow to t = 100 rather than 3000")
    t_end = 100.0 if parser.parse_args().quick else 3000.0
    support = torch.eye(N_TASKS, dtype=torch.bool).repeat_interleave(SIZE, 1)
    task = MultiTaskRegression(SIZE * N_TASKS, N_TASKS, 1000, support=support, noise_std=0.1, noisy_target=True)
    mu, omega = np.random.default_rng(0).uniform(0.02, 0.1, (2, HEADS, N_TASKS)) ** 2
    spectral(task, mu, omega)
    per_covariate = omega @ support.numpy()
    factored = balanced_decomposable(task, torch.as_tensor(mu), torch.as_tensor(per_covariate), scale=1.0)
    combined = Combined(*(matrix.clone() for matrix in factored.to_combined()))
    for name, weights in (("factored", factored), ("combined", combined)):
        full(task, weights, name, mu, per_covariate, t_end)


def spectral(task: MultiTaskRegression, mu: np.ndarray, omega: np.ndarray) -> None:
    """Medians of five solutions of the spectral ODE, to t = 10⁵."""
    root = np.sqrt(mu), np.sqrt(omega)
    starts = {
        "factored": (mu, omega),
        "combined": (mu, omega),
        "unbalanced": tuple((part, 1.01 * part) for part in root),
    }
    for parameters, start in starts.items():
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            trajectory = solve(task, *start, parameters=parameters, t_end=1e5)
            seconds.append(time.perf_counter() - begin)
        print(f"spectral ODE, {parameters}: {np.median(seconds):.2f} s (slowest {max(seconds):.2f}), "
              f"{len(trajectory.t)} steps, loss {trajectory.loss[-1]:.4f}")  # fmt: skip


def full(
    task: MultiTaskRegression, weights: Factored | Combined, name: str, mu: np.ndarray, omega: np.ndarray, t_end: float
) -> None:
    """The matrix flow to `t_end`, checked against the spectral ODE, and DOP853 over the first 100 time units."""
    begin = time.perf_counter()
    flow = matrix_flow(task, weights, t_end=t_end, order="first")
    seconds = time.perf_counter() - begin
    expected = solve(task, mu, omega, parameters=name, order="first", t_end=t_end).loss[-1]
    assert abs(flow.loss[-1] / expected - 1) < 1e3 * TOLERANCE, (flow.loss[-1], expected)
    velocity = Velocity(task, weights, "first")

    def field(_: float, theta: np.ndarray) -> np.ndarray:
        # Outside of the loss's domain the velocity is NaN, with which DOP853 would go on; a large one makes it shorten
        # its step.
        return np.nan_to_num(velocity(theta), nan=1e3)

    begin = time.perf_counter()
    start = velocity.flatten(weights.tensors())
    other = solve_ivp(field, (0, 100), start, method="DOP853", first_step=0.01, rtol=TOLERANCE, atol=1e-10)
    other_seconds = time.perf_counter() - begin
    early = matrix_flow(task, weights, t_end=100.0, order="first").evaluations
    print(f"matrix flow, {name}, d = {task.dim_x}, {HEADS} heads, first order, to t = {t_end:g}: {seconds:.1f} s, "
          f"{flow.evaluations} velocities, loss {flow.loss[-1]:.4f} (spectral ODE {expected:.4f}); to t = 100 "
          f"{early} velocities, DOP853 {other.nfev} in {other_seconds:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
