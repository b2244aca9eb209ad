"""Update rules: against torch.optim, against exact solutions, and across storing and restoring."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mhicl_fast import spectral
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Adam, AdamW, Combined, GradientFlow, MomentumSGD, Objective
from mhicl_fast.train.optimisers import Optimizer, make_optimizer
from mhicl_fast.train.parameters import Parameters, pull_back
from mhicl_fast.train.starts import balanced_decomposable


def rosenbrock(tensors: dict[str, Tensor]) -> Tensor:
    x, y = tensors["x"], tensors["y"]
    return ((1 - x) ** 2).sum() + 10 * ((y - x**2) ** 2).sum()


def start() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(4)
    return {name: torch.randn(3, 2, generator=g, dtype=torch.float64) for name in ("x", "y")}


def gradients(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    return dict(zip(leaves, torch.autograd.grad(rosenbrock(leaves), tuple(leaves.values())), strict=True))


def descend(optimizer: Optimizer, tensors: dict[str, Tensor], steps: int) -> float:
    return sum(optimizer.step(tensors, gradients(tensors)) for _ in range(steps))


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (lambda: GradientFlow(3e-3), lambda p: torch.optim.SGD(p, 3e-3)),
        (lambda: MomentumSGD(3e-3), lambda p: torch.optim.SGD(p, 3e-3)),
        (lambda: MomentumSGD(3e-3, 0.9), lambda p: torch.optim.SGD(p, 3e-3, momentum=0.9)),
        (lambda: Adam(1e-2), lambda p: torch.optim.Adam(p, 1e-2)),
        (lambda: AdamW(1e-2), lambda p: torch.optim.AdamW(p, 1e-2)),
        (lambda: AdamW(1e-2, 0.7), lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.7)),
        (lambda: Adam(1e-2, betas=(0.8, 0.95)), lambda p: torch.optim.Adam(p, 1e-2, betas=(0.8, 0.95))),
    ],
)
def test_steps_are_those_of_torch(
    mine: Callable[[], Optimizer], theirs: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> None:
    tensors, leaves = start(), {name: tensor.requires_grad_() for name, tensor in start().items()}
    optimizer, reference = mine(), theirs(list(leaves.values()))
    for _ in range(50):
        optimizer.step(tensors, gradients(tensors))
        reference.zero_grad()
        rosenbrock(leaves).backward()
        reference.step()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, leaves[name].detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scattered", [{"weights"}, {"gradients"}, {"weights", "gradients"}])
@pytest.mark.parametrize("make", [lambda: GradientFlow(1e-3), lambda: MomentumSGD(1e-3, 0.9), lambda: AdamW(1e-2)])
def test_steps_do_not_depend_on_how_tensors_lie_in_memory(make: Callable[[], Optimizer], scattered: set[str]) -> None:
    def placed(tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
        return {name: tensor.T.contiguous().T if what in scattered else tensor for name, tensor in tensors.items()}

    usual, tensors = make(), start()
    optimizer, others = make(), placed(start(), "weights")
    for _ in range(5):
        slopes = gradients(tensors)
        usual.step(tensors, slopes)
        optimizer.step(others, placed(slopes, "gradients"))
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make",
    [lambda: GradientFlow(1e-3, 1e-2), lambda: MomentumSGD(1e-3, 0.9), lambda: Adam(1e-2), lambda: AdamW(1e-2)],
)
def test_a_restored_optimizer_goes_on_bit_for_bit(make: Callable[[], Optimizer]) -> None:
    unbroken, tensors = make(), start()
    descend(unbroken, tensors, 7)
    state, halfway = unbroken.state(), {name: tensor.clone() for name, tensor in tensors.items()}
    descend(unbroken, tensors, 6)
    restored = make()
    restored.load_state(state)
    descend(restored, halfway, 6)
    for name in tensors:
        assert halfway[name].equal(tensors[name])
    assert all(restored.state()[name].equal(tensor) for name, tensor in unbroken.state().items())


def test_gradient_limited_step() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros(1)}
    flow = GradientFlow(0.5, 0.1)
    assert flow.step(tensors, {"a": torch.tensor([0.1, -0.05]), "b": torch.tensor([0.02])}) == 0.5
    torch.testing.assert_close(tensors["a"], torch.tensor([-0.05, 0.025]))
    size = flow.step(tensors, {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([2.0])})
    assert size == pytest.approx(0.025)
    torch.testing.assert_close(tensors["a"], torch.tensor([-0.075, 0.125]))
    assert GradientFlow(0.5).step(tensors, {"a": torch.tensor([9.0, 9.0]), "b": torch.tensor([9.0])}) == 0.5


def test_momentum_counts_the_flow_time_it_travels() -> None:
    """On a constant slope the distance after many steps is the slope times the flow time, up to the warm-up."""
    tensors, optimizer = {"x": torch.zeros(1, dtype=torch.float64)}, MomentumSGD(0.01, 0.9)
    slope = {"x": torch.ones(1, dtype=torch.float64)}
    time = sum(optimizer.step(tensors, slope) for _ in range(1000))
    assert time == pytest.approx(100)
    assert float(tensors["x"]) == pytest.approx(-time, rel=0.02)


def flow_end(parameters: Parameters, objective: Objective, step_size: float, steps: int) -> Parameters:
    """The parameters after Euler steps."""
    end = parameters.with_tensors({name: tensor.clone() for name, tensor in parameters.tensors().items()})
    flow = GradientFlow(step_size)
    for step in range(steps):
        _, grad_kq, grad_ov = objective(*end.to_combined(), step)
        flow.step(end.tensors(), pull_back(end, grad_kq, grad_ov))
    return end


@pytest.mark.parametrize("kind", ["factored", "combined"])
def test_euler_converges_to_the_flow_at_first_order(kind: str) -> None:
    """Halving the step halves the distance to the spectral ODE, on the noise-free asymptotic loss."""
    support = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.bool)
    task = MultiTaskRegression(6, 2, 500, support=support, noise_std=0.3)
    mu = torch.tensor([[0.9, 0.2], [0.1, 0.7]], dtype=torch.float64)
    omega = torch.tensor([[0.2, 0.1], [0.05, 0.3]], dtype=torch.float64)
    parameters: Parameters = balanced_decomposable(task, mu, omega.repeat_interleave(3, 1), scale=0.8)
    if kind == "combined":
        parameters = Combined(*parameters.to_combined())
    t_end = 0.4
    exact = spectral.solve(task, mu, omega, parameters=kind, scale=0.8, order="first", t_end=t_end)(t_end)
    objective = Objective(task, "asymptotic", order="first")
    errors = []
    for steps in (40, 80, 160):
        end = flow_end(parameters, objective, t_end / steps, steps)
        values = spectral.diagonal(*end.to_combined(), task)
        errors.append(max(np.abs(values.mu - exact.mu).max(), np.abs(values.omega[:, ::3] - exact.omega).max()))
    orders = [math.log2(errors[k] / errors[k + 1]) for k in range(2)]
    assert errors[-1] < 5e-3
    assert all(0.9 < order < 1.1 for order in orders)


def test_optimizers_by_name() -> None:
    flow = make_optimizer("flow", 0.1, step_cap=0.2)
    assert isinstance(flow, GradientFlow)
    assert (flow.learning_rate, flow.step_cap) == (0.1, 0.2)
    sgd = make_optimizer("sgd", 0.1, momentum=0.5)
    assert isinstance(sgd, MomentumSGD)
    assert sgd.momentum == 0.5
    assert type(make_optimizer("adam", 0.1)) is Adam
    for weight_decay, expected in ((None, 0.01), (0.0, 0.0), (0.2, 0.2)):
        adamw = make_optimizer("adamw", 0.1, weight_decay=weight_decay)
        assert isinstance(adamw, AdamW)
        assert adamw.weight_decay == expected
    with pytest.raises(ValueError, match="optimizer must be one of flow, sgd, adam, adamw, got 'lion'"):
        make_optimizer("lion", 0.1)
    with pytest.raises(ValueError, match=r"GradientFlow keeps no state, got \['velocity.x'\]"):
        flow.load_state({"velocity.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"MomentumSGD keeps \['velocity'\], got \['count', 'first.x'\]"):
        sgd.load_state({"first.x": torch.zeros(1), "count": torch.tensor(1)})


def test_buffers_are_the_state_in_the_order_of_the_parameters() -> None:
    tensors = start()
    for optimizer, names in (
        (GradientFlow(0.1), []),
        (MomentumSGD(0.1), []),
        (MomentumSGD(0.1, 0.5), ["velocity.x", "velocity.y"]),
        (Adam(0.1), ["first.x", "first.y", "second.x", "second.y"]),
    ):
        zeros = optimizer.buffers(tensors)
        assert len(zeros) == len(names)
        assert not any(buffer.any() for buffer in zeros)
        optimizer.step(tensors, gradients(tensors))
        state = optimizer.state()
        restored = type(optimizer)(0.1, *([0.5] if names[:1] == ["velocity.x"] else []))
        restored.load_state(dict(reversed(state.items())))  # by name, whatever the order
        for mine, again, name in zip(optimizer.buffers(tensors), restored.buffers(tensors), names, strict=True):
            assert mine.any()
            assert mine.equal(state[name])
            assert again.equal(state[name])


def test_the_native_loop_has_adams_usual_decays_alone() -> None:
    assert AdamW(0.1, betas=(0.9, 0.999)).native_rule()["optimizer"] == "adamw"
    with pytest.raises(ValueError, match=r"native steps of adam have betas \(0.9, 0.999\), got \(0.9, 0.98\)"):
        Adam(0.1, betas=(0.9, 0.98)).native_rule()
