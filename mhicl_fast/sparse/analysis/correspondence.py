"""Whether later layers move predictions as gradient-descent steps do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...tasks.sparse import SparsePrompts, SparseRegression
from ..estimators.algorithm import gradient_descent, preprocessed_descent
from ..model import Transformer
from .draws import Purpose, draw
from .hidden import hidden_examples
from .record import Record
from .regression import regress
from .statistics import Estimate, correlation, mean, ratio

_CHUNK = 256  # prompts at a time, whose graph autograd keeps


@dataclass(frozen=True, eq=False)
class Agreement(Record):
    """A model after 0 … L layers against gradient descent after 0 … T steps, each (L + 1, T + 1).

    NaN where there is nothing to compare, as with the coefficients 0 before the first step.
    """

    cosine: Estimate  # of the implied coefficients with βᵗ, mean over prompts
    distance: Estimate  # E‖ŵ − βᵗ‖² / E‖w‖²
    prediction_correlation: Estimate  # of ŷ with βᵗ·x_q


@dataclass(frozen=True, eq=False)
class Correspondence(Record):
    """Agreement of a model's layers with gradient descent on the covariates, raw and preprocessed by the algorithm."""

    steps: NDArray[np.int64]  # (T + 1,): 0 … T
    step_factor: float
    raw: Agreement
    preprocessed: Agreement
    read_out_risk: Estimate  # (L + 1,): excess risk of the fitted read-outs


def correspondence(
    model: Transformer,
    task: SparseRegression,
    *,
    max_steps: int = 20,
    step_factor: float = 1.0,
    n_fit: int = 2000,
    n_test: int = 2000,
    n_queries: int = 4,
    seed: int,
) -> Correspondence:
    """Read predictions off every layer and compare them with those of each number of gradient steps.

    After ℓ layers ŷ_ℓ = v_ℓ·h_q, with v_ℓ the regression of w·x_q on the states of queries of other prompts. The
    coefficients that it implies are ŵ_ℓ = ∂ŷ_ℓ/∂x_q, the mean over the prompt's queries.

    Args:
        model: is left as it is.
        task: of the prompts.
        max_steps: T ≥ 0.
        step_factor: c of the step c/λ_max in each prompt.
        n_fit, n_test: prompts to fit read-outs on, and to measure on.
        n_queries: Q ≥ 1 of each prompt.
        seed: one that the model wasn't trained with.

    Raises TypeError or ValueError on bad arguments.
    """
    if max_steps < 0:
        raise ValueError(f"max_steps must be at least 0, got {max_steps}")
    fit = draw(task, model, Purpose.FITTING, n_fit, n_queries, seed)
    test = draw(task, model, Purpose.TESTING, n_test, n_queries, seed)
    read_outs = [_read_out(model, layer, fit) for layer in range(len(model.shapes) + 1)]
    parts = [implied(model, chunk, read_outs) for chunk in _chunks(test)]
    predictions, coefficients = (torch.cat(part, 1) for part in zip(*parts))
    steps = list(range(max_steps + 1))
    raw, preprocessed = (
        descend(test.x.double(), test.y.double(), steps, c=step_factor)
        for descend in (gradient_descent, preprocessed_descent)
    )
    return Correspondence(
        steps=np.array(steps, dtype=np.int64),
        step_factor=step_factor,
        raw=_agreement(predictions, coefficients, raw, test),
        preprocessed=_agreement(predictions, coefficients, preprocessed, test),
        read_out_risk=mean((predictions - test.target).square().mean(2).cpu().numpy()),
    )


def implied(model: Transformer, prompts: SparsePrompts, read_outs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """ŷ (L + 1, N, Q) of a read-out (W,) of each layer and ŵ (L + 1, N, d), in float64."""
    n_queries = prompts.target.shape[1]
    with torch.enable_grad():
        tokens = prompts.tokens().requires_grad_()
        states = model.hidden_states(tokens, n_queries)
        predictions = [state[:, -n_queries:] @ read_out for state, read_out in zip(states, read_outs, strict=True)]
        slopes = [torch.autograd.grad(read.sum(), tokens, retain_graph=True)[0] for read in predictions]
    coefficients = torch.stack(slopes)[:, :, -n_queries:, : model.dim_x].mean(2)
    return torch.stack(predictions).detach().double(), coefficients.double()


def _read_out(model: Transformer, layer: int, prompts: SparsePrompts) -> Tensor:
    examples = hidden_examples(model, layer, prompts)
    return regress(examples.queries.flatten(0, 1), examples.target.flatten()[:, None])[0]


def _chunks(prompts: SparsePrompts) -> list[SparsePrompts]:
    return [SparsePrompts(*parts) for parts in zip(*(part.split(_CHUNK) for part in prompts))]


def _agreement(predictions: Tensor, coefficients: Tensor, descent: Tensor, prompts: SparsePrompts) -> Agreement:
    """Of ŷ (L + 1, N, Q) and ŵ (L + 1, N, d) with the coefficients (T + 1, N, d) of gradient descent."""
    ours, theirs = coefficients[:, None], descent[None]
    cosine = (ours * theirs).sum(-1) / (ours.norm(dim=-1) * theirs.norm(dim=-1))
    distance = (ours - theirs).square().sum(-1)
    size = prompts.coefficients.double().square().sum(-1)
    stepped = torch.einsum("tnd, nqd -> tnq", descent, prompts.x_query.double())
    return Agreement(
        cosine=mean(cosine.cpu().numpy()),
        distance=ratio(distance.cpu().numpy(), size.cpu().numpy()),
        prediction_correlation=correlation(predictions[:, None].cpu().numpy(), stepped[None].cpu().numpy()),
    )
