"""Distributions of prompts, and prompts drawn from them as a pure function of seed, step and index."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mhicl_fast._extension import has_cuda_kernels
from mhicl_fast.sampling import MAX_ELEMENTS, check_address, stream_lengths

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SYMMETRY_TOLERANCE = 1e-10  # relative to the covariance's largest entry: what rounding leaves of A @ A.T


class Prompts(NamedTuple):
    """N prompts of L context tokens (x_l, y_l), the query tokens (x_q, 0) and the targets y_q."""

    context: Tensor  # (N, L, D)
    query: Tensor  # (N, D)
    target: Tensor  # (N, I)


class MultiTaskRegression:
    """I linear regressions on shared covariates, each prompt with coefficients of its own.

    For each prompt β_ji ~ N(0, λ_i) where task i reads covariate j and 0 elsewhere, x_1, …, x_L, x_q ~ N(0, Σ),
    y_l = βᵀx_l + ε_l with ε_l ~ N(0, σ² Id), and y_q = βᵀx_q, plus noise of the same kind if `noisy_target`. Tokens are
    z_l = (x_l, y_l), the query token is (x_q, 0).

    Args:
        dim_x: covariates per token, d ≥ 1.
        n_tasks: tasks, and so labels per token, I ≥ 1.
        context_length: context tokens per prompt, L ≥ 0.
        support: (I, d) mask of booleans or 0 and 1: which covariates each task reads, at least one. Default: all.
        signal: variance λ_i > 0 of the coefficients, one number or (I,).
        noise_std: standard deviation σ ≥ 0 of the label noise.
        noisy_target: whether the target carries noise too.
        covariance: Σ (d, d), symmetric and positive definite. Default: the identity.

    Instances don't change and compare by value; tensors that attributes return are copies.

    Raises:
        TypeError: a size that is not an integer, a flag that is not a bool.
        ValueError: anything else outside the above.
    """

    __slots__ = (
        "_context_length",
        "_covariance",
        "_covariance_factor",
        "_dim_x",
        "_n_tasks",
        "_noise_std",
        "_noisy_target",
        "_signal",
        "_support",
    )

    def __init__(
        self,
        dim_x: SupportsIndex,
        n_tasks: SupportsIndex,
        context_length: SupportsIndex,
        *,
        support: ArrayLike | Tensor | None = None,
        signal: ArrayLike | Tensor = 1.0,
        noise_std: float = 0.0,
        noisy_target: bool = False,
        covariance: ArrayLike | Tensor | None = None,
    ) -> None:
        self._dim_x = _integer("dim_x", dim_x, at_least=1)
        self._n_tasks = _integer("n_tasks", n_tasks, at_least=1)
        self._context_length = _integer("context_length", context_length, at_least=0)
        self._support = _support(support, self._n_tasks, self._dim_x)
        self._signal = _signal(signal, self._n_tasks)
        self._noise_std = _noise_std(noise_std)
        if not isinstance(noisy_target, bool):
            raise TypeError(f"noisy_target must be a bool, got {noisy_target!r}")
        self._noisy_target = noisy_target
        self._covariance: Tensor | None = None
        self._covariance_factor: Tensor | None = None
        if covariance is not None:
            self._covariance, self._covariance_factor = _covariance(covariance, self._dim_x)

    @property
    def dim_x(self) -> int:
        """Covariates per token, d."""
        return self._dim_x

    @property
    def n_tasks(self) -> int:
        """Tasks, I."""
        return self._n_tasks

    @property
    def dim(self) -> int:
        """Token width D = d + I."""
        return self._dim_x + self._n_tasks

    @property
    def context_length(self) -> int:
        """Context tokens per prompt, L."""
        return self._context_length

    @property
    def support(self) -> Tensor:
        """(I, d) bool: the covariates that each task reads."""
        return self._support.clone()

    @property
    def signal(self) -> Tensor:
        """(I,) float64: the variance λ_i of each task's coefficients."""
        return self._signal.clone()

    @property
    def noise_std(self) -> float:
        """Standard deviation σ of the label noise."""
        return self._noise_std

    @property
    def noisy_target(self) -> bool:
        """Whether the target carries noise too."""
        return self._noisy_target

    @property
    def covariance(self) -> Tensor | None:
        """(d, d) float64: the covariance Σ of the covariates, or None for the identity."""
        return None if self._covariance is None else self._covariance.clone()

    @property
    def covariance_factor(self) -> Tensor | None:
        """(d, d) float64: the lower Cholesky factor A of Σ = A Aᵀ, so x = A ξ; None for the identity."""
        return None if self._covariance_factor is None else self._covariance_factor.clone()

    @property
    def support_sizes(self) -> Tensor:
        """(I,) float64: tr(S_i Σ), which is the number of covariates d_i that task i reads when Σ is the identity."""
        if self._covariance is None:
            return self._support.sum(1, dtype=torch.float64)
        return self._support.double() @ self._covariance.diagonal()

    @property
    def noise_factor(self) -> Tensor:
        """(I,) float64: φ_i = 1 + σ² / (λ_i tr(S_i Σ)), one plus the inverse signal-to-noise ratio."""
        return 1 + self._noise_std**2 / (self._signal * self.support_sizes)

    @property
    def target_noise(self) -> float:
        """What a noisy target adds to the loss of any predictor: σ² I, and 0 without `noisy_target`."""
        return self._noise_std**2 * self._n_tasks if self._noisy_target else 0.0

    def sample(
        self,
        n_prompts: SupportsIndex,
        *,
        seed: SupportsIndex,
        step: SupportsIndex = 0,
        first_prompt: SupportsIndex = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Prompts:
        """Prompts first_prompt, …, first_prompt + n_prompts − 1 of a step: a pure function of the arguments.

        A prompt depends on (seed, step, its index) alone, and a shorter context is a prefix of a longer one.

        Args:
            n_prompts: N ≥ 0.
            seed: in [0, 2⁶⁴).
            step: in [0, 2³²).
            first_prompt: index of the first prompt; every index is below 2⁵⁶.
            device: where the result goes, torch's default device if None. A GPU draws it itself if the build has
                CUDA, the same numbers to rounding; other devices receive what the CPU drew.
            dtype: float32, float64, bfloat16 or float16 (both rounded from float32); torch's default dtype if None.

        Returns context (N, L, D), query (N, D) and target (N, I). Raises ValueError or TypeError on bad arguments.
        """
        address = _Address(n_prompts, seed, step, first_prompt)
        device, dtype = _device(device), _dtype(dtype)
        self._check_stream_lengths()
        compute = _compute_dtype(dtype)
        place = _drawing_device(device)
        context = torch.empty(address.n_prompts, self._context_length, self.dim, dtype=compute, device=place)
        query = torch.empty(address.n_prompts, self.dim, dtype=compute, device=place)
        target = torch.empty(address.n_prompts, self._n_tasks, dtype=compute, device=place)
        torch.ops.mhicl.sample_multi_task(
            context,
            query,
            target,
            (self._signal.sqrt()[:, None] * self._support).to(place, compute),
            None if self._covariance_factor is None else self._covariance_factor.to(place, compute),
            **address.as_operands(),
            noise_std=self._noise_std,
            noisy_target=self._noisy_target,
        )
        return Prompts(*(tensor.to(device=device, dtype=dtype) for tensor in (context, query, target)))

    def sample_covariates(
        self,
        n_prompts: SupportsIndex,
        *,
        seed: SupportsIndex,
        step: SupportsIndex = 0,
        first_prompt: SupportsIndex = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The whitened covariates ξ ~ N(0, Id) of the prompts that `sample` draws from the same arguments: x = A ξ.

        Returns ξ of the context (N, L, d) and of the query (N, d). Arguments and errors as in `sample`.
        """
        address = _Address(n_prompts, seed, step, first_prompt)
        device, dtype = _device(device), _dtype(dtype)
        self._check_stream_lengths()
        compute = _compute_dtype(dtype)
        place = _drawing_device(device)
        xi = torch.empty(address.n_prompts, self._context_length, self._dim_x, dtype=compute, device=place)
        xi_query = torch.empty(address.n_prompts, self._dim_x, dtype=compute, device=place)
        torch.ops.mhicl.sample_covariates(xi, xi_query, **address.as_operands())
        return xi.to(device=device, dtype=dtype), xi_query.to(device=device, dtype=dtype)

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments as JSON can hold them, floats exactly."""
        return {
            "dim_x": self._dim_x,
            "n_tasks": self._n_tasks,
            "context_length": self._context_length,
            "support": self._support.int().tolist(),
            "signal": self._signal.tolist(),
            "noise_std": self._noise_std,
            "noisy_target": self._noisy_target,
            "covariance": None if self._covariance is None else self._covariance.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultiTaskRegression:
        """The inverse of `to_dict`. Raises ValueError on missing or unknown keys, and as the constructor does."""
        arguments = dict(values)
        known = cls(1, 1, 0).to_dict().keys()
        unknown = sorted(set(arguments) - known)
        missing = sorted({"dim_x", "n_tasks", "context_length"} - set(arguments))
        if unknown or missing:
            raise ValueError(f"a task has the keys {', '.join(known)}; unknown: {unknown}, missing: {missing}")
        return cls(**arguments)

    def replace(self, **changes: Any) -> MultiTaskRegression:
        """A copy with some of the constructor's arguments changed.

        Supports that are full and signals that are equal adapt to new sizes; others must be given with them.
        """
        arguments = self.to_dict()
        if self._support.all():
            arguments["support"] = None
        if (self._signal == self._signal[0]).all():
            arguments["signal"] = self._signal[0].item()
        return self.from_dict({**arguments, **changes})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MultiTaskRegression):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (MultiTaskRegression.from_dict, (self.to_dict(),))

    def __repr__(self) -> str:
        parts = [f"dim_x={self._dim_x}", f"n_tasks={self._n_tasks}", f"context_length={self._context_length}"]
        if not self._support.all():
            parts.append(f"support=[{' | '.join(_runs(mask.tolist()) for mask in self._support)}]")
        equal = bool((self._signal == self._signal[0]).all())
        parts.append(f"signal={self._signal[0].item() if equal else self._signal.tolist()}")
        parts.append(f"noise_std={self._noise_std}")
        if self._noisy_target:
            parts.append("noisy_target=True")
        if self._covariance is not None:
            parts.append(f"covariance=<{self._dim_x}x{self._dim_x}, trace {self._covariance.trace().item():.4g}>")
        return f"MultiTaskRegression({', '.join(parts)})"

    def _check_stream_lengths(self) -> None:
        longest = max(stream_lengths(self._context_length, self._dim_x, self._n_tasks))
        if longest > MAX_ELEMENTS:
            raise ValueError(
                f"a prompt's streams hold 2**34 random numbers each, got context_length={self._context_length} with "
                f"dim_x={self._dim_x}, n_tasks={self._n_tasks}, which takes {longest}"
            )


class _Address:
    """Which prompts of which step of which seed, checked."""

    def __init__(
        self, n_prompts: SupportsIndex, seed: SupportsIndex, step: SupportsIndex, first_prompt: SupportsIndex
    ) -> None:
        self.n_prompts = _integer("n_prompts", n_prompts, at_least=0)
        self.seed = _integer("seed", seed)
        self.step = _integer("step", step)
        self.first_prompt = _integer("first_prompt", first_prompt)
        check_address(self.seed, self.step, self.first_prompt, self.n_prompts)

    def as_operands(self) -> dict[str, int]:
        """What the operators take: their integers are signed, so the seed is folded."""
        seed = self.seed - 2**64 if self.seed >= 2**63 else self.seed
        return {"seed": seed, "step": self.step, "first_prompt": self.first_prompt}


@torch.library.register_fake("mhicl::sample_multi_task")
def _sample_multi_task_fake(*tensors: Tensor | None, **address: Any) -> None:
    """Fills tensors that the caller allocated: nothing to infer."""


@torch.library.register_fake("mhicl::sample_covariates")
def _sample_covariates_fake(*tensors: Tensor, **address: Any) -> None:
    """Fills tensors that the caller allocated: nothing to infer."""


def _integer(name: str, value: SupportsIndex, at_least: int | None = None) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value}")
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if at_least is not None and result < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {result}")
    return result


def _array(name: str, value: ArrayLike | Tensor, expected: str) -> Tensor:
    """The value as a CPU tensor of its own. Through NumPy, which keeps the 64 bits of Python's floats."""
    try:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", copy=True)
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {expected}, got {value!r} ({error})") from None


def _support(value: ArrayLike | Tensor | None, n_tasks: int, dim_x: int) -> Tensor:
    if value is None:
        return torch.ones(n_tasks, dim_x, dtype=torch.bool, device="cpu")
    mask = _array("support", value, "a mask (n_tasks, dim_x)")
    if mask.shape != (n_tasks, dim_x):
        raise ValueError(f"support must be (n_tasks, dim_x) = ({n_tasks}, {dim_x}), got shape {list(mask.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"support must hold booleans or 0 and 1, got {mask.tolist()}")
    mask = mask.bool()
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"each task must read at least one covariate, got none in support for task {empty[0]}")
    return mask


def _signal(value: ArrayLike | Tensor, n_tasks: int) -> Tensor:
    signal = _array("signal", value, "a number or one for each task").double()
    if signal.shape not in ((), (n_tasks,)):
        raise ValueError(f"signal must be a number or (n_tasks,) = ({n_tasks},), got shape {list(signal.shape)}")
    if not (signal.isfinite() & (signal > 0)).all():
        raise ValueError(f"signal must be positive and finite, got {signal.tolist()}")
    return signal.expand(n_tasks).clone()


def _noise_std(value: float) -> float:
    try:
        noise_std = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"noise_std must be a number, got {value!r}") from None
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise ValueError(f"noise_std must be at least 0 and finite, got {noise_std}")
    return noise_std


def _covariance(value: ArrayLike | Tensor, dim_x: int) -> tuple[Tensor, Tensor]:
    """The covariance in float64, exactly symmetric, and its lower Cholesky factor."""
    covariance = _array("covariance", value, "a matrix (dim_x, dim_x)").double()
    if covariance.shape != (dim_x, dim_x):
        raise ValueError(f"covariance must be (dim_x, dim_x) = ({dim_x}, {dim_x}), got shape {list(covariance.shape)}")
    if not covariance.isfinite().all():
        raise ValueError("covariance must be finite, got NaN or infinite entries")
    asymmetry = (covariance - covariance.T).abs().max().item()
    if asymmetry > _SYMMETRY_TOLERANCE * covariance.abs().max().item():
        raise ValueError(f"covariance must be symmetric, got entries that differ from their mirror by {asymmetry:g}")
    covariance = (covariance + covariance.T) / 2
    factor = _cholesky(covariance.numpy())
    if factor is None:
        smallest = torch.linalg.eigvalsh(covariance)[0].item()
        raise ValueError(f"covariance must be positive definite, got smallest eigenvalue {smallest:g}")
    return covariance, torch.from_numpy(factor)


def _cholesky(matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The lower Cholesky factor, None if there is none: LAPACK's bits depend on its threads, these on nothing."""
    rest = matrix.copy()
    factor = np.zeros_like(rest)
    for j in range(len(rest)):
        if not rest[j, j] > 0:
            return None
        factor[j:, j] = rest[j:, j] / math.sqrt(rest[j, j])
        rest[j + 1 :, j + 1 :] -= np.multiply.outer(factor[j + 1 :, j], factor[j + 1 :, j])
    return factor


def _device(device: torch.device | str | None) -> torch.device:
    chosen = torch.get_default_device() if device is None else torch.device(device)
    if chosen.type == "meta":
        raise ValueError("prompts cannot be drawn on the meta device, which holds no numbers")
    return chosen


def _drawing_device(device: torch.device) -> torch.device:
    """Where prompts for a device are drawn."""
    return device if device.type == "cuda" and has_cuda_kernels("sample_multi_task") else torch.device("cpu")


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    chosen = torch.get_default_dtype() if dtype is None else dtype
    if chosen not in _DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {chosen}")
    return chosen


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _runs(mask: list[bool]) -> str:
    """The true positions as half-open slices: 0:3, 5:6."""
    edges = [j for j in range(len(mask) + 1) if (mask[j] if j < len(mask) else False) != (j > 0 and mask[j - 1])]
    return ", ".join(f"{start}:{stop}" for start, stop in zip(edges[::2], edges[1::2], strict=True))
