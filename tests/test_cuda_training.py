"""Training on the GPU, emulated, against the CPU's: every update rule, parameterisation, estimate and option; stretches
of steps, what ends them, and what the host is made to wait for."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from typing import Any

import pytest
import torch
from emulated import VARIANT, device_limits, emulated, run_sanitized, runtime_calls, seed_schedule
from torch import Tensor

from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train.objective import Objective
from mhicl_fast.train.optimisers import Optimizer, make_optimizer
from mhicl_fast.train.parameters import Combined, Factored, Parameters

FOREVER = math.inf
HEADS, WIDTH = 3, 4
SUPPORT = [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
RULES: dict[str, dict[str, Any]] = {
    "flow": {"learning_rate": 0.02},
    "flow, steps limited": {"learning_rate": 0.1, "step_cap": 0.004},
    "sgd": {"learning_rate": 0.02},
    "sgd with momentum": {"learning_rate": 0.01, "momentum": 0.9},
    "adam": {"learning_rate": 0.01},
    "adamw": {"learning_rate": 0.01, "weight_decay": 0.3},
}


@pytest.fixture(scope="module")
def ops() -> Any:
    return emulated()


def covariance(dim_x: int) -> Tensor:
    index = torch.arange(dim_x, dtype=torch.float64)
    return 0.6 ** (index[:, None] - index).abs() * (1 + index / dim_x).sqrt().outer((1 + index / dim_x).sqrt())


def make_task(*, noise: bool = True, correlated: bool = False) -> MultiTaskRegression:
    options: dict[str, Any] = {"noise_std": 0.5, "noisy_target": True} if noise else {}
    if correlated:
        options["covariance"] = covariance(5)
    return MultiTaskRegression(5, 2, 13, support=SUPPORT, signal=[0.7, 1.6], **options)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return 0.4 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_parameters(task: MultiTaskRegression, *, factored: bool, blind: bool, dtype: torch.dtype) -> Parameters:
    """Drawn weights; `blind`: their logits do not read labels."""
    generator = torch.Generator().manual_seed(5)
    d, tasks = task.dim_x, task.n_tasks
    tensors = {"kq": draw(generator, HEADS, d + tasks, d + tasks), "ov": draw(generator, HEADS, tasks, d + tasks)}
    if factored:
        tensors = {name: draw(generator, HEADS, WIDTH, d + tasks) for name in ("w_q", "w_k", "w_v")}
        tensors["w_o"] = draw(generator, HEADS, tasks, WIDTH)
    if blind:
        tensors["w_k" if factored else "kq"][:, :, d:] = 0
        if not factored:
            tensors["kq"][:, d:] = 0
    kind = Factored if factored else Combined
    return kind(**{name: tensor.to(dtype) for name, tensor in tensors.items()})


def symmetric_parameters(dtype: torch.dtype) -> Parameters:
    """What the symmetries of SUPPORT's atoms, {0, 1}, {2}, {3, 4}, leave alone."""
    generator = torch.Generator().manual_seed(6)
    kq, ov = torch.zeros(HEADS, 7, 7, dtype=dtype), torch.zeros(HEADS, 2, 7, dtype=dtype)
    for h, atom in itertools.product(range(HEADS), ([0, 1], [2], [3, 4])):
        kq[h, atom, atom] = draw(generator, 1).to(dtype)
    ov[:, [0, 1], [5, 6]] = draw(generator, HEADS, 2).to(dtype)
    return Combined(kq, ov)


@dataclasses.dataclass
class Training:
    """Weights, an update rule, and one of the two libraries that advance them."""

    ops: Any
    objective: Objective
    parameters: Parameters
    optimizer: Optimizer
    flow_time: float = 0.0
    step: int = 0

    @classmethod
    def of(cls, ops: Any, objective: Objective, parameters: Parameters, rule: str) -> Training:
        copies = parameters.with_tensors({name: tensor.clone() for name, tensor in parameters.tensors().items()})
        return cls(ops, objective, copies, make_optimizer(rule.split()[0].strip(","), **RULES[rule]))

    def advance(self, n_steps: int, max_seconds: float = FOREVER, **more: Any) -> tuple[Any, ...]:
        tensors = self.parameters.tensors()
        scale = self.parameters.logit_scale if isinstance(self.parameters, Factored) else 1.0
        result: tuple[Any, ...] = self.ops.train_steps(
            list(tensors.values()), self.optimizer.buffers(tensors), *self.objective.native_distribution(),
            **self.objective.native_estimate(), **self.optimizer.native_rule(), scale=scale, step=self.step,
            n_steps=n_steps, max_seconds=max_seconds, flow_time=self.flow_time, **more,
        )  # fmt: skip
        self.step += result[0]
        self.flow_time = result[5]
        return result

    def tensors(self) -> list[Tensor]:
        tensors = self.parameters.tensors()
        return [*tensors.values(), *self.optimizer.buffers(tensors)]


