"""Multi-task linear regression: the prompts of the first study."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsIndex

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..sampling import MAX_ELEMENTS, stream_lengths
from .arguments import as_array, integer, positive_definite
from .drawing import Address, compute_dtype, draw_covariates, drawing_device, result_device, result_dtype


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
        self._dim_x = integer("dim_x", dim_x, at_least=1)
        self._n_tasks = integer("n_tasks", n_tasks, at_least=1)
        self._context_length = integer("context_length", context_length, at_least=0)
        self._support = _support(support, self._n_tasks, self._dim_x)
        self._signal = _signal(signal, self._n_tasks)
        self._noise_std = _noise_std(noise_std)
        if not isinstance(noisy_target, bool):
            raise TypeError(f"noisy_target must be a bool, got {noisy_target!r}")
        self._noisy_target = noisy_target
        self._covariance: Tensor | None = None
        self._covariance_factor: Tensor | None = None
        if covariance is not None:
            self._covariance, self._covariance_factor = positive_definite(covariance, self._dim_x)

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
        address = Address(n_prompts, seed, step, first_prompt)
        device, dtype = result_device(device), result_dtype(dtype)
        self._check_stream_lengths()
        compute = compute_dtype(dtype)
        place = drawing_device(device)
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
        address = Address(n_prompts, seed, step, first_prompt)
        device, dtype = result_device(device), result_dtype(dtype)
        self._check_stream_lengths()
        place, compute = drawing_device(device), compute_dtype(dtype)
        xi, xi_query = draw_covariates(address, self._context_length, self._dim_x, place, compute)
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


def _support(value: ArrayLike | Tensor | None, n_tasks: int, dim_x: int) -> Tensor:
    if value is None:
        return torch.ones(n_tasks, dim_x, dtype=torch.bool, device="cpu")
    mask = as_array("support", value, "a mask (n_tasks, dim_x)")
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
    signal = as_array("signal", value, "a number or one for each task").double()
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


def _runs(mask: list[bool]) -> str:
    """The true positions as half-open slices: 0:3, 5:6."""
    edges = [j for j in range(len(mask) + 1) if (mask[j] if j < len(mask) else False) != (j > 0 and mask[j - 1])]
    return ", ".join(f"{start}:{stop}" for start, stop in zip(edges[::2], edges[1::2], strict=True))
