"""Update rules: explicit Euler for the gradient flow, SGD with momentum, Adam, AdamW.

Each updates a dictionary of tensors in place and returns the step's length in flow time. Its whole state is a
dictionary of tensors, so a run that is stored and restored goes on bit for bit. SGD, Adam and AdamW have the meaning of
`torch.optim.SGD`, `torch.optim.Adam` and `torch.optim.AdamW`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

OPTIMIZERS = ("flow", "sgd", "adam", "adamw")
WEIGHT_DECAY = 0.01  # of AdamW, unless another is asked for
BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Optimizer(ABC):
    """An update rule.

    What it remembers are `slots`, each a tensor per parameter that is zero at first, and `count`, the steps taken.
    """

    slots: tuple[str, ...] = ()
    count = 0

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}  # by "slot.parameter"

    @abstractmethod
    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        """Update `tensors` in place; return the step's length in flow time."""

    @abstractmethod
    def native_rule(self) -> dict[str, Any]:
        """The rule as the native loop's keyword arguments."""

    def buffers(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The state's tensors themselves, slot by slot in the order of the parameters."""
        keys = [(f"{slot}.{name}", tensor) for slot in self.slots for name, tensor in tensors.items()]
        for key, tensor in keys:
            if key not in self._buffers:
                self._buffers[key] = torch.zeros_like(tensor)
        return [self._buffers[key] for key, _ in keys]

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, as tensors that later steps do not change."""
        return {key: buffer.clone() for key, buffer in self._buffers.items()}

    def load_state(self, state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
        """Take over what `state` gave, on a device or where it is; ValueError where that is of another rule."""
        strange = sorted(key for key in state if key.partition(".")[0] not in self.slots)
        if strange:
            raise ValueError(f"{type(self).__name__} keeps {list(self.slots) or 'no state'}, got {strange}")
        self._buffers = {key: buffer.to(device, copy=True) for key, buffer in state.items()}


class GradientFlow(Optimizer):
    """Explicit Euler for θ' = −∇Loss(θ): θ ← θ − η g with η = min(learning_rate, step_cap / max|g|).

    `step_cap` bounds the largest change of any parameter in one step; None leaves the step fixed.
    """

    def __init__(self, learning_rate: float, step_cap: float | None = None) -> None:
        super().__init__()
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

    def native_rule(self) -> dict[str, Any]:
        return _native_rule("flow", self.learning_rate, step_cap=self.step_cap or 0.0)


class MomentumSGD(Optimizer):
    """m ← momentum · m + g, θ ← θ − learning_rate · m.

    With momentum the parameters follow the flow at rate learning_rate / (1 − momentum), which is the flow time that a
    step counts.
    """

    def __init__(self, learning_rate: float, momentum: float = 0.0) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.slots = ("velocity",) if momentum > 0 else ()

    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        updates = [gradients[name] for name in tensors]
        if self.momentum > 0:
            velocities = self.buffers(tensors)
            updates = [v.mul_(self.momentum).add_(gradient) for v, gradient in zip(velocities, updates)]
        for tensor, update in zip(tensors.values(), updates):
            tensor.sub_(update, alpha=self.learning_rate)
        return self.learning_rate / (1 - self.momentum)

    def native_rule(self) -> dict[str, Any]:
        return _native_rule("sgd", self.learning_rate, momentum=self.momentum)


class Adam(Optimizer):
    """Adam with bias correction: θ ← θ − learning_rate · m̂ / (√v̂ + 10⁻⁸), `betas` being the moments' decays.

    The native loop has the default ones alone.
    """

    slots = ("first", "second")
    weight_decay = 0.0

    def __init__(self, learning_rate: float, *, betas: tuple[float, float] = BETAS) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.betas = betas

    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        moments = self.buffers(tensors)
        trained, slopes = list(tensors.values()), [gradients[name] for name in tensors]
        adamw(
            trained,
            slopes,
            moments[: len(tensors)],
            moments[len(tensors) :],
            [],
            list(torch.full((len(tensors),), float(self.count), device=trained[0].device).unbind()),
            # One pass over all tensors, which takes their numbers as they lie in memory, whatever their strides are.
            fused=all(tensor.is_contiguous() for tensor in (*trained, *slopes, *moments)),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=_EPSILON,
            maximize=False,
        )
        self.count += 1
        return self.learning_rate

    def native_rule(self) -> dict[str, Any]:
        return self._native_adam("adam")

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"count": torch.tensor(self.count)}

    def load_state(self, state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
        super().load_state({key: buffer for key, buffer in state.items() if key != "count"}, device)
        self.count = int(state["count"])

    def _native_adam(self, name: str) -> dict[str, Any]:
        if self.betas != BETAS:
            raise ValueError(f"native steps of {name} have betas {BETAS}, got {self.betas}")
        return _native_rule(name, self.learning_rate, weight_decay=self.weight_decay)


class AdamW(Adam):
    """Adam with decoupled weight decay: first θ ← (1 − learning_rate · weight_decay) θ, then Adam's step."""

    def __init__(
        self, learning_rate: float, weight_decay: float = WEIGHT_DECAY, *, betas: tuple[float, float] = BETAS
    ) -> None:
        super().__init__(learning_rate, betas=betas)
        self.weight_decay = weight_decay

    def native_rule(self) -> dict[str, Any]:
        return self._native_adam("adamw")


def resolve_weight_decay(weight_decay: float | None) -> float:
    """The decay that AdamW has where `weight_decay` is asked for; None is WEIGHT_DECAY."""
    return WEIGHT_DECAY if weight_decay is None else weight_decay


def make_optimizer(
    name: str,
    learning_rate: float,
    *,
    momentum: float = 0.0,
    step_cap: float | None = None,
    weight_decay: float | None = None,
) -> Optimizer:
    """The update rule called "flow", "sgd", "adam" or "adamw"; ValueError for another name.

    Each takes of the options what belongs to it.
    """
    if name == "flow":
        return GradientFlow(learning_rate, step_cap)
    if name == "sgd":
        return MomentumSGD(learning_rate, momentum)
    if name == "adam":
        return Adam(learning_rate)
    if name == "adamw":
        return AdamW(learning_rate, resolve_weight_decay(weight_decay))
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")


def _native_rule(
    optimizer: str, learning_rate: float, *, step_cap: float = 0.0, momentum: float = 0.0, weight_decay: float = 0.0
) -> dict[str, Any]:
    return {
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "step_cap": step_cap,
        "momentum": momentum,
        "weight_decay": weight_decay,
    }
