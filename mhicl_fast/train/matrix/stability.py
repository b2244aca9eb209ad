"""Linearised gradient flow of full weights: do directions outside the decomposable weights leave a state?

Near weights θ the flow moves a displacement as δ' = −∂Loss − Hess δ, so the growth rates are the eigenvalues of −Hess.
The fastest are found by Lanczos iteration on exact products of the Hessian with vectors, two backward passes each.

Where the weights are decomposable in the coordinate axes (all factors diagonal on their blocks), changing the sign of
one covariate, or of one output, in all matrices at once does not change the weights, nor, for independent covariates,
the population loss. So the Hessian commutes with these changes, and does not mix the displacements that they leave
alone, the diagonal ones, with all others: the two sets have growth rates of their own, "inside" and "outside" the
decomposable weights. Correlated covariates and finite sets of prompts break this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from ...spectral._inputs import Floats, check_order
from ...tasks import MultiTaskRegression
from ..parameters import Combined, Parameters
from .velocity import Objective, Velocity

_DENSE = 300  # displacements up to which all rates are computed
_COUPLING = 1e-9  # relative to the image of a displacement: what leaves its set is rounding up to this


@dataclass(frozen=True, eq=False)
class GrowthRates:
    """The fastest growth rates among some displacements: rates (K,), descending, the K directions by tensor name
    (K, its shape), of norm 1, and the slowest rate of all, the fastest decay."""

    rates: Floats
    directions: dict[str, Tensor]
    lowest: float


@dataclass(frozen=True, eq=False)
class MatrixStability:
    """velocity: norm of the flow's velocity at the weights. every: among all displacements; inside, outside: among the
    decomposable ones and those orthogonal to them, None where the weights are not decomposable in the axes or the
    Hessian mixes the two."""

    velocity: float
    every: GrowthRates
    inside: GrowthRates | None
    outside: GrowthRates | None


def matrix_stability(
    objective: Objective, parameters: Parameters, *, order: str = "first", n_rates: int = 6, dim_x: int | None = None
) -> MatrixStability:
    """Linearise the gradient flow of full weights at `parameters`, in float64; see `MatrixStability`.

    objective: a MultiTaskRegression, for its closed-form loss at `order`, or a twice differentiable function (kq, ov)
    -> scalar tensor, which then also needs `dim_x` to tell covariates from labels. With the closed form, which holds
    for logits that read no labels and outputs that read no covariates, displacements are of the entries that keep this.
    Of several equal rates the iteration may find some only; it finds one for sure.

    Raises ValueError and TypeError for unusable arguments and where the loss does not exist.
    """
    if isinstance(objective, MultiTaskRegression):
        check_order(order, objective.context_length)
        dim_x = objective.dim_x
    if n_rates < 1:
        raise ValueError(f"n_rates must be at least 1, got {n_rates}")
    hessian = _Hessian(objective, parameters, order)
    every = np.arange(hessian.size)
    if isinstance(objective, MultiTaskRegression):
        every = _visible_entries(hessian, parameters, objective.dim_x)
    inside = None if dim_x is None else _diagonal_entries(hessian, parameters, dim_x)
    if inside is not None and _mixes(hessian, inside):
        inside = None
    return MatrixStability(
        float(np.linalg.norm(hessian.gradient)),
        _growth(hessian, every, n_rates),
        None if inside is None else _growth(hessian, inside, n_rates),
        None if inside is None else _growth(hessian, np.setdiff1d(every, inside), n_rates),
    )


class _Hessian:
    """Products of the Hessian in the flat weights with vectors (n,)."""

    def __init__(self, objective: Objective, parameters: Parameters, order: str) -> None:
        self.velocity = Velocity(objective, parameters, order)
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.tensors().items()}
        if any(leaf.dtype != torch.float64 for leaf in leaves.values()):
            raise TypeError("stability needs float64 parameters")
        self._leaves = list(leaves.values())
        with torch.enable_grad():
            loss = self.velocity.loss_of(parameters.with_tensors(leaves))
            if not bool(torch.isfinite(loss)):
                raise ValueError(f"the loss must be finite, got {float(loss.detach())}")
            gradients = torch.autograd.grad(loss, self._leaves, create_graph=True)
        self.gradient = self._flat(gradients)
        self._moving = [number for number, gradient in enumerate(gradients) if gradient.requires_grad]
        self._gradients = [gradients[number] for number in self._moving]
        self.size = self.gradient.size

    def __call__(self, vector: Floats) -> Floats:
        parts = list(self.velocity.tensors(np.ascontiguousarray(vector)).values())
        moving = [parts[number] for number in self._moving]
        products = torch.autograd.grad(
            self._gradients, self._leaves, moving, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return self._flat(products)

    def _flat(self, tensors: tuple[Tensor, ...]) -> Floats:
        return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy()


def _visible_entries(hessian: _Hessian, parameters: Parameters, dim_x: int) -> NDArray[np.intp]:
    """Flat indices of the entries that the closed form depends on: covariate columns of keys and queries, label columns
    of values, all of W_O, and of the combined matrices the blocks that may differ from 0."""
    marks = {name: torch.zeros_like(tensor) for name, tensor in parameters.tensors().items()}
    for name, mark in marks.items():
        if name == "kq":
            mark[:, :dim_x, :dim_x] = 1
        elif name in ("w_q", "w_k"):
            mark[:, :, :dim_x] = 1
        elif name in ("ov", "w_v"):
            mark[:, :, dim_x:] = 1
        else:
            mark[:] = 1
    return np.flatnonzero(hessian.velocity.flatten(marks))


def _diagonal_entries(hessian: _Hessian, parameters: Parameters, dim_x: int) -> NDArray[np.intp] | None:
    """Flat indices of the entries that decomposable weights have in the axes; None where the weights have others."""
    tensors = parameters.tensors()
    marks = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    # name -> the block's first row and column, and its size: entries [row + k, column + k]
    labels = tensors["ov" if isinstance(parameters, Combined) else "w_o"].shape[1]
    blocks = {"kq": (0, 0, dim_x), "w_q": (0, 0, dim_x), "w_k": (0, 0, dim_x)}
    blocks |= {"ov": (0, dim_x, labels), "w_o": (0, dim_x, labels), "w_v": (dim_x, dim_x, labels)}
    for name, mark in marks.items():
        row, column, size = blocks[name]
        if row + size > mark.shape[1] or column + size > mark.shape[2]:
            return None
        k = torch.arange(size)
        mark[:, row + k, column + k] = 1
    diagonal = hessian.velocity.flatten(marks) > 0
    if hessian.velocity.flatten(tensors)[~diagonal].any():
        return None
    return np.flatnonzero(diagonal)


def _mixes(hessian: _Hessian, inside: NDArray[np.intp]) -> bool:
    """Whether the Hessian takes displacements of these entries out of them; a random one tells, but for chance 0."""
    displacement = np.zeros(hessian.size)
    displacement[inside] = np.random.default_rng(0).standard_normal(inside.size)
    image = hessian(displacement)
    return bool(np.linalg.norm(np.delete(image, inside)) > _COUPLING * np.linalg.norm(image))


def _growth(hessian: _Hessian, entries: NDArray[np.intp], n_rates: int) -> GrowthRates:
    """Growth rates among displacements of these entries alone."""

    def product(vector: Floats) -> Floats:
        displacement = np.zeros(hessian.size)
        displacement[entries] = vector.reshape(-1)
        return -hessian(displacement)[entries]

    n_rates = min(n_rates, entries.size)
    if entries.size <= max(_DENSE, 2 * n_rates):
        matrix = np.stack([product(unit) for unit in np.eye(entries.size)])
        rates, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        lowest = float(rates[0])
    else:
        shape, start = (entries.size, entries.size), np.random.default_rng(0).standard_normal(entries.size)
        operator = LinearOperator(shape, matvec=product, dtype=np.float64)
        lowest = float(eigsh(operator, k=1, which="SA", v0=start, return_eigenvectors=False)[0])
        # Started from an image of the operator, the iteration would miss rates that are 0: shift all by `lowest`.
        shifted = LinearOperator(shape, matvec=lambda v: product(v) - lowest * v.reshape(-1), dtype=np.float64)
        rates, vectors = eigsh(shifted, k=n_rates, which="LA", v0=start)
        rates = rates + lowest
    fastest = np.argsort(-rates, kind="stable")[:n_rates]
    directions = np.zeros((len(fastest), hessian.size))
    directions[:, entries] = vectors[:, fastest].T
    return GrowthRates(rates[fastest], hessian.velocity.tensors(directions), lowest)
