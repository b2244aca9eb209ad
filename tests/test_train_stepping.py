"""What advances a run: the native steps against an independent implementation, and however they are divided."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import RunConfig, population_loss
from mhicl_fast.train.objective import LossAndGradients, Objective
from mhicl_fast.train.optimisers import GradientFlow, Optimizer
from mhicl_fast.train.parameters import Factored, Parameters
from mhicl_fast.train.stepping import NativeStepper, PythonStepper, Span, Stepper, TrainingError, make_stepper

FOREVER = 1e9
# Overlapping supports, unequal signals, noise in examples and target, correlated covariates.
CONFIG = RunConfig(
    dim_x=5, n_tasks=2, context_length=13, support="0:4,2:5", signal="0.7,1.6", noise_std=0.5, noisy_target=True,
    covariance="ar:0.4", n_heads=3, start="small", start_size=0.3, n_prompts=37, learning_rate=0.02, steps=50,
    dtype="float64", seed=11,
)  # fmt: skip
RULES = {
    "flow": {"optimizer": "flow"},
    "flow, steps limited": {"optimizer": "flow", "learning_rate": 0.1, "step_cap": 0.02},
    "flow, limit out of reach": {"optimizer": "flow", "step_cap": 50.0},
    "sgd": {"optimizer": "sgd"},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.005},
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.3},
    "adamw by default": {"optimizer": "adamw"},
}
ESTIMATES = {
    "sampled": {"estimator": "sampled", "start": "random"},
    "conditional": {"estimator": "conditional"},
}


class Trained:
    """Weights and an update rule at the start of a run, and what advances them."""

    def __init__(self, config: RunConfig, kind: str) -> None:
        self.parameters: Parameters = config.start_parameters()
        self.optimizer: Optimizer = config.make_optimizer()
        self.stepper: Stepper
        if kind == "native":
            self.stepper = NativeStepper(config.objective(), self.parameters, self.optimizer)
        else:
            self.stepper = PythonStepper(autograd(config), self.parameters, self.optimizer)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that later steps depend on."""
        return dict(self.parameters.tensors()) | self.optimizer.state()


def autograd(config: RunConfig):
    """The derivatives of the plain-PyTorch definition of the loss."""

    def gradients(kq: Tensor, ov: Tensor, step: int) -> LossAndGradients:
        kq, ov = kq.clone().requires_grad_(), ov.clone().requires_grad_()
        options = {"n_prompts": config.n_prompts, "seed": config.seed, "step": step}
        loss = population_loss(config.task(), kq, ov, estimator=config.estimator, **options)
        return LossAndGradients(float(loss.detach()), *torch.autograd.grad(loss, (kq, ov)))

    return gradients


def advance(trained: Trained, steps: int, *, first: int = 0, flow_time: float = 0.0) -> Span:
    return trained.stepper.advance(first, steps, flow_time, FOREVER)


def assert_close(one: Trained, other: Trained, tolerance: float) -> None:
    """Entry by entry, relative to each tensor's largest."""
    mine, theirs = one.tensors(), other.tensors()
    assert list(mine) == list(theirs)
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        np.testing.assert_allclose(
            mine[name], theirs[name], rtol=0, atol=tolerance * max(float(theirs[name].abs().max()), 1e-3), err_msg=name
        )


def assert_equal(one: Trained, other: Trained) -> None:
    mine, theirs = one.tensors(), other.tensors()
    assert list(mine) == list(theirs)
    for name in mine:
        assert mine[name].equal(theirs[name]), name


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("parameters", ["factored", "combined"])
@pytest.mark.parametrize("rule", RULES)
def test_native_steps_are_those_of_autograd(rule: str, parameters: str, estimate: str) -> None:
    config = dataclasses.replace(CONFIG, parameters=parameters, **RULES[rule], **ESTIMATES[estimate])
    native, python = Trained(config, "native"), Trained(config, "python")
    for first, steps in ((0, 1), (1, 49)):
        mine, theirs = (advance(trained, steps, first=first, flow_time=0.25) for trained in (native, python))
        assert (mine.steps, mine.finite) == (theirs.steps, theirs.finite) == (steps, True)
        np.testing.assert_allclose(mine[2:7], theirs[2:7], rtol=1e-9)
        assert_close(native, python, 1e-9)
    moved = config.start_parameters().tensors()
    assert all((tensor - moved[name]).abs().max() > 1e-4 for name, tensor in native.parameters.tensors().items())


def test_the_limit_on_steps_is_reached() -> None:
    """So that the comparison above has steps of both kinds."""
    limited = Trained(dataclasses.replace(CONFIG, **RULES["flow, steps limited"]), "native")
    sizes = [advance(limited, 1, first=step).step_size for step in range(50)]
    assert min(sizes) < 0.09
    free = Trained(dataclasses.replace(CONFIG, **RULES["flow, limit out of reach"]), "native")
    assert all(advance(free, 1, first=step).step_size == CONFIG.learning_rate for step in range(50))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", ["flow, steps limited", "sgd with momentum", "adamw"])
