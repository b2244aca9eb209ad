"""The configuration of a run of the study of sparse linear regression."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..tasks import SparseRegression
from ..train.optimisers import AdamW
from ..train.settings import (
    DTYPES,
    MAX_SEED,
    ConfigError,
    RunSettings,
    check_device_name,
    option,
    resolve_device,
)
from ..train.taskspec import parse_covariance
from .model import ACTIVATIONS, LayerShape, Transformer, uniform_layers


@dataclass(frozen=True, kw_only=True)
class SparseConfig(RunSettings):
    """The configuration of a run. Raises ConfigError for a value out of range or a combination that cannot run."""

    study = "sparse"

    # The task.
    dim_x: int = option("covariates per example, d", 16, low=1)
    sparsity: int = option("coefficients that are not zero, s", 4, low=0)
    context_length: int = option("context examples per prompt, n", 40, low=1)
    shortest_context: int | None = option(
        "each step has prompts of one length, drawn from shortest_context to context_length; none is context_length",
        None,
        low=1,
    )
    noise_variance: str = option("of the labels: a number, or several that prompts take in turn", "0,0.1,0.4,0.8")
    covariance: str = option("of the covariates: identity, ar:ρ (ρ^|j−k|), or a JSON matrix", "identity")
    # The model.
    n_layers: int = option("layers of attention", 3, low=1)
    n_heads: int = option("heads of each layer", 8, low=1)
    later_heads: int | None = option("heads of each layer after the first; none is n_heads", None, low=1)
    head_dim: int | None = option("of each head; none shares the width among n_heads", None, low=1)
    width: int = option("of the hidden states", 64, low=1)
    activation: str = option("attention's", "softmax", choices=ACTIVATIONS)
    scale: float | None = option("factor on the logits; none is head dimension^-½", None, above=0)
    layer_norm: bool = option("whether to normalise what each layer and the read-out read", False)
    mlp_width: int = option("hidden units of a network after each layer's attention; 0: none", 0, low=0)
    # The optimiser: AdamW.
    n_prompts: int = option("prompts per step, N", 128, low=1)
    n_queries: int = option("queries per prompt, Q, which share its context", 16, low=1)
    learning_rate: float = option("largest step size", 6e-3, above=0)
    warmup_steps: int = option("steps over which the step size rises to learning_rate", 200, low=0)
    final_learning_rate: float = option("share of learning_rate to which a cosine then brings it", 0.02, low=0, high=1)
    beta1: float = option("decay of the gradients' mean", 0.9, low=0, below=1)
    beta2: float = option("decay of their squares' mean", 0.98, low=0, below=1)
    weight_decay: float = option("decoupled from the gradients; 0 is Adam", 0.0, low=0)
    clip_norm: float | None = option("largest norm of a step's gradient; none is no limit", 1.0, above=0)
    steps: int = option("optimiser steps", low=1)
    # Records.
    record_every: int = option("steps between rows of metrics.csv", 200, low=1)
    record_prompts: int = option("fresh prompts on which rows measure the risk, for each noise variance", 256, low=2)
    checkpoint_every: int = option("steps between checkpoints", 1000, low=1)
    eval_prompts: int = option("fresh prompts of the final evaluation, for each noise variance", 8192, low=2)
    dtype: str = option("arithmetic", "float32", choices=tuple(DTYPES))
    device: str = option(
        "where it trains: cpu, cuda or cuda:1, …; auto is a GPU where there is one with kernels",
        "auto",
        compare=False,
    )
    seed: int = option("seed of weights and prompts", 0, low=0, high=MAX_SEED)
    start: str | None = option("SHA-256 of the weights of another model that it starts from; none draws them", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortest_context is not None and self.shortest_context > self.context_length:
            raise ConfigError(
                f"shortest_context must be at most context_length = {self.context_length}, got {self.shortest_context}"
            )
        check_device_name(self.device)
        try:
            self.task()
            self.layers()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def task(self) -> SparseRegression:
        """The distribution of prompts, at full length."""
        return SparseRegression(
            self.dim_x,
            self.sparsity,
            self.context_length,
            noise_variance=self.noise_variances(),
            covariance=parse_covariance(self.covariance, self.dim_x),
        )

    def noise_variances(self) -> list[float]:
        """`noise_variance` as numbers; ConfigError for another text."""
        try:
            return [float(text) for text in self.noise_variance.split(",")]
        except ValueError:
            raise ConfigError(
                f"noise_variance must be a number or numbers separated by commas, got {self.noise_variance!r}"
            ) from None

    def context_lengths(self) -> range:
        """The lengths that a step's prompts can have."""
        return range(self.shortest_context or self.context_length, self.context_length + 1)

    def layers(self) -> list[LayerShape]:
        """Heads and head dimension of each layer; ValueError where heads cannot share the width evenly."""
        if self.head_dim is None:
            first = uniform_layers(self.width, 1, self.n_heads)[0]
        else:
            first = LayerShape(self.n_heads, self.head_dim)
        later = first if self.later_heads is None else first._replace(heads=self.later_heads)
        return [first, *([later] * (self.n_layers - 1))]

    def model(self) -> Transformer:
        """Fresh weights on the CPU, a pure function of the seed."""
        model = Transformer(
            self.dim_x,
            self.width,
            self.layers(),
            activation=self.activation,
            scale=self.scale,
            layer_norm=self.layer_norm,
            mlp_width=self.mlp_width,
            seed=self.seed,
        )
        return model.to(self.torch_dtype())

    def optimizer(self) -> AdamW:
        """A fresh update rule; its step size is set step by step."""
        return AdamW(self.learning_rate, self.weight_decay, betas=(self.beta1, self.beta2))

    def learning_rate_at(self, step: int) -> float:
        """The step size of a step: a linear rise, then half a cosine that ends with the last step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        falling = max(self.steps - self.warmup_steps, 1)
        share = (1 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / falling))) / 2
        return self.learning_rate * (self.final_learning_rate + (1 - self.final_learning_rate) * share)

    def resolved_device(self) -> torch.device:
        """What `device` comes to on this machine; ConfigError where that cannot be had."""
        return resolve_device(self.device, "attention")
