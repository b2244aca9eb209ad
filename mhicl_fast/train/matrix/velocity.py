"""The velocity of full weights under gradient flow, θ' = −∂Loss/∂θ, as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...spectral._inputs import Floats
from ...spectral.asymptotic import DomainError, label_and_covariate_blocks, loss_of_blocks
from ...spectral.asymptotic_gradient import AsymptoticGradient
from ...tasks import MultiTaskRegression
from ..parameters import Parameters, pull_back

LossFunction = Callable[[Tensor, Tensor], Tensor]
Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Objective = MultiTaskRegression | LossFunction


class Velocity:
    """Maps between parameters and flat vectors θ (n,), and θ to the loss and to the velocity, all in float64.

    objective: a task, whose closed-form loss at `order` is meant, or a function (kq, ov) -> scalar tensor. Where the
    loss does not exist (DomainError) the velocity is NaN. Raises ValueError for weights that no closed form takes.
    """

    def __init__(self, objective: Objective, parameters: Parameters, order: str) -> None:
        self._parameters = parameters
        tensors = parameters.tensors()
        self._names = list(tensors)
        self._shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        self._sizes = [tensor.numel() for tensor in tensors.values()]
        self._loss: LossFunction
        self._gradient: Gradient
        if isinstance(objective, MultiTaskRegression):
            label_and_covariate_blocks(objective, *parameters.to_combined())
            self._loss, self._gradient = _closed_form(objective, order)
        else:
            self._loss = objective
            self._gradient = _automatic(objective)

    @property
    def groups(self) -> NDArray[np.intp]:
        """The first index of each head of each tensor."""
        offsets = np.cumsum([0, *self._sizes[:-1]])
        heads = [np.arange(shape[0]) * (size // shape[0]) for shape, size in zip(self._shapes, self._sizes)]
        return np.concatenate([offset + head for offset, head in zip(offsets, heads)])

    def flatten(self, tensors: Mapping[str, Tensor]) -> Floats:
        """Named tensors (...) -> θ (n,), a copy."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self._names]).numpy()

    def tensors(self, theta: Floats) -> dict[str, Tensor]:
        """θ (..., n) -> named tensors (..., their shapes), which share its memory."""
        parts = torch.from_numpy(theta).split(self._sizes, dim=-1)
        leading = theta.shape[:-1]
        return {name: part.reshape(leading + shape) for name, part, shape in zip(self._names, parts, self._shapes)}

    def parameters(self, theta: Floats) -> Parameters:
        """θ (n,) -> parameters."""
        return self._parameters.with_tensors(self.tensors(theta))

    def loss_of(self, parameters: Parameters) -> Tensor:
        """The loss, a tensor with one number, differentiable, with whatever errors it raises."""
        loss = self._loss(*parameters.to_combined())
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(f"the objective must give a tensor with one number, got {loss!r}")
        return loss.reshape(())

    def loss(self, theta: Floats) -> float:
        """The loss at θ (n,)."""
        with torch.no_grad():
            return float(self.loss_of(self.parameters(theta)))

    def __call__(self, theta: Floats) -> Floats:
        parameters = self.parameters(theta)
        try:
            gradients = pull_back(parameters, *self._gradient(*parameters.to_combined()))
        except DomainError:
            return np.full_like(theta, np.nan)
        return -self.flatten(gradients)


def _closed_form(task: MultiTaskRegression, order: str) -> tuple[LossFunction, Gradient]:
    """Loss and gradient on the blocks that matter; rounding errors in those that are 0 and stay so do not count."""
    gradient, d = AsymptoticGradient(task, order), task.dim_x

    def gradient_of(kq: Tensor, ov: Tensor) -> tuple[Tensor, Tensor]:
        grad_kq, grad_ov = torch.zeros_like(kq), torch.zeros_like(ov)
        grad_kq[:, :d, :d], grad_ov[:, :, d:] = gradient(kq[:, :d, :d], ov[:, :, d:])
        return grad_kq, grad_ov

    return lambda kq, ov: loss_of_blocks(task, kq[:, :d, :d], ov[:, :, d:], order), gradient_of


def _automatic(loss: LossFunction) -> Gradient:
    def of(kq: Tensor, ov: Tensor) -> tuple[Tensor, Tensor]:
        kq, ov = kq.detach().requires_grad_(), ov.detach().requires_grad_()
        with torch.enable_grad():
            grad_kq, grad_ov = torch.autograd.grad(loss(kq, ov), (kq, ov))
        return grad_kq, grad_ov

    return of
