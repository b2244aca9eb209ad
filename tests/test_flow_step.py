"""The fused step: against autograd through the loss of drawn tensors, at every option and awkward shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import mhicl_fast
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import population_loss

ESTIMATORS = ("sampled", "conditional")
DTYPES = (torch.float64, torch.float32)


class Case(NamedTuple):
    """Covariates, tasks, context length, heads, prompts; options of the task; OV's covariate block is zero or not."""

    dim_x: int
    n_tasks: int
    length: int
    heads: int
    prompts: int
    options: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    covariate_outputs: bool = True

    def task(self) -> MultiTaskRegression:
        return MultiTaskRegression(self.dim_x, self.n_tasks, self.length, **self.options)


def correlated(dim_x: int) -> Tensor:
    index = torch.arange(dim_x, dtype=torch.float64)
    return 0.6 ** (index[:, None] - index).abs() * (1 + index / dim_x).sqrt().outer((1 + index / dim_x).sqrt())


NOISY = {"noise_std": 0.4, "noisy_target": True}
CASES = {
    "plain": Case(5, 1, 40, 4, 256),
    "study": Case(50, 1, 100, 8, 40),
    "noise": Case(6, 2, 48, 3, 50, {"noise_std": 0.3, "signal": [0.5, 2.0]}),
    "noisy target, overlapping supports": Case(
        4, 2, 30, 3, 33, {"support": [[1, 1, 1, 0], [0, 0, 1, 1]], **NOISY}, covariate_outputs=False
    ),
    "covariance": Case(7, 1, 35, 2, 20, {"covariance": correlated(7)}),
    "covariance, noise, tasks": Case(9, 3, 17, 5, 18, {"covariance": correlated(9), **NOISY}),
    "no covariate block": Case(12, 3, 64, 3, 47, NOISY, covariate_outputs=False),
    "one of everything": Case(1, 1, 1, 1, 1),
    "one token": Case(3, 2, 1, 2, 5, NOISY),
    "no token": Case(3, 2, 0, 2, 5, NOISY),
    "a tile and one": Case(17, 2, 33, 9, 17, NOISY),
    "just under a tile": Case(15, 1, 15, 7, 31),
    "many heads": Case(3, 1, 20, 21, 16),
    "long": Case(2, 1, 1000, 2, 17, NOISY),
    "wide": Case(130, 2, 19, 2, 16),
    "many tasks": Case(8, 8, 24, 4, 20, NOISY),
}


def make_weights(case: Case, estimator: str, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dim = case.dim_x + case.n_tasks
    kq = scale * dim**-0.5 * torch.randn(case.heads, dim, dim, generator=generator, dtype=torch.float64)
    ov = torch.randn(case.heads, case.n_tasks, dim, generator=generator, dtype=torch.float64)
    if estimator != "sampled":
        kq[:, case.dim_x :, : case.dim_x] = 0
    if not case.covariate_outputs:
        ov[:, :, : case.dim_x] = 0
    return kq, ov


def native(
    task: MultiTaskRegression, kq: Tensor, ov: Tensor, estimator: str, n_prompts: int, **changes: Any
) -> tuple[float, Tensor, Tensor]:
    """The operator on a task; `changes` replace its other arguments."""
    operands = {
        "context_length": task.context_length,
        "noise_std": task.noise_std,
        "noisy_target": task.noisy_target,
        "estimator": estimator,
        "n_prompts": n_prompts,
        "seed": 11,
        "step": 5,
        "first_prompt": 0,
        "threads": 2,
    } | changes
    result: tuple[float, Tensor, Tensor] = torch.ops.mhicl.flow_step(
        kq, ov, task.support.double(), task.signal, task.covariance_factor, None, **operands
    )
    return result


def by_autograd(
    task: MultiTaskRegression, kq: Tensor, ov: Tensor, estimator: str, n_prompts: int
) -> tuple[float, Tensor, Tensor]:
    """The same in float64 by the other implementation."""
    kq, ov = (weight.double().requires_grad_() for weight in (kq, ov))
    loss = population_loss(task, kq, ov, estimator=estimator, n_prompts=n_prompts, seed=11, step=5)
    grad_kq, grad_ov = torch.autograd.grad(loss, (kq, ov))
    return float(loss.detach()), grad_kq, grad_ov


def relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def check(case: Case, estimator: str, dtype: torch.dtype, scale: float = 1.0, growth: float = 1.0) -> None:
    task = case.task()
    kq, ov = (weight.to(dtype) for weight in make_weights(case, estimator, seed=3, scale=scale))
    loss, grad_kq, grad_ov = native(task, kq, ov, estimator, case.prompts)
    expected, expected_kq, expected_ov = by_autograd(task, kq, ov, estimator, case.prompts)
    bound = growth * (1e-12 if dtype == torch.float64 else 2e-5)
    assert loss == pytest.approx(expected, rel=bound, abs=1e-15)
    assert relative_error(grad_kq, expected_kq) < bound
    assert relative_error(grad_ov, expected_ov) < bound


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].length > 0])
def test_agrees_with_autograd(name: str, estimator: str, dtype: torch.dtype) -> None:
    check(CASES[name], estimator, dtype)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_large_logits(estimator: str) -> None:
    # Rounding of a logit is an error of its size in the probability.
    check(Case(6, 2, 50, 3, 20, NOISY), estimator, torch.float64, scale=300.0, growth=300.0)


