"""A run's configuration: everything its result depends on, as one flat, validated, JSON-able record.

Where it trains, and how processes add up their shares, is in it too, but does not tell one run from another: results
differ in rounding alone.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import torch

from ..devices import CPU, NAMED, DeviceError, best_device, named_device
from ..processes import ALONE, Processes
from ..tasks import MultiTaskRegression
from .objective import ESTIMATORS, ON_GPUS, Objective
from .optimisers import OPTIMIZERS, WEIGHT_DECAY, Optimizer, make_optimizer
from .parameters import Parameters
from .starts import STARTS, initial_parameters
from .stepping import REDUCTIONS
from .taskspec import parse_covariance, parse_signal, parse_support

MAX_SEED = 2**62 - 1  # the bits above are left to the streams of prompts that do not train
_EVALUATION_STREAM = 1 << 62


class ConfigError(ValueError):
    """A configuration, or a `key=value` for one, that cannot be."""


def _option(
    help: str,
    default: Any = MISSING,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    compare: bool = True,
) -> Any:
    """A field with its description and its valid range: low ≤ value ≤ high, above < value < below.

    compare: whether configurations that differ in it alone are different ones.
    """
    metadata = {"help": help, "choices": choices, "low": low, "above": above, "high": high, "below": below}
    return field(default=default, metadata=metadata, compare=compare)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of a run. Raises ConfigError for a value out of range or a combination that cannot run."""

    preset: str = _option("the preset it came from", "custom")
    # The task.
    dim_x: int = _option("covariates per example, d", low=1)
    n_tasks: int = _option("tasks = outputs per example, I", low=1)
    context_length: int = _option("context examples per prompt, L", low=1)
    support: str = _option("covariates of each task: all, blocks, or ranges such as 0:4,2:6", "all")
    signal: str = _option(
        "signal variance of the tasks: a number, one per task as 1,0.5, or 1/d (of each support)", "1"
    )
    noise_std: float = _option("standard deviation of the label noise, σ", 0.0, low=0)
    noisy_target: bool = _option("whether the target has noise too", False)
    covariance: str = _option("of the covariates: identity, ar:ρ (ρ^|j−k|), or a JSON matrix", "identity")
    # The model.
    n_heads: int = _option("attention heads, H", low=1)
    parameters: str = _option("parameterisation", "factored", choices=("factored", "combined"))
    scale: float | None = _option("factor on W_KᵀW_Q; none is E^-½", None, above=0)
    start: str = _option("starting weights", "decomposable", choices=STARTS)
    start_size: float = _option("typical μ of the small start", 0.01, above=0)
    start_spread: float = _option("heads of the decomposable start differ by factors up to 1 + this", 0.0, low=0)
    # The objective.
    estimator: str = _option("estimate of the population loss", "conditional", choices=ESTIMATORS)
    n_prompts: int = _option("prompts per step, N", 4096, low=1)
    symmetric: bool = _option("average gradients over the task's symmetries (symmetric starts)", False)
    gradient_error: float | None = _option(
        "relative error of the first gradient, by which `mhicl run` chooses n_prompts; none takes n_prompts as it is",
        None,
        above=0,
    )
    order: str = _option(
        "order in 1/L of the asymptotic loss and of the ODE compared with", "first", choices=("leading", "first")
    )
    # The optimiser.
    optimizer: str = _option("update rule", "flow", choices=OPTIMIZERS)
    learning_rate: float = _option("step size", 0.01, above=0)
    momentum: float = _option("momentum of sgd", 0.0, low=0, below=1)
    weight_decay: float | None = _option(f"weight decay of adamw; none is {WEIGHT_DECAY}", None, low=0)
    step_cap: float | None = _option("largest parameter change per step of flow; none is no limit", None, above=0)
    steps: int = _option("optimiser steps", low=1)
    # Records.
    record_every: int = _option("steps between rows of metrics.csv", 100, low=1)
    checkpoint_every: int = _option("steps between checkpoints", 1000, low=1)
    eval_prompts: int = _option("fresh prompts of the final evaluation", 16384, low=2)
    dtype: str = _option("arithmetic", "float32", choices=("float32", "float64"))
    device: str = _option(
        "where it trains: cpu, cuda or cuda:1, …; auto is a GPU where there is one with kernels for the estimator",
        "auto",
        compare=False,
    )
    reduction: str = _option(
        "how processes add up gradients: in any order, or, on CPUs, in one whose results are the same to the bit for "
        "any number of them",
        "all-reduce",
        choices=REDUCTIONS,
        compare=False,
    )
    seed: int = _option("seed of start and prompts", 0, low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, _checked(option.name, getattr(self, option.name)))
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
        if self.device != "auto" and not NAMED.fullmatch(self.device):
            raise ConfigError(f"device must be auto, cpu, cuda, or cuda with a number as cuda:1, got {self.device!r}")
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

    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return torch.float64 if self.dtype == "float64" else torch.float32

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
        if self.device == "auto":
            on_gpus = self.estimator in ON_GPUS and self.reduction != "tree"
            device = best_device("train_steps") if on_gpus else CPU
        else:
            try:
                device = named_device(self.device, "train_steps")
            except DeviceError as error:
                raise ConfigError(f"{error}; or choose cpu") from error
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

    @property
    def evaluation_seed(self) -> int:
        """The seed of prompts that no step trains on."""
        return self.seed | _EVALUATION_STREAM

    def to_dict(self) -> dict[str, Any]:
        """All values by key."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    def to_json(self) -> str:
        """A JSON object, one key a line."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`; ConfigError for unknown or missing keys and for bad values."""
        for key in values:
            _check_key(key)
        missing = [option.name for option in fields(cls) if option.default is MISSING and option.name not in values]
        if missing:
            raise ConfigError(f"the configuration lacks {', '.join(missing)}")
        return cls(**values)

    def with_settings(self, settings: Iterable[str]) -> RunConfig:
        """This configuration with `key=value` texts applied; ConfigError with the nearest valid one for a bad one."""
        return replace(self, **dict(parse_setting(setting) for setting in settings))


