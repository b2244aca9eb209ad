"""Predictions of a transformer, their excess risk, and the gradients that it trains on.

The loss is the mean of (ŷ − w·x_q)² over prompts and queries, against labels without noise. That of noisy labels is
larger by σ² whatever the model, so both have the same minimiser; without the noise its gradients vary less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.transformer import transformer_predict, transformer_step
from ..tasks import SparseRegression
from ..tasks.sparse import SparsePrompts
from .model import Transformer

CHUNK = 1024  # prompts at a time: hidden states of more no longer fit into a cache


class Risk(NamedTuple):
    """An excess risk E (ŷ − w·x_q)² with its standard error over prompts."""

    mean: float
    standard_error: float


class Gradients(NamedTuple):
    """The loss and its derivatives in the weights, in the names and the order of `Transformer.tensors`."""

    loss: float
    gradients: dict[str, Tensor]


def has_native_kernels(model: Transformer) -> bool:
    """Whether the fused kernels compute this model: attention alone, on the CPU, in float32 or float64.

    All others go through PyTorch's operators and its autograd.
    """
    weight = model.read_in
    return (
        model.attention_only
        and not model.needs_gains
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
    )


def loss_and_gradients(model: Transformer, prompts: SparsePrompts) -> Gradients:
    """The mean squared error against the noiseless labels (N, Q), and its gradients."""
    if has_native_kernels(model):
        loss, found = transformer_step(prompts.tokens(), prompts.target, **_options(model))
        return Gradients(loss, dict(zip(model.tensors(), found, strict=True)))
    names, weights = list(model.tensors()), dict(model.named_parameters())
    with torch.enable_grad():
        predicted = model(prompts.tokens(), prompts.x_query.shape[1])
        mean = (predicted - prompts.target).square().mean()
        slopes = torch.autograd.grad(mean, [weights[name] for name in names])
    return Gradients(float(mean.detach()), dict(zip(names, slopes)))


@torch.no_grad()
def predict(model: Transformer, prompts: SparsePrompts) -> Tensor:
    """Predictions (N, Q) for the queries, without gradients, some prompts at a time."""
    tokens, n_queries = prompts.tokens(), prompts.x_query.shape[1]
    if has_native_kernels(model):
        return transformer_predict(tokens, n_queries, **_options(model))
    return torch.cat([model(part, n_queries) for part in tokens.split(CHUNK)])


def _options(model: Transformer) -> dict[str, Any]:
    """The model as the fused kernels take it."""
    return {
        "weights": list(model.tensors().values()),
        "shapes": model.shapes,
        "activation": model.activation,
        "scales": model.scales,
        "head_masks": model.head_masks,
    }


def excess_risk(model: Transformer, prompts: SparsePrompts) -> Risk:
    """The mean over prompts of each one's mean squared error over its queries; ValueError for less than 2 prompts."""
    return risk_of([squared_errors(model, prompts)])


def squared_errors(model: Transformer, prompts: SparsePrompts) -> Tensor:
    """Each prompt's squared error, averaged over its queries, (N,) float64."""
    return (predict(model, prompts) - prompts.target).double().square().mean(1)


def risk_of(errors: Iterable[Tensor]) -> Risk:
    """The mean of prompts' errors, given in parts, with its standard error; ValueError for less than 2 prompts."""
    found = torch.cat(list(errors))
    if len(found) < 2:
        raise ValueError(f"a standard error takes at least 2 prompts, got {len(found)}")
    return Risk(float(found.mean()), float(found.std()) / math.sqrt(len(found)))


def measure_risk(
    model: Transformer, task: SparseRegression, n_prompts: int, *, n_queries: int = 8, seed: int, step: int = 0
) -> Risk:
    """The excess risk on prompts that are drawn as they are needed, in the model's type and on its device."""
    prompts = draw_in_parts(task, n_prompts, n_queries=n_queries, seed=seed, step=step, like=model.read_in)
    return risk_of(squared_errors(model, part) for part in prompts)


def draw_in_parts(
    task: SparseRegression, n_prompts: int, *, n_queries: int, seed: int, step: int = 0, like: Tensor
) -> Iterator[SparsePrompts]:
    """The prompts of a step, at most CHUNK at a time, in the type and on the device of a tensor."""
    for first in range(0, n_prompts, CHUNK):
        yield task.sample(
            min(CHUNK, n_prompts - first),
            n_queries=n_queries,
            seed=seed,
            step=step,
            first_prompt=first,
            device=like.device,
            dtype=like.dtype,
        )
