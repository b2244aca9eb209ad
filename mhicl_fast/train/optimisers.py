"""Update rules: explicit Euler for the gradient flow, SGD with momentum, Adam.

Each updates a dictionary of tensors in place and returns the step's length in flow time. Its whole state is a
dictionary of tensors, so a run that is stored and restored goes on bit for bit. SGD and Adam have the meaning of
`torch.optim.SGD` and `torch.optim.Adam`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

OPTIMIZERS = ("flow", "sgd", "adam")


class Optimizer(Protocol):
    """An update rule."""

    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        """Update `tensors` in place; return the step's length in flow time."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, as tensors that later steps do not change."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        ...


class GradientFlow:
    """Explicit Euler for θ' = −∇Loss(θ): θ ← θ − η g with η = min(learning_rate, step_cap / max|g|).

    `step_cap` bounds the largest change of any parameter in one step; None leaves the step fixed.
    """

    def __init__(self, learning_rate: float, step_cap: float | None = None) -> None:
        self.learning_rate = learning_rate
        self.step_cap = step_cap

    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        size = self.learning_rate
        if self.step_cap is not None:
            largest = max(float(gradient.abs().max()) for gradient in gradients.values())
            if largest * size > self.step_cap:
                size = self.step_cap / largest
        for name, tensor in tensors.items():
            tensor.sub_(gradients[name], alpha=size)
        return size

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise ValueError(f"gradient flow keeps no state, got {sorted(state)}")


class MomentumSGD:
    """m ← momentum · m + g, θ ← θ − learning_rate · m.

    With momentum the parameters follow the flow at rate learning_rate / (1 − momentum), which is the flow time that a
    step counts.
    """

    def __init__(self, learning_rate: float, momentum: float = 0.0) -> None:
        self.learning_rate = learning_rate
        self.momentum = momentum
        self._velocity: dict[str, Tensor] = {}

    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        for name, tensor in tensors.items():
            update = gradients[name]
            if self.momentum > 0:
                if name in self._velocity:
                    update = self._velocity[name].mul_(self.momentum).add_(update)
                else:
                    self._velocity[name] = update.clone()
            tensor.sub_(update, alpha=self.learning_rate)
        return self.learning_rate / (1 - self.momentum)

    def state(self) -> dict[str, Tensor]:
        return {f"velocity.{name}": tensor.clone() for name, tensor in self._velocity.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._velocity = {name.removeprefix("velocity."): tensor.clone() for name, tensor in state.items()}


class Adam:
    """Adam with bias correction: θ ← θ − learning_rate · m̂ / (√v̂ + epsilon)."""

    def __init__(self, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self.learning_rate = learning_rate
        self.betas = betas
        self.epsilon = epsilon
        self._count = 0
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}

    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        if not self._first:
            self._first = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
            self._second = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        self._count += 1
        beta1, beta2 = self.betas
        size = self.learning_rate / (1 - beta1**self._count)
        root = (1 - beta2**self._count) ** 0.5
        for name, tensor in tensors.items():
            gradient = gradients[name]
            first = self._first[name].lerp_(gradient, 1 - beta1)
            second = self._second[name].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            tensor.addcdiv_(first, second.sqrt().div_(root).add_(self.epsilon), value=-size)
        return self.learning_rate

    def state(self) -> dict[str, Tensor]:
        moments = {f"first.{name}": tensor.clone() for name, tensor in self._first.items()}
        moments |= {f"second.{name}": tensor.clone() for name, tensor in self._second.items()}
        return moments | {"count": torch.tensor(self._count)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._count = int(state["count"])
        for prefix, moments in (("first.", self._first), ("second.", self._second)):
            moments.clear()
            moments |= {
                name.removeprefix(prefix): tensor.clone() for name, tensor in state.items() if name.startswith(prefix)
            }


def make_optimizer(
    name: str, learning_rate: float, *, momentum: float = 0.0, step_cap: float | None = None
) -> Optimizer:
    """The update rule called "flow", "sgd" or "adam"; ValueError for another name."""
    if name == "flow":
        return GradientFlow(learning_rate, step_cap)
    if name == "sgd":
        return MomentumSGD(learning_rate, momentum)
    if name == "adam":
        return Adam(learning_rate)
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
