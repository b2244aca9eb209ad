"""Prompts, losses, steps and runs on a GPU against the CPU's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from on_device import DEVICE, relative_error
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import (
    Objective,
    RunConfig,
    evaluate,
    gradient_noise,
    initial_parameters,
    measure_lengths,
    population_loss,
    resume,
    run,
)
from mhicl_fast.train.loop import Progress
from mhicl_fast.train.optimisers import Optimizer, make_optimizer
from mhicl_fast.train.stepping import NativeStepper, PythonStepper, Span

PLAIN = MultiTaskRegression(6, 2, 37, noise_std=0.3, noisy_target=True, signal=[0.5, 2.0])
CORRELATED = MultiTaskRegression(5, 1, 20, covariance=0.5 * torch.eye(5, dtype=torch.float64) + 0.5)
WIDE = MultiTaskRegression(50, 1, 100)
TASKS = {"plain": PLAIN, "correlated": CORRELATED, "wide": WIDE}
ON_GPUS = ("sampled", "conditional")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "flow": {"step_cap": 0.05}, "sgd": {"momentum": 0.9}, "adam": {}, "adamw": {"weight_decay": 0.1},
}  # fmt: skip


def weights(task: MultiTaskRegression, dtype: torch.dtype, heads: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    kq = torch.randn(heads, task.dim, task.dim, generator=generator, dtype=torch.float64) / task.dim
    ov = torch.randn(heads, task.n_tasks, task.dim, generator=generator, dtype=torch.float64) / heads
    kq[:, task.dim_x :, : task.dim_x] = 0
    return [x.to(dtype) for x in (kq, ov)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_prompts_are_the_cpu_s(task: MultiTaskRegression, dtype: torch.dtype) -> None:
    where = {"seed": 2**64 - 3, "step": 5, "first_prompt": 2**40}
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    here = task.sample(70, **where, device=DEVICE, dtype=dtype)
    for mine, theirs in zip(here, task.sample(70, **where, device="cpu", dtype=dtype), strict=True):
        assert mine.device.type == DEVICE.type
        assert relative_error(mine, theirs) < tolerance
    for mine, theirs in zip(
        task.sample_covariates(9, **where, device=DEVICE, dtype=dtype),
        task.sample_covariates(9, **where, device="cpu", dtype=dtype),
        strict=True,
    ):
        assert relative_error(mine, theirs) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("estimator", ON_GPUS)
def test_a_step_s_loss_and_gradients(estimator: str, task: MultiTaskRegression, dtype: torch.dtype) -> None:
    objective = Objective(task, estimator, n_prompts=300, seed=4)
    kq, ov = weights(task, dtype)
    found, expected = objective(kq.to(DEVICE), ov.to(DEVICE), 3), objective(kq, ov, 3)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    assert relative_error(found.grad_kq, expected.grad_kq) < tolerance
    assert relative_error(found.grad_ov, expected.grad_ov) < tolerance
    again = objective(kq.to(DEVICE), ov.to(DEVICE), 3)
    assert again.loss == found.loss
    assert torch.equal(again.grad_kq, found.grad_kq)
    assert torch.equal(again.grad_ov, found.grad_ov)


@pytest.mark.parametrize("estimator", [*ON_GPUS, "asymptotic"])
def test_the_differentiable_loss(estimator: str) -> None:
    results = []
    for device in (torch.device("cpu"), DEVICE):
        kq, ov = (x.to(device).requires_grad_() for x in weights(PLAIN, torch.float64))
        if estimator == "asymptotic":
            kq, ov = (x.detach().clone().requires_grad_() for x in (0.3 * kq, ov))
            ov.data[:, :, : PLAIN.dim_x] = 0
        loss = population_loss(PLAIN, kq, ov, estimator=estimator, n_prompts=600, seed=1)
        results.append([loss, *torch.autograd.grad(loss, (kq, ov))])
    for mine, theirs in zip(results[1], results[0], strict=True):
        assert mine.device.type == DEVICE.type
        assert relative_error(mine, theirs) < 1e-10


def test_evaluation_noise_and_lengths() -> None:
    kq, ov = weights(PLAIN, torch.float64)
    there = kq.to(DEVICE), ov.to(DEVICE)
    assert evaluate(PLAIN, *there, 500, seed=3) == pytest.approx(evaluate(PLAIN, kq, ov, 500, seed=3), rel=1e-10)
    curves = [measure_lengths(PLAIN, *pair, [5, 20], n_prompts=50) for pair in (there, (kq, ov))]
    for mine, theirs in zip(*curves, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)
    start = initial_parameters(PLAIN, 3, start="small", seed=0)
    noises = [gradient_noise(PLAIN, start.to(d), n_prompts=256) for d in (DEVICE, torch.device("cpu"))]
    assert noises[0].trained.relative == pytest.approx(noises[1].trained.relative, rel=1e-6)


@pytest.mark.parametrize("kind", ["factored", "combined"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("estimator", ON_GPUS)
def test_steps_of_training(estimator: str, name: str, kind: str) -> None:
    (here, mine), (there, theirs) = (trained(d, estimator, name, kind) for d in (DEVICE, torch.device("cpu")))
    assert here.steps == there.steps == 7
    assert here.finite
    assert here.last_loss == pytest.approx(there.last_loss, rel=1e-9)
    assert here.flow_time == pytest.approx(there.flow_time, rel=1e-9)
    for key in theirs:
        assert mine[key].device.type == DEVICE.type
        assert relative_error(mine[key], theirs[key]) < 1e-9, key


def trained(
    device: torch.device, estimator: str, name: str, kind: str, spans: tuple[int, ...] = (4, 3)
) -> tuple[Span, dict[str, Tensor]]:
    parameters = initial_parameters(PLAIN, 3, start="small", size=0.3, seed=0, parameters=kind).to(device)
    optimizer: Optimizer = make_optimizer(name, 0.02, **OPTIMIZERS[name])
    stepper = NativeStepper(Objective(PLAIN, estimator, n_prompts=200, seed=9), parameters, optimizer)
    done, time, span = 0, 0.0, None
    for steps in spans:
        span = stepper.advance(done, steps, time, 60.0)
        done, time = done + span.steps, span.flow_time
    assert span is not None
    return span._replace(steps=done), {**parameters.tensors(), **optimizer.state()}


def test_steps_are_the_same_however_they_are_divided() -> None:
    results = [trained(DEVICE, "sampled", "adam", "factored", spans)[1] for spans in ((7,), (1, 2, 4))]
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_a_loss_that_is_no_number_is_told() -> None:
    parameters = initial_parameters(PLAIN, 3, start="small", seed=0)
    parameters.tensors()["w_o"].fill_(torch.nan)
    stepper = NativeStepper(Objective(PLAIN, "sampled", 50), parameters.to(DEVICE), make_optimizer("flow", 0.01))
    span = stepper.advance(0, 5, 0.0, 60.0)
    assert (span.steps, span.finite) == (0, False)


def test_steps_in_python_on_the_device() -> None:
    parameters = initial_parameters(PLAIN, 3, start="small", seed=0).to(DEVICE)
    objective = Objective(PLAIN, "asymptotic")
    span = PythonStepper(objective, parameters, make_optimizer("adam", 0.01)).advance(0, 3, 0.0, 60.0)
    assert span.steps == 3
    assert span.finite


CONFIG = RunConfig(
    dim_x=4, n_tasks=2, context_length=20, n_heads=2, start="small", start_size=0.1, n_prompts=64, learning_rate=0.05,
    steps=12, record_every=3, checkpoint_every=6, eval_prompts=64, dtype="float64", order="leading",
    device=str(DEVICE),
)  # fmt: skip


def test_a_run_ends_as_the_cpu_s(tmp_path: Path) -> None:
    here = run(CONFIG, tmp_path / "here", figures=False)
    there = run(dataclasses.replace(CONFIG, device="cpu"), tmp_path / "there", figures=False)
    for key in ("loss", "mu", "omega", "gradient_norm"):
        assert here.metrics[key] == pytest.approx(there.metrics[key], rel=1e-6, abs=1e-9)
    assert here.summary is not None
    machine = json.loads((tmp_path / "here" / "timing.json").read_text())["machine"]
    assert machine["trained on"].startswith(str(DEVICE))
    again = run(CONFIG, tmp_path / "again", figures=False)
    assert (again.path / "metrics.csv").read_bytes() == (here.path / "metrics.csv").read_bytes()


def test_a_run_that_was_stopped_goes_on_there_and_on_the_cpu(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step >= 9:
            raise KeyboardInterrupt

    whole = run(CONFIG, tmp_path / "whole", figures=False)
    for device in (None, "cpu"):
        path = tmp_path / str(device)
        with pytest.raises(KeyboardInterrupt):
            run(CONFIG, path, stop, figures=False)
        finished = resume(path, figures=False, device=device)
        if device is None:
            assert (path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
        assert finished.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-6)


@pytest.mark.hardware
def test_steps_are_enqueued_without_a_wait() -> None:
    """Only the end of a span, whose losses come back as numbers, may wait."""
    parameters = initial_parameters(WIDE, 4, start="small", seed=0, dtype=torch.float32).to(DEVICE)
    stepper = NativeStepper(Objective(WIDE, "sampled", 256), parameters, make_optimizer("flow", 0.01))
    stepper.advance(0, 50, 0.0, 60.0)
    counts = []
    for steps in (50, 400):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            stepper.advance(50, steps, 0.0, 60.0)
        waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
        counts.append(sum(event.count for event in profiled.key_averages() if event.key in waits))
    assert counts[1] <= counts[0] + 3


@pytest.mark.hardware
def test_the_subspace_estimate_is_refused() -> None:
    kq, ov = (x.to(DEVICE) for x in weights(PLAIN, torch.float32))
    with pytest.raises(ValueError, match="computed on the CPU alone"):
        population_loss(PLAIN, kq, ov, estimator="subspace")