_FIELDS = {option.name: option for option in fields(RunConfig)}
_TYPES = typing.get_type_hints(RunConfig)


def describe_options() -> list[tuple[str, str]]:
    """(key, description) of every key that can be set."""
    described = []
    for name, option in _FIELDS.items():
        choices = option.metadata["choices"]
        described.append((name, option.metadata["help"] + (f" ({' | '.join(choices)})" if choices else "")))
    return described[1:]


def parse_setting(setting: str) -> tuple[str, Any]:
    """(key, value) of a `key=value` text; ConfigError with the nearest valid one for a bad one."""
    key, separator, text = setting.partition("=")
    if not separator:
        raise ConfigError(f"expected key=value, got {setting!r}")
    _check_key(key)
    if key == "preset":
        raise ConfigError("preset names the preset that a run starts from and cannot be set")
    return key, _parse(key, text)


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The candidate most like `word`."""
    candidates = list(candidates)
    return max(
        candidates,
        key=lambda candidate: (
            candidate.startswith(word),
            difflib.SequenceMatcher(None, word.lower(), candidate.lower()).ratio(),
        ),
    )


def _check_key(key: str) -> None:
    if key not in _FIELDS:
        raise ConfigError(f"unknown key {key!r}; the nearest valid one is {nearest(key, list(_FIELDS)[1:])!r}")


def _kind(key: str) -> tuple[type, bool]:
    """The declared type of a key and whether it can be None."""
    declared = _TYPES[key]
    if isinstance(declared, types.UnionType):
        return next(t for t in typing.get_args(declared) if t is not types.NoneType), True
    return declared, False


def _parse(key: str, text: str) -> Any:
    """The value that `text` stands for, by the key's declared type."""
    kind, optional = _kind(key)
    if optional and text.lower() == "none":
        return None
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ConfigError(
                f"{key} must be true or false, got {text!r}; the nearest valid value is "
                f"{nearest(text, ('true', 'false'))}"
            )
        return words[text.lower()]
    if kind is str:
        return text
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        pass  # an integer may be written as 1e5; anything else is answered below
    try:
        number = float(text)
    except ValueError:
        what = "an integer" if kind is int else "a number"
        default = _FIELDS[key].default
        hint = f", such as {default}" if isinstance(default, (int, float)) else ""
        raise ConfigError(f"{key} must be {what}{hint}, got {text!r}") from None
    return _checked(key, number)


def _checked(key: str, value: Any) -> Any:
    """`value` in the key's type, or ConfigError."""
    kind, optional = _kind(key)
    if value is None and optional:
        return None
    if kind is str and isinstance(value, str):
        choices = _FIELDS[key].metadata["choices"]
        if choices and value not in choices:
            raise ConfigError(
                f"{key} must be one of {', '.join(choices)}, got {value!r}; "
                f"the nearest valid value is {nearest(value, choices)}"
            )
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{key} must be finite, got {value}")
        if kind is int and value != int(value):
            raise ConfigError(f"{key} must be an integer, got {value}; the nearest valid value is {round(value)}")
        return _in_range(key, kind(value))
    raise ConfigError(f"{key} must be of type {kind.__name__}, got {value!r}")


def _in_range(key: str, value: Any) -> Any:
    """`value` if it lies in the key's range, or ConfigError with the bound that it misses."""
    limits = _FIELDS[key].metadata
    low, above, high, below = (limits[name] for name in ("low", "above", "high", "below"))
    if low is not None and value < low:
        raise ConfigError(f"{key} must be at least {low}, got {value}; the nearest valid value is {low}")
    if high is not None and value > high:
        raise ConfigError(f"{key} must be at most {high}, got {value}; the nearest valid value is {high}")
    if above is not None and value <= above:
        raise ConfigError(f"{key} must be greater than {above}, got {value}")
    if below is not None and value >= below:
        raise ConfigError(f"{key} must be less than {below}, got {value}")
    return value
