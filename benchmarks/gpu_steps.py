"""A training step on fresh prompts, on a device: natively, many in a row, and as PyTorch does it, data included."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from gpu_deadline import Deadline
from torch import Tensor

from mhicl_fast.bench import Timing
from mhicl_fast.bench.measuring import clocks
from mhicl_fast.bench.prompt_formulations import COMPILED, EAGER, projected
from mhicl_fast.bench.timing import calls_in_turns
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import MomentumSGD, Objective, initial_parameters
from mhicl_fast.train.stepping import NativeStepper

Model = Callable[..., Tensor]


class Size(NamedTuple):
    """Prompts, context length, covariates, heads; one task."""

    n: int
    length: int
    dim_x: int
    heads: int

    @property
    def useful_operations(self) -> int:
        """8 N H L D + 4 N H D² of a forward and a backward pass, sampling not counted."""
        dim = self.dim_x + 1
        return 8 * self.n * self.heads * self.length * dim + 4 * self.n * self.heads * dim**2


STUDY, SMALL = Size(10_000, 100, 50, 8), Size(64, 8, 3, 2)


def time_steps(size: Size, device: torch.device, deadline: Deadline, *, compiled: bool) -> dict[str, Any]:
    """Seconds a step of each way that there is time for."""
    task = MultiTaskRegression(size.dim_x, 1, size.length)
    found: dict[str, Timing] = {}
    for estimator in ("sampled", "conditional"):
        if deadline.allows(5, f"native steps, {estimator}"):
            found[f"native {estimator}"] = native_step(task, size, device, estimator)
    models: Mapping[str, Model] = EAGER | {"projected eager": projected}
    if compiled:
        models = models | {name: torch.compile(model, dynamic=False) for name, model in COMPILED.items()}
    kq, ov = (weight.requires_grad_() for weight in _weights(size, device))
    for name, model in models.items():
        if deadline.allows(10, f"step of {name}"):
            found[name] = _time_of(lambda model=model: pytorch_step(model, size, kq, ov), device)  # type: ignore[misc]
    return {name: timing._asdict() for name, timing in found.items()}


def native_step(task: MultiTaskRegression, size: Size, device: torch.device, estimator: str) -> Timing:
    """Of a long row of steps: what a call costs, and its one wait at the end, drops out of the difference of two."""
    parameters = initial_parameters(task, size.heads, start="decomposable", seed=0, dtype=torch.float32).to(device)
    stepper = NativeStepper(Objective(task, estimator, size.n), parameters, MomentumSGD(0.01))

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        stepper.advance(0, steps, 0.0, float("inf"))
        return time.perf_counter() - start

    seconds(3)
    few = max(1, min(200, int(0.1 / max(seconds(5) / 5, 1e-6))))
    return Timing.of([max(seconds(3 * few) - seconds(few), 0.0) / (2 * few) for _ in range(5)])


def pytorch_step(model: Model, size: Size, kq: Tensor, ov: Tensor) -> tuple[Tensor, ...]:
    """Loss and gradients on prompts drawn as study code draws them, on the weights' device."""
    x = torch.randn(size.n, size.length + 1, size.dim_x, device=kq.device)
    y = x @ torch.randn(size.n, size.dim_x, 1, device=kq.device)
    tokens = torch.cat([x, y], -1)
    query = tokens[:, -1].clone()
    query[:, size.dim_x :] = 0
    loss = (model(tokens[:, :-1], query, kq, ov) - y[:, -1]).square().sum(1).mean()
    return torch.autograd.grad(loss, (kq, ov))


def _weights(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    generator, dim = torch.Generator().manual_seed(0), size.dim_x + 1
    kq = torch.randn(size.heads, dim, dim, generator=generator) / dim
    return kq.to(device), torch.randn(size.heads, 1, dim, generator=generator).to(device)


def _time_of(call: Callable[[], object], device: torch.device) -> Timing:
    clock, _ = clocks(device)

    def timed() -> Any:
        call()
        return clock.now()

    made = calls_in_turns({"": timed}, rounds=3, seconds=0.5, clock=clock)[""]
    return Timing.of([one.end - one.start for one in made])
