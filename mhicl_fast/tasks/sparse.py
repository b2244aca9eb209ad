"""Sparse linear regression: the prompts of the second study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..sampling import MAX_ELEMENTS, stream_lengths
from .arguments import as_array, integer, positive_definite
from .drawing import Address, compute_dtype, draw_covariates, drawing_device, result_device, result_dtype


class SparsePrompts(NamedTuple):
    """N prompts of n context examples and Q queries each, with what they were made from."""

    x: Tensor  # (N, n, d) covariates of the context
    y: Tensor  # (N, n) its noisy labels
    x_query: Tensor  # (N, Q, d)
    target: Tensor  # (N, Q) noiseless labels of the queries, w·x_q
    coefficients: Tensor  # (N, d) w
    noise_variance: Tensor  # (N,) σ²

    def tokens(self) -> Tensor:
        """The tokens (x_i, y_i) of the context, then (x_q, 0) of each query: (N, n + Q, d + 1)."""
        labels = torch.cat([self.y, torch.zeros_like(self.target)], 1)
        return torch.cat([torch.cat([self.x, self.x_query], 1), labels[..., None]], 2)


class SparseRegression:
    """Linear regression with s of d coefficients that are not zero, drawn anew for every prompt.

    w has a uniform support of size s with values N(0, 1); x ~ N(0, Σ); y = w·x + ξ with ξ ~ N(0, σ²). The excess risk
    of predictions ŷ is E (ŷ − w·x_q)². Where several noise variances are given, prompts take them in turn: prompt p of
    a step has that of index p modulo their number.

    Args:
        dim_x: covariates, d ≥ 1.
        sparsity: coefficients that are not zero, s in [0, d].
        context_length: context examples, n ≥ 0.
        noise_variance: σ² ≥ 0, one number or several.
        covariance: Σ (d, d), symmetric and positive definite. Default: the identity.

    Instances don't change and compare by value.

    Raises:
        TypeError: a size that is not an integer.
        ValueError: anything else outside the above.
    """

    __slots__ = ("_context_length", "_covariance", "_covariance_factor", "_dim_x", "_noise_variance", "_sparsity")

    def __init__(
        self,
        dim_x: SupportsIndex = 16,
        sparsity: SupportsIndex = 4,
        context_length: SupportsIndex = 40,
        *,
        noise_variance: float | Sequence[float] = 0.0,
        covariance: ArrayLike | Tensor | None = None,
    ) -> None:
        self._dim_x = integer("dim_x", dim_x, at_least=1)
        self._sparsity = integer("sparsity", sparsity, at_least=0)
        if self._sparsity > self._dim_x:
            raise ValueError(f"sparsity must be at most dim_x = {self._dim_x}, got {self._sparsity}")
        self._context_length = integer("context_length", context_length, at_least=0)
        self._noise_variance = _noise_variances(noise_variance)
        self._covariance: Tensor | None = None
        self._covariance_factor: Tensor | None = None
        if covariance is not None:
            self._covariance, self._covariance_factor = positive_definite(covariance, self._dim_x)

    @property
    def dim_x(self) -> int:
        """Covariates, d."""
        return self._dim_x

    @property
    def sparsity(self) -> int:
        """Coefficients that are not zero, s."""
        return self._sparsity

    @property
    def context_length(self) -> int:
        """Context examples per prompt, n."""
        return self._context_length

    @property
    def noise_variance(self) -> tuple[float, ...]:
        """The variances σ² that prompts take in turn."""
        return self._noise_variance

    @property
    def covariance(self) -> Tensor | None:
        """(d, d) float64: the covariance Σ of the covariates, or None for the identity."""
        return None if self._covariance is None else self._covariance.clone()

    def sample(
        self,
        n_prompts: SupportsIndex,
        *,
        n_queries: SupportsIndex = 1,
        seed: SupportsIndex,
        step: SupportsIndex = 0,
        first_prompt: SupportsIndex = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> SparsePrompts:
        """Prompts first_prompt, …, first_prompt + n_prompts − 1 of a step: a pure function of the arguments.

        A prompt depends on (seed, step, its index) alone; shorter contexts are prefixes of longer ones, fewer queries
        of more, and noise variances scale the same noise.

        Args:
            n_prompts: N ≥ 0.
            n_queries: Q ≥ 0 queries, which share the prompt's context.
            seed: in [0, 2⁶⁴).
            step: in [0, 2³²).
            first_prompt: index of the first prompt; every index is below 2⁵⁶.
            device: where the result goes, torch's default device if None. A GPU draws it itself if the build has
                CUDA; other devices receive what the CPU drew.
            dtype: float32, float64, bfloat16 or float16 (both rounded from float32); torch's default dtype if None.

        Raises ValueError or TypeError on bad arguments.
        """
        address = Address(n_prompts, seed, step, first_prompt)
        queries = integer("n_queries", n_queries, at_least=0)
        device, dtype = result_device(device), result_dtype(dtype)
        d, width = self._dim_x, (2 + queries) * self._dim_x
        self._check_stream_lengths(width)
        place, compute = drawing_device(device), compute_dtype(dtype)
        # CONTEXT holds the covariates and the label noise of each example; PROMPT d scores whose s largest choose the
        # support, the values of the coefficients, and the covariates of the queries.
        drawn, _ = draw_covariates(address, self._context_length, d + 1, place, compute)
        _, numbers = draw_covariates(address, 0, width, place, compute)
        scores, values, xi_query = numbers.split([d, d, queries * d], 1)
        support = torch.zeros_like(scores).scatter_(1, scores.topk(self._sparsity, 1).indices, 1.0)
        coefficients = values * support
        x, x_query = self._covariates(drawn[..., :d]), self._covariates(xi_query.unflatten(1, (queries, d)))
        levels = torch.tensor(self._noise_variance, dtype=compute, device=place)
        turn = torch.arange(address.first_prompt, address.first_prompt + address.n_prompts, device=place)
        noise_variance = levels[turn % len(levels)]
        y = _products(x, coefficients) + noise_variance.sqrt()[:, None] * drawn[..., d]
        parts = (x, y, x_query, _products(x_query, coefficients), coefficients, noise_variance)
        return SparsePrompts(*(part.to(device=device, dtype=dtype) for part in parts))

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments as JSON can hold them, floats exactly."""
        return {
            "dim_x": self._dim_x,
            "sparsity": self._sparsity,
            "context_length": self._context_length,
            "noise_variance": list(self._noise_variance),
            "covariance": None if self._covariance is None else self._covariance.tolist(),
        }

    def replace(self, **changes: Any) -> SparseRegression:
        """A copy with some of the constructor's arguments changed. Raises as the constructor does."""
        return SparseRegression(**{**self.to_dict(), **changes})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseRegression):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self._dim_x, self._sparsity, self._context_length, self._noise_variance))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_from_dict, (self.to_dict(),))

    def __repr__(self) -> str:
        levels = self._noise_variance
        noise = levels[0] if len(levels) == 1 else levels
        parts = f"dim_x={self._dim_x}, sparsity={self._sparsity}, context_length={self._context_length}, "
        covariance = "" if self._covariance is None else f", covariance=<{self._dim_x}x{self._dim_x}>"
        return f"SparseRegression({parts}noise_variance={noise}{covariance})"

    def _covariates(self, xi: Tensor) -> Tensor:
        """x = A ξ with Σ = A Aᵀ."""
        factor = self._covariance_factor
        return xi if factor is None else xi @ factor.T.to(xi)

    def _check_stream_lengths(self, width: int) -> None:
        context, _ = stream_lengths(self._context_length, self._dim_x + 1, 1)
        longest = max(context, width)
        if longest > MAX_ELEMENTS:
            raise ValueError(
                f"a prompt's streams hold 2**34 random numbers each, got context_length={self._context_length} with "
                f"dim_x={self._dim_x}, which takes {longest}"
            )


def _from_dict(values: dict[str, Any]) -> SparseRegression:
    return SparseRegression(**values)


def _products(x: Tensor, coefficients: Tensor) -> Tensor:
    """w·x of each example: (N, n)."""
    return (x @ coefficients[..., None])[..., 0]


def _noise_variances(value: float | Sequence[float]) -> tuple[float, ...]:
    levels = as_array("noise_variance", value, "a number or several").double().reshape(-1)
    if not len(levels) or not all(math.isfinite(level) and level >= 0 for level in levels.tolist()):
        raise ValueError(f"noise_variance must be one or more finite numbers of at least 0, got {value!r}")
    return tuple(levels.tolist())
