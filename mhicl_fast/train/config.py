"""A run's configuration: everything its result depends on, as one flat, validated, JSON-able record.

Where it trains, and how processes add up their shares, is in it too, but does not tell one run from another: results
differ in rounding alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..devices import CPU
from ..processes import ALONE, Processes
from ..tasks import MultiTaskRegression
from .objective import ESTIMATORS, ON_GPUS, Objective
from .optimisers import OPTIMIZERS, WEIGHT_DECAY, Optimizer, make_optimizer
from .parameters import Parameters
from .settings import DTYPES, FIRST_STUDY, MAX_SEED, ConfigError, RunSettings, check_device_name, option, resolve_device
from .starts import STARTS, initial_parameters
from .stepping import REDUCTIONS
from .taskspec import parse_covariance, parse_signal, parse_support


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSettings):
    """The configuration of a run. Raises ConfigError for a value out of range or a combination that cannot run."""

    study = FIRST_STUDY

    # The task.
    dim_x: int = option("covariates per example, d", low=1)
    n_tasks: int = option("tasks = outputs per example, I", low=1)
    context_length: int = option("context examples per prompt, L", low=1)
    support: str = option("covariates of each task: all, blocks, or ranges such as 0:4,2:6", "all")
    signal: str = option("signal variance of the tasks: a number, one per task as 1,0.5, or 1/d (of each support)", "1")
    noise_std: float = option("standard deviation of the label noise, σ", 0.0, low=0)
    noisy_target: bool = option("whether the target has noise too", False)
    covariance: str = option("of the covariates: identity, ar:ρ (ρ^|j−k|), or a JSON matrix", "identity")
    # The model.
    n_heads: int = option("attention heads, H", low=1)
    parameters: str = option("parameterisation", "factored", choices=("factored", "combined"))
    scale: float | None = option("factor on W_KᵀW_Q; none is E^-½", None, above=0)
    start: str = option("starting weights", "decomposable", choices=STARTS)
    start_size: float = option("typical μ of the small start", 0.01, above=0)
    start_spread: float = option("heads of the decomposable start differ by factors up to 1 + this", 0.0, low=0)
    # The objective.
    estimator: str = option("estimate of the population loss", "conditional", choices=ESTIMATORS)
    n_prompts: int = option("prompts per step, N", 4096, low=1)
    symmetric: bool = option("average gradients over the task's symmetries (symmetric starts)", False)
    gradient_error: float | None = option(
        "relative error of the first gradient, by which `mhicl run` chooses n_prompts; none takes n_prompts as it is",
        None,
        above=0,
    )
    order: str = option(
        "order in 1/L of the asymptotic loss and of the ODE compared with", "first", choices=("leading", "first")
    )
    # The optimiser.
    optimizer: str = option("update rule", "flow", choices=OPTIMIZERS)
    learning_rate: float = option("step size", 0.01, above=0)
    momentum: float = option("momentum of sgd", 0.0, low=0, below=1)
    weight_decay: float | None = option(f"weight decay of adamw; none is {WEIGHT_DECAY}", None, low=0)
    step_cap: float | None = option("largest parameter change per step of flow; none is no limit", None, above=0)
    steps: int = option("optimiser steps", low=1)
    # Records.
    record_every: int = option("steps between rows of metrics.csv", 100, low=1)
    checkpoint_every: int = option("steps between checkpoints", 1000, low=1)
    eval_prompts: int = option("fresh prompts of the final evaluation", 16384, low=2)
    dtype: str = option("arithmetic", "float32", choices=tuple(DTYPES))
    device: str = option(
        "where it trains: cpu, cuda or cuda:1, …; auto is a GPU where there is one with kernels for the estimator",
        "auto",
        compare=False,
    )
    reduction: str = option(
        "how processes add up gradients: in any order, or, on CPUs, in one whose results are the same to the bit for "
        "any number of them",
        "all-reduce",
        choices=REDUCTIONS,
        compare=False,
    )
    seed: int = option("seed of start and prompts", 0, low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer != "flow" and self.step_cap is not None:
            raise ConfigError(f"step_cap limits optimizer=flow, got optimizer={self.optimizer}; use step_cap=none")
        if self.optimizer != "sgd" and self.momentum > 0:
            raise ConfigError(f"momentum belongs to optimizer=sgd, got optimizer={self.optimizer}; use momentum=0")
        if self.optimizer != "adamw" and self.weight_decay is not None:
            raise ConfigError(
                f"weight_decay belongs to optimizer=adamw, got optimizer={self.optimizer}; use weight_decay=none"
            )
        if self.start == "random" and self.estimator != "sampled":
            raise ConfigError(
                f"start=random has logits that read labels, which estimator={self.estimator} cannot "
                "take; use estimator=sampled"
            )
        if self.symmetric and self.start == "random":
            raise ConfigError("symmetric=true needs a start that the symmetries leave alone, got start=random")
        if self.gradient_error is not None and self.estimator == "asymptotic":
            raise ConfigError(
                "estimator=asymptotic takes no prompts: its gradient has no error; use gradient_error=none"
            )
        check_device_name(self.device)
        if self.device.startswith("cuda") and self.estimator == "subspace":
            raise ConfigError("estimator=subspace is computed on the CPU alone; choose cpu, or estimator=conditional")
        if self.device.startswith("cuda") and self.reduction == "tree":
            raise ConfigError(f"reduction=tree is for CPUs, got device={self.device}; use reduction=all-reduce")
        if self.n_tasks > 1 and self.support == "blocks" and self.dim_x < self.n_tasks:
            raise ConfigError(f"support=blocks needs dim_x ≥ n_tasks, got {self.dim_x} and {self.n_tasks}")
        try:
            self.objective()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def task(self) -> MultiTaskRegression:
        """The distribution of prompts."""
        support = parse_support(self.support, self.dim_x, self.n_tasks)
        return MultiTaskRegression(
            self.dim_x,
            self.n_tasks,
            self.context_length,
            support=support,
            signal=parse_signal(self.signal, support),
            noise_std=self.noise_std,
            noisy_target=self.noisy_target,
            covariance=parse_covariance(self.covariance, self.dim_x),
        )

    def start_parameters(self, dtype: torch.dtype | None = None) -> Parameters:
        """The starting weights, in the run's type unless another is asked for."""
        return initial_parameters(
            self.task(),
            self.n_heads,
            start=self.start,
            seed=self.seed,
            parameters=self.parameters,
            scale=self.scale,
            size=self.start_size,
            spread=self.start_spread,
            dtype=dtype or self.torch_dtype(),
        )

    def resolved_device(self, processes: Processes = ALONE) -> torch.device:
        """What `device` comes to on this machine, for each of several processes a GPU of its own.

        ConfigError where that cannot be had.
        """
        on_gpus = self.estimator in ON_GPUS and self.reduction != "tree"
        device = CPU if self.device == "auto" and not on_gpus else resolve_device(self.device, "train_steps")
        return device if device.type == "cpu" else self._own_gpu(device, processes)

    def _own_gpu(self, device: torch.device, processes: Processes) -> torch.device:
        """That of the process's number on its machine; `device` where it has the machine to itself."""
        if processes.local_size == 1:
            return device
        if self.device not in ("auto", "cuda"):
            raise ConfigError(
                f"device={self.device} is one GPU for {processes.local_size} processes; use device=cuda, which gives "
                "each its own"
            )
        if processes.local_size > torch.cuda.device_count():
            raise ConfigError(
                f"there are {torch.cuda.device_count()} GPUs for {processes.local_size} processes of this machine; "
                "start as many, or choose cpu"
            )
        return torch.device("cuda", processes.local_rank)

    def objective(self) -> Objective:
        """The loss and its gradient, step by step."""
        return Objective(self.task(), self.estimator, self.n_prompts, self.seed, self.order, self.symmetric)

    def make_optimizer(self) -> Optimizer:
        """A fresh update rule."""
        return make_optimizer(
            self.optimizer,
            self.learning_rate,
            momentum=self.momentum,
            step_cap=self.step_cap,
            weight_decay=self.weight_decay,
        )

    @property
    def follows_flow(self) -> bool:
        """Whether the update rule follows the gradient flow, as Adam and AdamW do not."""
        return self.optimizer in ("flow", "sgd")
