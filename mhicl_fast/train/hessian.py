"""Second derivatives of the population loss: products with vectors in bounded memory, dense matrices, an operator.

Estimates over prompts are differentiated by hand (`attention_tangents`) over chunks of prompts that fit in the cache,
so time grows with the number of prompts and memory does not. Prompts are those of `population_loss` at the same
arguments: the product is the derivative of exactly that estimate's gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from ..tasks import MultiTaskRegression
from .objective import check_arguments, has_prompts, population_loss
from .second_order import Sums, second_order_sums

_BLOCK = 16  # directions that share a pass over the prompts


class HessianProduct(NamedTuple):
    """The loss, its gradients in KQ (H, D, D) and OV (H, I, D), the Hessian's product in the directions' shapes."""

    loss: float
    grad_kq: Tensor
    grad_ov: Tensor
    product_kq: Tensor
    product_ov: Tensor


def hessian_vector_product(
    task: MultiTaskRegression,
    kq: Tensor,
    ov: Tensor,
    direction_kq: Tensor,
    direction_ov: Tensor,
    *,
    estimator: str = "conditional",
    n_prompts: int = 4096,
    seed: int = 0,
    step: int = 0,
    order: str = "first",
) -> HessianProduct:
    """The Hessian of `population_loss` in (KQ, OV) times a direction, with the loss and the gradient.

    kq (H, D, D) and ov (H, I, D) on the CPU; direction_kq (H, D, D) and direction_ov (H, I, D), or K directions at
    once, (K, H, D, D) and (K, H, I, D), which share the work for the gradient. Everything else as in `population_loss`.
    Memory: a few times what is returned, and tens of MiB at most unless one prompt alone takes more.

    Raises what `population_loss` raises; TypeError or ValueError for directions of other types or shapes, ValueError
    for "subspace", which can be differentiated once, and for directions out of the estimate's domain: "conditional" and
    "asymptotic" need direction_kq[:, d:, :d] = 0, "asymptotic" direction_ov[:, :, :d] = 0 besides.
    """
    _check_weights(task, kq, ov, estimator, n_prompts)
    _check_directions(task, kq, ov, direction_kq, direction_ov, estimator)
    single = direction_kq.dim() == 3
    directions = (direction_kq[None], direction_ov[None]) if single else (direction_kq, direction_ov)
    stacked_kq, stacked_ov = (
        torch.cat([x.detach()[None], along.detach()]) for x, along in zip((kq, ov), directions, strict=True)
    )
    if has_prompts(estimator):
        sums = second_order_sums(task, stacked_kq, stacked_ov, estimator, n_prompts, seed, step)
    else:
        sums = _asymptotic(task, stacked_kq, stacked_ov, order)
    by_kq, by_ov = sums.kq.to(kq.dtype), sums.ov.to(kq.dtype)
    products = (by_kq[1], by_ov[1]) if single else (by_kq[1:], by_ov[1:])
    return HessianProduct(float(sums.loss), by_kq[0], by_ov[0], *products)


class HessianOperator(LinearOperator):
    """The Hessian of `population_loss` at some weights, for the iterations of `scipy.sparse.linalg`.

    It acts on flat vectors (n,) of the entries that the estimate depends on: the first d columns of KQ and all of OV;
    without KQ's label rows for "conditional" and "asymptotic", and without OV's covariate columns for "asymptotic".
    `flatten` and `weights` go there and back. Arguments and errors are those of `hessian_vector_product`. Every product
    draws the same prompts again; several columns at once (`operator @ columns`) share that and more. Iterations to full
    accuracy want float64 weights.
    """

    def __init__(
        self,
        task: MultiTaskRegression,
        kq: Tensor,
        ov: Tensor,
        *,
        estimator: str = "conditional",
        n_prompts: int = 4096,
        seed: int = 0,
        step: int = 0,
        order: str = "first",
    ) -> None:
        _check_weights(task, kq, ov, estimator, n_prompts)
        self._task, self._kq, self._ov = task, kq.detach().clone(), ov.detach().clone()
        self._estimate: dict[str, Any] = {"estimator": estimator, "order": order}
        self._estimate |= {"n_prompts": n_prompts, "seed": seed, "step": step}
        d = task.dim_x
        kq_rows, first_ov = (task.dim if estimator == "sampled" else d), (d if estimator == "asymptotic" else 0)
        masks = torch.zeros(kq.shape, dtype=torch.bool), torch.zeros(ov.shape, dtype=torch.bool)
        masks[0][:, :kq_rows, :d] = True
        masks[1][:, :, first_ov:] = True
        self._entries = torch.cat([mask.flatten() for mask in masks]).nonzero().flatten()
        super().__init__(np.float64 if kq.dtype == torch.float64 else np.float32, (len(self._entries),) * 2)

    def flatten(self, kq: Tensor, ov: Tensor) -> NDArray[np.floating]:
        """The entries (…, n) of kq (…, H, D, D) and ov (…, H, I, D)."""
        return torch.cat([kq.flatten(-3), ov.flatten(-3)], -1)[..., self._entries].detach().numpy()

    def weights(self, vectors: NDArray[np.floating]) -> tuple[Tensor, Tensor]:
        """kq (…, H, D, D) and ov (…, H, I, D) with these entries (…, n), and 0 elsewhere."""
        size = self._kq.numel()
        flat = self._kq.new_zeros(*vectors.shape[:-1], size + self._ov.numel())
        flat[..., self._entries] = torch.from_numpy(np.ascontiguousarray(vectors)).to(flat)
        return flat[..., :size].unflatten(-1, self._kq.shape), flat[..., size:].unflatten(-1, self._ov.shape)

    def _matvec(self, vector: NDArray[np.floating]) -> NDArray[np.floating]:
        return self._rows(vector.reshape(1, -1))[0]

    def _matmat(self, columns: NDArray[np.floating]) -> NDArray[np.floating]:
        blocks = [self._rows(columns.T[first : first + _BLOCK]) for first in range(0, columns.shape[1], _BLOCK)]
        return np.concatenate(blocks).T if blocks else columns.astype(self.dtype)

    def _rows(self, vectors: NDArray[np.floating]) -> NDArray[np.floating]:
        result = hessian_vector_product(self._task, self._kq, self._ov, *self.weights(vectors), **self._estimate)
        return self.flatten(result.product_kq, result.product_ov)

    def _adjoint(self) -> HessianOperator:
        return self


def hessian(
    task: MultiTaskRegression,
    kq: Tensor,
    ov: Tensor,
    *,
    estimator: str = "conditional",
    n_prompts: int = 4096,
    seed: int = 0,
    step: int = 0,
    order: str = "first",
    max_bytes: int = 1 << 28,
) -> Tensor:
    """The Hessian of `population_loss` as a matrix (n, n), symmetric to rounding, in the type of the weights.

    Rows and columns are the entries of `HessianOperator`, whose `flatten` and `weights` tell which is which. It takes n
    products, 16 in a pass over the prompts.

    Raises what `hessian_vector_product` raises, and ValueError where the matrix would take more than max_bytes.
    """
    operator = HessianOperator(
        task, kq, ov, estimator=estimator, n_prompts=n_prompts, seed=seed, step=step, order=order
    )
    size = operator.shape[0]
    needed = size**2 * kq.element_size()
    if needed > max_bytes:
        raise ValueError(
            f"the Hessian in {size} weights takes {needed / 2**20:.3g} MiB, more than max_bytes = "
            f"{max_bytes / 2**20:.3g} MiB; use HessianOperator, which needs no matrix"
        )
    matrix = np.empty((size, size), operator.dtype)
    for first in range(0, size, _BLOCK):
        units = np.eye(size, min(_BLOCK, size - first), -first, operator.dtype)
        matrix[:, first : first + _BLOCK] = operator.matmat(units)
    return torch.from_numpy(matrix)


def _asymptotic(task: MultiTaskRegression, kq: Tensor, ov: Tensor, order: str) -> Sums:
    """The closed form by automatic differentiation, twice backwards; stacks as in `second_order_sums`."""
    with torch.enable_grad():
        weights = kq[0].requires_grad_(), ov[0].requires_grad_()
        loss = population_loss(task, *weights, estimator="asymptotic", order=order)
        gradient = torch.autograd.grad(loss, weights, create_graph=True)
    rows = [tuple(g.detach() for g in gradient)]
    for along in zip(kq[1:], ov[1:], strict=True):
        rows.append(torch.autograd.grad(gradient, weights, along, retain_graph=True))
    return Sums(loss.detach(), *(torch.stack(parts) for parts in zip(*rows, strict=True)))


def _check_weights(task: MultiTaskRegression, kq: Tensor, ov: Tensor, estimator: str, n_prompts: int) -> None:
    check_arguments(task, kq, ov, estimator, n_prompts)
    if estimator == "subspace":
        raise ValueError("the subspace estimator can be differentiated once; use estimator='conditional'")
    for name, tensor in (("kq", kq), ("ov", ov)):
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got device {tensor.device}")


def _check_directions(
    task: MultiTaskRegression, kq: Tensor, ov: Tensor, along_kq: Tensor, along_ov: Tensor, estimator: str
) -> None:
    for name, along, weights in (("direction_kq", along_kq, kq), ("direction_ov", along_ov, ov)):
        if not isinstance(along, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(along).__name__}")
        if along.dtype != weights.dtype or along.device != weights.device:
            wanted, came = (f"{x.dtype} on {x.device}" for x in (weights, along))
            raise TypeError(f"{name} must be {wanted} like the weights, got {came}")
    expected = [list(kq.shape), list(ov.shape)]
    came_shapes = [list(along_kq.shape), list(along_ov.shape)]
    together = along_kq.dim() == 4 and [[len(along_kq), *shape] for shape in expected] == came_shapes
    if not together and came_shapes != expected:
        raise ValueError(
            f"directions must be {expected[0]} and {expected[1]}, or as many of each along one more first dimension, "
            f"got shapes {came_shapes[0]} and {came_shapes[1]}"
        )
    d = task.dim_x
    outside = []
    if estimator in ("conditional", "asymptotic"):
        outside.append((f"direction_kq[..., {d}:, :{d}]", along_kq[..., d:, :d]))
    if estimator == "asymptotic":
        outside.append((f"direction_ov[..., :{d}]", along_ov[..., :d]))
    for name, block in outside:
        if not bool((block == 0).all()):
            raise ValueError(f"the {estimator} estimator does not hold along {name}, which must be 0")