@pytest.mark.parametrize("kind", ["native", "python"])
def test_however_steps_are_divided_the_bits_are_the_same(kind: str, rule: str, dtype: str) -> None:
    config = dataclasses.replace(CONFIG, dtype=dtype, **RULES[rule])
    whole, cut = Trained(config, kind), Trained(config, kind)
    together = advance(whole, 30, flow_time=0.1)
    done, flow_time = 0, 0.1
    for steps in (1, 4, 0, 9, 16):
        first = done
        while done < first + steps:  # no time at all is one step a call
            span = cut.stepper.advance(done, first + steps - done, flow_time, 0.0)
            assert span.steps == 1
            done, flow_time = done + 1, span.flow_time
        cut.stepper.advance(done, 0, flow_time, FOREVER)
    assert_equal(cut, whole)
    assert (span.last_loss, span.flow_time, span.step_size) == together[4:7]


@pytest.mark.parametrize("kind", ["native", "python"])
def test_no_steps_only_evaluate(kind: str) -> None:
    config = dataclasses.replace(CONFIG, optimizer="adam")
    trained, other = Trained(config, kind), Trained(config, kind)
    advance(trained, 3)
    advance(other, 3)
    span = advance(trained, 0, first=3, flow_time=0.5)
    assert_equal(trained, other)
    assert (span.steps, span.finite, span.flow_time, span.step_size) == (0, True, 0.5, 0.0)
    assert span.last_loss == span.first_loss
    following = advance(other, 1, first=3, flow_time=0.5)
    assert (following.first_loss, following.first_gradient_norm) == (span.first_loss, span.first_gradient_norm)


def test_a_long_span_ends_in_time_after_a_whole_step() -> None:
    trained, whole = Trained(CONFIG, "native"), Trained(CONFIG, "native")
    span = trained.stepper.advance(0, 10**9, 0.0, 0.05)
    assert 0 < span.steps < 10**9
    advance(whole, span.steps)
    assert_equal(trained, whole)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_may_change_between_implementations(rule: str) -> None:
    """What one remembers is what the other needs, under the same names."""
    config = dataclasses.replace(CONFIG, **RULES[rule])
    whole = Trained(config, "native")
    advance(whole, 20)
    for first, second in (("native", "python"), ("python", "native")):
        before, after = Trained(config, first), Trained(config, second)
        advance(before, 8)
        after.optimizer.load_state(before.optimizer.state())
        for name, tensor in after.parameters.tensors().items():
            tensor.copy_(before.parameters.tensors()[name])
        advance(after, 12, first=8)
        assert_close(after, whole, 1e-10)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_divergence_is_noticed_at_the_same_step(estimate: str) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=30.0, **ESTIMATES[estimate])
    spans = [advance(Trained(config, kind), 50) for kind in ("native", "python")]
    assert spans[0].steps == spans[1].steps
    for span in spans:
        assert 1 < span.steps < 50
        assert not span.finite
        assert span.flow_time == pytest.approx(30 * span.steps)
        assert math.isfinite(span.first_loss)
    trained = Trained(config, "native")
    advance(trained, spans[0].steps)
    again = advance(trained, 5, first=spans[0].steps)
    assert (again.steps, again.finite, again.step_size) == (0, False, 0.0)
    assert not math.isfinite(again.first_loss) or not math.isfinite(again.first_gradient_norm)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_threads_change_no_bit_of_a_run(estimate: str) -> None:
    config = dataclasses.replace(CONFIG, dtype="float32", n_prompts=700, **ESTIMATES[estimate])
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(Trained(config, "native"))
            advance(runs[-1], 20)
    finally:
        torch.set_num_threads(before)
    assert_equal(runs[1], runs[0])
    assert_equal(runs[2], runs[0])


def test_the_asymptotic_loss_is_stepped_in_python() -> None:
    config = dataclasses.replace(CONFIG, estimator="asymptotic", order="leading", covariance="identity")
    parameters, optimizer = config.start_parameters(), config.make_optimizer()
    stepper = make_stepper(config.objective(), parameters, optimizer)
    assert isinstance(stepper, PythonStepper)
    losses = [stepper.advance(step, 1, 0.0, FOREVER).first_loss for step in range(20)]
    assert losses == sorted(losses, reverse=True)
    assert isinstance(make_stepper(CONFIG.objective(), parameters, optimizer), NativeStepper)


def test_a_loss_that_does_not_exist_names_the_step() -> None:
    options = {"context_length": 400, "covariance": "identity", "learning_rate": 300.0}
    config = dataclasses.replace(CONFIG, estimator="asymptotic", **options)
    stepper = make_stepper(config.objective(), config.start_parameters(), config.make_optimizer())
    with pytest.raises(TrainingError, match=r"step \d+: .*; a smaller learning_rate may help"):
        stepper.advance(0, 50, 0.0, FOREVER)


@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_that_leave_what_the_estimate_demands_are_noticed_at_once(symmetric: bool) -> None:
    """Weights that meet it only as products of factors do not after a step."""
    task, unit = MultiTaskRegression(4, 1, 20), torch.eye(5, dtype=torch.float64)
    w_q, w_k, w_v = 0.3 * unit[None], 0.3 * unit[None], 0.5 * torch.diag(unit[4])[None]
    if symmetric:
        w_q[0, 0, 1], w_k[0, 1, 0] = 0.3, -0.3  # W_Kᵀ W_Q is a multiple of the identity, each alone is not
    else:
        w_q[0, 3], w_k[0, 3, 4] = 0, 0.3
    parameters = Factored(w_q, w_k, w_v, 0.5 * unit[None, 4:], 1.0)
    stepper = NativeStepper(Objective(task, n_prompts=64, symmetric=symmetric), parameters, GradientFlow(0.1))
    with pytest.raises(ValueError, match="leave alone" if symmetric else "do not read labels"):
        stepper.advance(0, 2, 0.0, math.inf)
