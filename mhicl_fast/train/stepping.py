"""What advances a run: several steps at a time, in native code or in Python, to the same weights.

`NativeStepper` samples prompts, differentiates and updates within one operator, which no tensor of prompts leaves.
`PythonStepper` asks for the gradients of each step and applies an update rule to them; it takes any loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .objective import LossAndGradients, Objective, has_prompts
from .optimisers import Optimizer
from .parameters import Factored, Parameters, pull_back
from .records import gradient_norm


class TrainingError(RuntimeError):
    """Training cannot go on, as when the loss is no longer a number."""


class Span(NamedTuple):
    """What some steps in a row did.

    `steps` is how many updates were made. `first_loss` and `first_gradient_norm` (Euclidean, of the trained tensors)
    belong to the weights before the first of them, `last_loss` to those before the last. Where a loss or the norm of
    its gradient is not finite, `finite` is False, no update was made with it, and `last_loss` is that loss.
    `flow_time` is the time reached, `step_size` the flow time of the last update, 0 without one.
    """

    steps: int
    finite: bool
    first_loss: float
    first_gradient_norm: float
    last_loss: float
    flow_time: float
    step_size: float


class Stepper(Protocol):
    """Advances weights and the state of an update rule in place."""

    def advance(self, step: int, n_steps: int, flow_time: float, max_seconds: float) -> Span:
        """Make the steps numbered step, …, step + n_steps − 1, or fewer where they take longer than `max_seconds`.

        At least one is made, and however steps are divided into calls the weights end with the same bits; n_steps = 0
        only evaluates. `flow_time` is the time at the start, to which the steps' sizes are added one by one. Raises
        TrainingError where a loss does not exist.
        """
        ...


def make_stepper(objective: Objective, parameters: Parameters, optimizer: Optimizer) -> Stepper:
    """The native one for estimates over prompts, the one in Python for the asymptotic loss, which has none."""
    kind = NativeStepper if has_prompts(objective.estimator) else PythonStepper
    return kind(objective, parameters, optimizer)


class NativeStepper:
    """Steps within the operator `mhicl::train_steps`, on as many threads as PyTorch is set to."""

    def __init__(self, objective: Objective, parameters: Parameters, optimizer: Optimizer) -> None:
        self._objective = objective
        self._parameters = parameters
        self._optimizer = optimizer

    def advance(self, step: int, n_steps: int, flow_time: float, max_seconds: float) -> Span:
        tensors = self._parameters.tensors()
        span = Span(
            *torch.ops.mhicl.train_steps(
                list(tensors.values()),
                self._optimizer.buffers(tensors),
                *self._objective.native_distribution(),
                **self._objective.native_estimate(),
                **self._optimizer.native_rule(),
                scale=self._parameters.logit_scale if isinstance(self._parameters, Factored) else 1.0,
                step=step,
                n_steps=n_steps,
                max_seconds=max_seconds,
                flow_time=flow_time,
            )
        )
        self._optimizer.count += span.steps
        return span


class PythonStepper:
    """Steps of any loss: `gradients(kq, ov, step)` gives its value and derivatives in KQ and OV."""

    def __init__(
        self,
        gradients: Callable[[Tensor, Tensor, int], LossAndGradients],
        parameters: Parameters,
        optimizer: Optimizer,
    ) -> None:
        self._gradients = gradients
        self._parameters = parameters
        self._optimizer = optimizer

    def advance(self, step: int, n_steps: int, flow_time: float, max_seconds: float) -> Span:
        deadline = time.perf_counter() + max_seconds
        loss, norm, gradients = self._evaluate(step)
        first = (loss, norm)
        done, size = 0, 0.0
        while True:
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite and done < n_steps:
                size = self._optimizer.step(self._parameters.tensors(), gradients)
                flow_time += size
                done += 1
            if not finite or done == n_steps or time.perf_counter() >= deadline:
                return Span(done, finite, *first, loss, flow_time, size)
            loss, norm, gradients = self._evaluate(step + done)

    def _evaluate(self, step: int) -> tuple[float, float, dict[str, Tensor]]:
        """The loss, and its gradients in the trained tensors with their norm."""
        kq, ov = (matrix.detach() for matrix in self._parameters.to_combined())
        try:
            loss, grad_kq, grad_ov = self._gradients(kq, ov, step)
        except ValueError as error:  # the asymptotic loss has left the weights for which it exists
            raise TrainingError(f"step {step}: {error}; a smaller learning_rate may help") from error
        gradients = pull_back(self._parameters, grad_kq, grad_ov)
        return loss, gradient_norm(gradients), gradients