def test_without_context_the_prediction_is_zero() -> None:
    case = CASES["no token"]
    task = case.task()
    kq, ov = make_weights(case, "sampled", seed=1)
    loss, grad_kq, grad_ov = native(task, kq, ov, "sampled", case.prompts)
    target = task.sample(case.prompts, seed=11, step=5, dtype=torch.float64).target
    assert loss == pytest.approx(float(target.square().sum(1).mean()), rel=1e-12)
    assert not grad_kq.any()
    assert not grad_ov.any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_threads_do_not_change_a_bit(estimator: str, dtype: torch.dtype) -> None:
    case = Case(6, 2, 48, 3, 203, NOISY)
    kq, ov = (weight.to(dtype) for weight in make_weights(case, estimator, seed=4))
    one = native(case.task(), kq, ov, estimator, case.prompts, threads=1)
    for threads in (2, 3, 7):
        several = native(case.task(), kq, ov, estimator, case.prompts, threads=threads)
        assert several[0] == one[0]
        assert all(torch.equal(a, b) for a, b in zip(several[1:], one[1:], strict=True))


def test_prompts_are_those_of_their_index() -> None:
    """A mean over a range of prompts is the mean of its parts."""
    case = Case(6, 2, 48, 3, 64, NOISY)
    kq, ov = make_weights(case, "sampled", seed=4)
    whole = native(case.task(), kq, ov, "sampled", 64)
    parts = [native(case.task(), kq, ov, "sampled", 32, first_prompt=first) for first in (0, 32)]
    for result, a, b in zip(whole, *parts, strict=True):
        assert torch.allclose(torch.as_tensor(result), torch.as_tensor((a + b) / 2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_not_a_number_is_not_hidden(estimator: str) -> None:
    case = Case(3, 2, 20, 2, 16, NOISY)
    kq, ov = make_weights(case, estimator, seed=0)
    kq[1, 0, 0] = float("nan")
    loss, grad_kq, _ = native(case.task(), kq, ov, estimator, 16)
    assert loss != loss
    assert grad_kq[1].isnan().any()


class TestBadInput:
    """Direct calls of the operator; the trainers check before."""

    CASE = Case(3, 2, 20, 2, 16)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"estimator": "exact"}, "estimator must be"),
            ({"n_prompts": 0}, "n_prompts must be at least 1, got 0"),
            ({"step": 2**32}, r"steps must lie in \[0, 2\*\*32\)"),
            ({"first_prompt": 2**56}, "first_prompt"),
            ({"threads": 0}, "threads must be at least 1, got 0"),
            ({"noise_std": -1.0}, "noise_std must be at least 0"),
            ({"context_length": -1}, "context_length must be at least 0"),
        ],
    )
    def test_numbers(self, changes: dict[str, Any], message: str) -> None:
        kq, ov = make_weights(self.CASE, "sampled", seed=0)
        with pytest.raises(ValueError, match=message):
            native(self.CASE.task(), kq, ov, **({"estimator": "sampled", "n_prompts": 16} | changes))

    def test_logits_that_read_labels(self) -> None:
        kq, ov = make_weights(self.CASE, "sampled", seed=0)
        with pytest.raises(ValueError, match="logits that do not read labels"):
            native(self.CASE.task(), kq, ov, "conditional", 16)

    def test_shapes_and_types(self) -> None:
        kq, ov = make_weights(self.CASE, "sampled", seed=0)
        with pytest.raises(ValueError, match="ov must have shape"):
            native(self.CASE.task(), kq, ov[:, :1], "sampled", 16)
        with pytest.raises(TypeError, match="ov must have dtype"):
            native(self.CASE.task(), kq, ov.float(), "sampled", 16)
        with pytest.raises(ValueError, match="contiguous"):
            native(self.CASE.task(), kq.mT, ov, "sampled", 16)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets(isa: str) -> None:
    """The tests above in a process that is held to a narrower instruction set."""
    if isa not in mhicl_fast.build_info()["instruction_sets"]["supported"]:
        pytest.skip(f"this processor has no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "agrees or threads"]
    done = subprocess.run(
        command, env=os.environ | {"MHICL_ISA": isa}, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout
