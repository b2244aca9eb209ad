"""What advances a run: several steps at a time, in native code or in Python, to the same weights.

`NativeStepper` samples prompts, differentiates and updates within one operator, which no tensor of prompts leaves.
`StepByStep` asks for the gradients of each step and applies an update rule to them; as `PythonStepper` it takes any
loss of the two matrices of attention.

Several processes make the same steps, each from its share of a step's prompts, and exchange one message a step: the
gradients' sums, the loss, and whether somebody asks to stop. Since all of them know the sums, updates are made by each
and are never sent. Nothing is computed while a message is on its way: each prompt adds to every number in it, so it
cannot leave before the last one, and the next step begins with the weights that it decides.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..processes import ALONE, DistributedError, Processes
from .objective import LossAndGradients, Objective, has_prompts
from .optimisers import Optimizer
from .parameters import Factored, Parameters, pull_back
from .records import gradient_norm

REDUCTIONS = ("all-reduce", "tree")


Self = TypeVar("Self", bound="Trained")


class TrainingError(RuntimeError):
    """Training cannot go on, as when the loss is no longer a number."""


class Span(NamedTuple):
    """What some steps in a row did.

    `steps` is how many updates were made. `first_loss` and `first_gradient_norm` (Euclidean, of the trained tensors)
    belong to the weights before the first of them, `last_loss` to those before the last. Where a loss or the norm of
    its gradient is not finite, `finite` is False, no update was made with it, and `last_loss` is that loss.
    `flow_time` is the time reached, `step_size` the flow time of the last update, 0 without one.

    `stopped` says that some process asked to stop: all of them end after the same step. `lost` is empty, or the reason
    why the message of the step after the last update did not get through. The weights are those after `steps` updates,
    the other fields tell of these, and losses that nobody knows are NaN.
    """

    steps: int
    finite: bool
    first_loss: float
    first_gradient_norm: float
    last_loss: float
    flow_time: float
    step_size: float
    stopped: bool = False
    lost: str = ""


class Trained(Protocol):
    """Weights, as what trains and stores them sees them."""

    def tensors(self) -> Mapping[str, Tensor]:
        """The trained tensors by name, which steps change in place."""
        ...

    def with_tensors(self: Self, tensors: Mapping[str, Tensor], /) -> Self:
        """The same holding other tensors."""
        ...

    def to(self: Self, device: torch.device, /) -> Self:
        """The same weights on a device."""
        ...


class Stepper(Protocol):
    """Advances weights and the state of an update rule in place."""

    def advance(self, step: int, n_steps: int, flow_time: float, max_seconds: float, stop: bool = False) -> Span:
        """Make the steps numbered step, …, step + n_steps − 1, or fewer where they take longer than `max_seconds`.

        At least one is made, and however steps are divided into calls the weights end with the same bits; n_steps = 0
        only evaluates. `flow_time` is the time at the start, to which the steps' sizes are added one by one. Raises
        TrainingError where a loss does not exist.

        Processes of a group must make the same steps and evaluations, each of which is one message, in calls that may
        differ. `stop` asks all of them to end after the next step.
        """
        ...


def make_stepper(
    objective: Objective,
    parameters: Parameters,
    optimizer: Optimizer,
    processes: Processes = ALONE,
    reduction: str = "all-reduce",
) -> Stepper:
    """The native one for estimates over prompts, the one in Python for the asymptotic loss, which has none.

    Several processes share the prompts of a step; on GPUs in Python, so that NCCL adds up gradients which never leave
    them. With `reduction` "all-reduce" weights equal those of one process to rounding, with "tree" to the bit, which
    the CPU alone has. Without prompts there is nothing to share: each process then computes all of it, and sends
    nothing.

    Raises ValueError for another reduction, and for "tree" on several GPUs.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not has_prompts(objective.estimator):
        return PythonStepper(objective, parameters, optimizer)
    devices = {tensor.device.type for tensor in parameters.tensors().values()}
    if processes.size == 1 or devices == {"cpu"}:
        return NativeStepper(objective, parameters, optimizer, processes, reduction)
    if reduction == "tree":
        raise ValueError("reduction=tree adds up on the CPU alone; use reduction=all-reduce, or device=cpu")
    return PythonStepper(objective.share(processes.rank, processes.size), parameters, optimizer, processes)


class NativeStepper:
    """Steps within the operator `mhicl::train_steps`, on as many threads as PyTorch is set to."""

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        optimizer: Optimizer,
        processes: Processes = ALONE,
        reduction: str = "all-reduce",
    ) -> None:
        self._objective = objective
        self._parameters = parameters
        self._optimizer = optimizer
        self._group = {
            "rank": processes.rank,
            "world": processes.size,
            "group": processes.group,
            "tree": reduction == "tree",
        }

    def advance(self, step: int, n_steps: int, flow_time: float, max_seconds: float, stop: bool = False) -> Span:
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
                stop=stop,
                **self._group,
            )
        )
        self._optimizer.count += span.steps
        return span


class StepByStep(ABC):
    """Asks for the gradients of each step and applies an update rule to them, to weights of any kind."""

    def __init__(self, weights: Trained, optimizer: Optimizer) -> None:
        self._weights = weights
        self._optimizer = optimizer

    @abstractmethod
    def evaluate(self, step: int, stop: bool) -> tuple[float, float, dict[str, Tensor], bool]:
        """The loss, its gradients in the trained tensors with their norm, and whether some process asks to stop."""

    def advance(self, step: int, n_steps: int, flow_time: float, max_seconds: float, stop: bool = False) -> Span:
        deadline = time.perf_counter() + max_seconds
        span = Span(0, True, math.nan, math.nan, math.nan, flow_time, 0.0)
        while True:
            try:
                loss, norm, gradients, stopped = self.evaluate(step + span.steps, stop)
            except DistributedError as error:
                return span._replace(lost=str(error))
            if span.steps == 0:
                span = span._replace(first_loss=loss, first_gradient_norm=norm)
            finite = math.isfinite(loss) and math.isfinite(norm)
            span = span._replace(last_loss=loss, finite=finite, stopped=stopped)
            if not finite or n_steps == 0:
                return span
            size = self._optimizer.step(self._weights.tensors(), gradients)
            span = span._replace(steps=span.steps + 1, flow_time=span.flow_time + size, step_size=size)
            if stopped or span.steps == n_steps or time.perf_counter() >= deadline:
                return span


class PythonStepper(StepByStep):
    """Steps of any loss: `gradients(kq, ov, step)` gives its value and derivatives in KQ and OV.

    With several processes it gives this one's part of them, and the parts are added up where the weights are.
    """

    def __init__(
        self,
        gradients: Callable[[Tensor, Tensor, int], LossAndGradients],
        parameters: Parameters,
        optimizer: Optimizer,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(parameters, optimizer)
        self._gradients = gradients
        self._parameters = parameters
        self._processes = processes

    def evaluate(self, step: int, stop: bool) -> tuple[float, float, dict[str, Tensor], bool]:
        kq, ov = (matrix.detach() for matrix in self._parameters.to_combined())
        try:
            part = self._gradients(kq, ov, step)
        except ValueError as error:  # the asymptotic loss has left the weights for which it exists
            raise TrainingError(f"step {step}: {error}; a smaller learning_rate may help") from error
        (loss, grad_kq, grad_ov), stop = self._add_up(part, stop)
        gradients = pull_back(self._parameters, grad_kq, grad_ov)
        return loss, gradient_norm(gradients), gradients, stop

    def _add_up(self, part: LossAndGradients, stop: bool) -> tuple[LossAndGradients, bool]:
        """All processes' parts in one message in double precision; raises DistributedError where that is lost."""
        if self._processes.size == 1:
            return part, stop
        _, grad_kq, grad_ov = part
        numbers = grad_kq.new_tensor([part.loss, stop], dtype=torch.float64)
        message = torch.cat([numbers, grad_kq.double().flatten(), grad_ov.double().flatten()])
        try:
            dist.all_reduce(message)
            loss, stops = message[:2].tolist()  # with NCCL errors come up here, where the host waits
        except RuntimeError as error:
            raise DistributedError(str(error)) from error
        sums = message[2:].to(grad_kq.dtype).split([grad_kq.numel(), grad_ov.numel()])
        return LossAndGradients(loss, sums[0].view_as(grad_kq), sums[1].view_as(grad_ov)), stops > 0