def both(ops: Any, objective: Objective, parameters: Parameters, rule: str) -> list[Training]:
    return [Training.of(library, objective, parameters, rule) for library in (ops, torch.ops.mhicl)]


def assert_alike(trained: list[Training], results: list[tuple[Any, ...]]) -> None:
    """The same numbers but for rounding, tensor by tensor relative to the largest entry."""
    tolerance = 2e-4 if trained[0].tensors()[0].dtype == torch.float32 else 1e-11
    assert results[0][:2] == results[1][:2]
    assert results[0][2:7] == pytest.approx(results[1][2:7], rel=tolerance)
    assert results[0][7:] == results[1][7:] == (False, "")
    for mine, theirs in zip(trained[0].tensors(), trained[1].tensors(), strict=True):
        assert float((mine - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def options() -> list[Any]:
    """Every rule with every parameterisation and estimate; tasks and types by turns, so that each pair occurs."""
    tasks = itertools.cycle(itertools.product((False, True), (False, True), (torch.float32, torch.float64)))
    runs = itertools.product(RULES, (False, True), ("sampled", "conditional"), range(3))
    return [(*run[:3], *next(tasks)) for run in runs]


@pytest.mark.parametrize(("rule", "factored", "estimator", "noise", "correlated", "dtype"), options())
def test_steps_are_those_of_the_cpu(ops, rule, factored, estimator, noise, correlated, dtype):
    task = make_task(noise=noise, correlated=correlated)
    parameters = make_parameters(task, factored=factored, blind=estimator == "conditional", dtype=dtype)
    trained = both(ops, Objective(task, estimator, 37, 11), parameters, rule)
    assert_alike(trained, [training.advance(3) for training in trained])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_symmetric_steps_are_those_of_the_cpu(ops, estimator, dtype):
    objective = Objective(make_task(), estimator, 37, 11, symmetric=True)
    trained = both(ops, objective, symmetric_parameters(dtype), "adam")
    assert_alike(trained, [training.advance(4) for training in trained])
    kq = trained[0].tensors()[0]
    assert torch.equal(kq[:, 0, 0], kq[:, 1, 1])
    assert not torch.equal(kq[:, 0, 0], kq[:, 2, 2])


@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
@pytest.mark.parametrize("shape", [(1, 1, 0, 1), (2, 1, 1, 5), (9, 4, 21, 17)], ids=str)
def test_one_step_at_awkward_shapes(ops, shape, estimator):
    d, tasks, length, heads = shape
    task = MultiTaskRegression(d, tasks, length, noise_std=0.3, noisy_target=True, covariance=covariance(d))
    generator = torch.Generator().manual_seed(3)
    kq, ov = draw(generator, heads, d + tasks, d + tasks), draw(generator, heads, tasks, d + tasks)
    if estimator == "conditional":
        kq[:, d:] = 0
    objective = Objective(task, estimator, 5, 2)
    arguments = (kq, ov, *objective.native_distribution())
    keywords = {**objective.native_estimate(), "step": 3, "first_prompt": 7}
    mine, theirs = (library.flow_step(*arguments, **keywords) for library in (ops, torch.ops.mhicl))
    assert mine[0] == pytest.approx(theirs[0], rel=1e-11)
    for one, other in zip(mine[1:], theirs[1:]):
        assert float((one - other).abs().max()) <= 1e-11 * max(1e-3, float(other.abs().max()))


def one_step(ops: Any, task: MultiTaskRegression, heads: int, dtype: torch.dtype, objective: Objective) -> Any:
    """The losses and gradients of one step here and on the CPU, at drawn weights."""
    d, tasks = task.dim_x, task.n_tasks
    generator = torch.Generator().manual_seed(3)
    kq, ov = (draw(generator, heads, rows, d + tasks).to(dtype) / heads for rows in (d + tasks, tasks))
    if objective.estimator == "conditional":
        kq[:, d:] = 0
    arguments = (kq, ov, *objective.native_distribution())
    keywords = {**objective.native_estimate(), "step": 3, "first_prompt": 7}
    return [library.flow_step(*arguments, **keywords) for library in (ops, torch.ops.mhicl)]


@pytest.mark.parametrize(("heads", "dtype"), [(3, torch.float32), (9, torch.float64), (17, torch.float32)], ids=str)
@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_contexts_longer_than_shared_memory(ops, noise, estimator, heads, dtype):
    """Every pass draws its tokens again, chunk by chunk, and computes the weights of all heads where overlaps count."""
    task = MultiTaskRegression(5, 2, 400, noise_std=noise, covariance=covariance(5))
    with device_limits(shared_per_block=40 << 10):
        mine, theirs = one_step(ops, task, heads, dtype, Objective(task, estimator, 3, 2))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    assert mine[0] == pytest.approx(theirs[0], rel=tolerance)
    for one, other in zip(mine[1:], theirs[1:]):
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


@pytest.mark.parametrize(("estimator", "dim_x", "heads"), [("sampled", 59, 70), ("conditional", 2, 90)])
def test_more_prompts_than_are_worked_on_at_a_time(ops, estimator, dim_x, heads):
    """1024 where a prompt keeps 64 KiB in memory."""
    task = MultiTaskRegression(dim_x, 1, 2)
    mine, theirs = one_step(ops, task, heads, torch.float64, Objective(task, estimator, 1030, 2))
    assert mine[0] == pytest.approx(theirs[0], rel=1e-11)
    for one, other in zip(mine[1:], theirs[1:]):
        assert float((one - other).abs().max()) <= 1e-11 * float(other.abs().max())


@pytest.mark.parametrize("rule", ["flow, steps limited", "adamw"])
def test_stretches_divide_the_steps_to_the_same_bits(ops, rule):
    objective = Objective(make_task(correlated=True), "sampled", 20, 4)
    parameters = make_parameters(objective.task, factored=True, blind=False, dtype=torch.float32)
    whole, parts = (Training.of(ops, objective, parameters, rule) for _ in range(2))
    result = whole.advance(7)
    for n_steps, seed in ((1, 3), (4, 1), (0, 2), (2, 9)):
        seed_schedule(seed)
        assert parts.advance(n_steps)[0] == n_steps
    assert all(map(torch.equal, whole.tensors(), parts.tensors()))
    assert parts.flow_time == result[5]


def test_time_bounds_a_stretch(ops):
    """By what a step took before; at first that is found out with one."""
    objective = Objective(make_task(), "sampled", 4, 4)
    parameters = make_parameters(objective.task, factored=False, blind=False, dtype=torch.float32)
    training = Training.of(ops, objective, parameters, "flow")
    for waits in (2, 1):
        runtime_calls()
        assert training.advance(6, 1e9)[0] == 6
        assert runtime_calls().count("cudaStreamSynchronize") == waits
    assert training.advance(6, 0.0)[0] == 1
    assert 2 <= training.advance(10**6, 0.05)[0] < 10**6


def test_other_arguments_for_the_same_tensors_are_heeded(ops):
    """What is kept of a stretch serves the next one only if all is as it was."""
    objective = Objective(make_task(), "sampled", 20, 4)
    parameters = make_parameters(objective.task, factored=False, blind=False, dtype=torch.float64)
    trained = both(ops, objective, parameters, "flow")
    changes: list[dict[str, Any]] = [{}, {"seed": 5}, {"n_prompts": 11}, {"task": make_task(noise=False)}, {}]
    for change in changes:
        for training in trained:
            training.objective = dataclasses.replace(objective, **change)
        assert_alike(trained, [training.advance(2) for training in trained])
    for training in trained:
        training.optimizer = make_optimizer("flow", 0.03)
    assert_alike(trained, [training.advance(2) for training in trained])


def test_evaluation_changes_nothing(ops):
    objective = Objective(make_task(), "conditional", 20, 4)
    parameters = make_parameters(objective.task, factored=False, blind=True, dtype=torch.float64)
    trained = both(ops, objective, parameters, "sgd with momentum")
    assert_alike(trained, [training.advance(0) for training in trained])
    assert all(map(torch.equal, trained[0].tensors(), trained[1].tensors()))


@pytest.mark.parametrize("learning_rate", [0.0, 1e30], ids=["at once", "after a step"])
def test_what_is_not_finite_ends_the_stretch(ops, learning_rate):
    """The rest of the stretch changes nothing."""
    objective = Objective(make_task(), "sampled", 20, 4)
    parameters = make_parameters(objective.task, factored=False, blind=False, dtype=torch.float32)
    if learning_rate == 0:
        parameters.tensors()["ov"][1, 1, 0] = math.nan
    trained = both(ops, objective, parameters, "flow")
    for training in trained:
        training.optimizer = make_optimizer("flow", learning_rate)
    results = [training.advance(6) for training in trained]
    assert results[0][:2] == results[1][:2] == (int(learning_rate > 0), False)
    before = [tensor.clone() for tensor in trained[0].tensors()]
    assert trained[0].advance(3)[:2] == (0, False)
    for tensor, kept in zip(trained[0].tensors(), before, strict=True):
        torch.testing.assert_close(tensor, kept, rtol=0, atol=0, equal_nan=True)


def test_weights_that_the_estimate_cannot_take_are_named(ops):
    objective = Objective(make_task(), "conditional", 20, 4)
    reading = make_parameters(objective.task, factored=False, blind=False, dtype=torch.float64)
    with pytest.raises(ValueError, match="the conditional estimate needs logits that do not read labels, KQ") as mine:
        Training.of(ops, objective, reading, "flow").advance(3)
    with pytest.raises(ValueError, match="logits") as theirs:
        Training.of(torch.ops.mhicl, objective, reading, "flow").advance(3)
    assert str(mine.value) == str(theirs.value)
    arguments = (*reading.tensors().values(), *objective.native_distribution())
    with pytest.raises(ValueError, match="logits that do not read labels"):
        ops.flow_step(*arguments, **objective.native_estimate(), step=0, first_prompt=0)


@pytest.mark.parametrize(
    ("name", "entry"), [("kq", (1, 0, 0)), ("kq", (1, 0, 1)), ("ov", (2, 0, 6)), ("ov", (0, 1, 2))]
)
def test_weights_that_the_symmetries_move_are_refused(ops, name, entry):
    objective = Objective(make_task(), "conditional", 20, 4, symmetric=True)
    parameters = symmetric_parameters(torch.float64)
    parameters.tensors()[name][entry] += 1e-3
    for library in (ops, torch.ops.mhicl):
        with pytest.raises(ValueError, match="averaging gradients over the task's symmetries"):
            Training.of(library, objective, parameters, "flow").advance(1)


def test_factored_weights_that_come_to_read_labels_stop_before_the_update(ops):
    """The first step leaves what the estimate demands; the second finds out, and leaves the weights of the first."""
    objective = Objective(make_task(), "conditional", 20, 4)
    parameters = make_parameters(objective.task, factored=True, blind=True, dtype=torch.float64)
    one, more = (Training.of(ops, objective, parameters, "sgd with momentum") for _ in range(2))
    velocity = draw(torch.Generator().manual_seed(1), HEADS, WIDTH, 7)
    for training in (one, more):
        training.optimizer.buffers(training.parameters.tensors())[1].copy_(velocity)
    assert one.advance(1)[0] == 1
    with pytest.raises(ValueError, match="logits that do not read labels"):
        more.advance(5)
    assert all(map(torch.equal, one.tensors(), more.tensors()))


def test_other_arguments_are_refused(ops):
    objective = Objective(make_task(), "subspace", 20, 4)
    parameters = symmetric_parameters(torch.float64)
    with pytest.raises(ValueError, match="the subspace estimate has no CUDA kernel: use estimator='conditional'"):
        Training.of(ops, objective, parameters, "flow").advance(1)
    empty = dataclasses.replace(objective, estimator="sampled", n_prompts=0)
    with pytest.raises(ValueError, match="n_prompts must be at least 1"):
        Training.of(ops, empty, parameters, "flow").advance(1)
    sampled = dataclasses.replace(objective, estimator="sampled")
    with pytest.raises(ValueError, match="on a GPU takes one process: runs of several go through flow_step"):
        Training.of(ops, sampled, parameters, "flow").advance(1, rank=0, world=2, group="0")


def test_a_stretch_ends_when_asked_to(ops):
    for trained in both(ops, Objective(make_task(), "sampled", 20, 4), symmetric_parameters(torch.float64), "flow"):
        result = trained.advance(5, stop=True)
        assert (result[0], result[7], result[8]) == (1, True, "")


WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMemcpyAsync"}
WAITS |= {"cudaMalloc", "cudaFree"}


def test_the_host_waits_once_and_steps_are_graphs(ops):
    objective = Objective(make_task(correlated=True), "conditional", 20, 4)
    parameters = make_parameters(objective.task, factored=False, blind=True, dtype=torch.float32)
    training = Training.of(ops, objective, parameters, "adam")
    runtime_calls()
    training.advance(5)
    first = runtime_calls()
    assert (first.count("cudaGraphLaunch"), first.count("cudaGraphInstantiate")) == (5, 1)
    training.advance(9)
    later = runtime_calls()
    assert (later.count("cudaGraphLaunch"), later.count("cudaGraphInstantiate")) == (9, 0)  # the graph is kept
    steps = [at for at, call in enumerate(later) if call == "cudaGraphLaunch"]
    assert not WAITS & set(later[: steps[-1]])
    assert later[steps[-1] + 1 :] == ["cudaMemcpyAsync", "cudaStreamSynchronize"]
    assert sum(call.startswith("cudaLaunchKernel") for call in later) <= 1  # what begins the stretch
    training.advance(37)
    many = runtime_calls()
    assert (many.count("cudaGraphLaunch"), many.count("cudaGraphInstantiate")) == (2 + 5, 1)  # 16 steps in a graph


@pytest.mark.skipif(os.environ.get(VARIANT) == "sanitized", reason="this is that run")
def test_these_pass_under_the_sanitizers():
    assert "passed" in run_sanitized(
        __file__, "-k", "awkward or longer or symmetric or stretches or (steps_are_those and flow)"
    )
