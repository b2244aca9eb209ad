"""Prompts of sparse regression: their definition from the random streams, their statistics, and bad arguments."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from mhicl_fast.sampling import CONTEXT, PROMPT, normals, tiled_elements, tiled_size
from mhicl_fast.tasks import SparseRegression

LEVELS = (0.0, 0.1, 0.4)


def reference(task: SparseRegression, seed: int, step: int, prompt: int, n_queries: int) -> dict[str, np.ndarray]:
    """One prompt from the definition of the streams, in float64."""
    d, n = task.dim_x, task.context_length
    drawn = normals(seed, step, prompt, CONTEXT, tiled_size(n, d + 1))[tiled_elements(n, d + 1)]
    numbers = normals(seed, step, prompt, PROMPT, (2 + n_queries) * d)
    support = np.argsort(-numbers[:d])[: task.sparsity]
    w = np.zeros(d)
    w[support] = numbers[d : 2 * d][support]
    factor = np.eye(d) if task.covariance is None else np.linalg.cholesky(task.covariance.numpy())
    x, x_query = drawn[:, :d] @ factor.T, numbers[2 * d :].reshape(n_queries, d) @ factor.T
    variance = task.noise_variance[prompt % len(task.noise_variance)]
    y = x @ w + np.sqrt(variance) * drawn[:, d]
    return {"x": x, "y": y, "x_query": x_query, "target": x_query @ w, "coefficients": w, "noise_variance": variance}


@pytest.mark.parametrize(
    ("d", "s", "n", "queries"), [(16, 4, 40, 3), (1, 1, 1, 1), (5, 0, 17, 2), (7, 7, 0, 1), (3, 2, 16, 0)]
)
@pytest.mark.parametrize("coloured", [False, True])
def test_prompts_are_those_of_the_streams(d: int, s: int, n: int, queries: int, coloured: bool) -> None:
    covariance = 0.5 * np.eye(d) + 0.3 if coloured else None
    task = SparseRegression(d, s, n, noise_variance=LEVELS, covariance=covariance)
    seed, step, first = 2**63 + 7, 11, 5
    prompts = task.sample(4, n_queries=queries, seed=seed, step=step, first_prompt=first, dtype=torch.float64)
    for index in range(4):
        for name, expected in reference(task, seed, step, first + index, queries).items():
            np.testing.assert_allclose(getattr(prompts, name)[index].numpy(), expected, atol=1e-13, err_msg=name)


def test_tokens_hide_the_labels_of_queries() -> None:
    prompts = SparseRegression(4, 2, 6).sample(3, n_queries=2, seed=1)
    tokens = prompts.tokens()
    assert tokens.shape == (3, 8, 5)
    assert torch.equal(tokens[:, :6, :4], prompts.x)
    assert torch.equal(tokens[:, :6, 4], prompts.y)
    assert torch.equal(tokens[:, 6:, :4], prompts.x_query)
    assert torch.equal(tokens[:, 6:, 4], torch.zeros(3, 2))


def test_shorter_contexts_and_fewer_queries_are_prefixes() -> None:
    task = SparseRegression(noise_variance=LEVELS)
    long = task.sample(9, n_queries=5, seed=3, dtype=torch.float64)
    short = task.replace(context_length=7).sample(4, n_queries=2, seed=3, first_prompt=2, dtype=torch.float64)
    torch.testing.assert_close(short.x, long.x[2:6, :7], rtol=0, atol=0)
    torch.testing.assert_close(short.y, long.y[2:6, :7], rtol=0, atol=1e-14)
    torch.testing.assert_close(short.x_query, long.x_query[2:6, :2], rtol=0, atol=0)


def test_noise_levels_scale_the_same_noise() -> None:
    clean, noisy = (SparseRegression(noise_variance=level).sample(50, seed=5, dtype=torch.float64) for level in (0, 4))
    noise = noisy.y - clean.y
    assert float(noise.var()) == pytest.approx(4, abs=5 * 4 * (2 / noise.numel()) ** 0.5)
    half = SparseRegression(noise_variance=1).sample(50, seed=5, dtype=torch.float64).y - clean.y
    torch.testing.assert_close(noise, 2 * half)


def test_statistics_of_the_coefficients() -> None:
    """A covariate is in the support with probability s/d, two with s (s − 1)/(d (d − 1)); values are N(0, 1)."""
    count, d, s = 40_000, 6, 2
    w = SparseRegression(d, s, 0).sample(count, seed=8, dtype=torch.float64).coefficients
    used = (w != 0).double()
    assert torch.equal(used.sum(1), torch.full((count,), float(s), dtype=torch.float64))
    together = used.T @ used / count
    for j in range(d):
        for k in range(d):
            p = s / d if j == k else s * (s - 1) / (d * (d - 1))
            assert float(together[j, k]) == pytest.approx(p, abs=5 * (p * (1 - p) / count) ** 0.5)
    values = w[w != 0]
    assert float(values.mean()) == pytest.approx(0, abs=5 / values.numel() ** 0.5)
    assert float(values.square().mean()) == pytest.approx(1, abs=5 * (2 / values.numel()) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_are_the_same_prompts_to_rounding(dtype: torch.dtype) -> None:
    task = SparseRegression(noise_variance=LEVELS)
    exact, rounded = task.sample(20, seed=1, dtype=torch.float64), task.sample(20, seed=1, dtype=dtype)
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == dtype
        torch.testing.assert_close(other.double(), one, rtol=4 * torch.finfo(dtype).eps, atol=1e-4)


def test_no_prompts() -> None:
    assert [tuple(part.shape) for part in SparseRegression(3, 1, 2).sample(0, seed=0)] == [
        (0, 2, 3), (0, 2), (0, 1, 3), (0, 1), (0, 3), (0,)
    ]  # fmt: skip


def test_tasks_are_values() -> None:
    task = SparseRegression(3, 1, 9, noise_variance=LEVELS, covariance=np.eye(3) + 0.1)
    assert SparseRegression(**task.to_dict()) == pickle.loads(pickle.dumps(task)) == task.replace()
    assert hash(task) == hash(task.replace())
    assert task != task.replace(sparsity=2)
    assert task != MISSING
    assert "noise_variance=(0.0, 0.1, 0.4)" in repr(task)


MISSING = object()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim_x": 0}, "dim_x must be at least 1, got 0"),
        ({"sparsity": 17}, "sparsity must be at most dim_x = 16, got 17"),
        ({"sparsity": -1}, "sparsity must be at least 0, got -1"),
        ({"context_length": -1}, "context_length must be at least 0, got -1"),
        ({"noise_variance": -0.1}, "noise_variance must be one or more finite numbers of at least 0, got -0.1"),
        ({"noise_variance": ()}, "noise_variance must be one or more finite numbers"),
        ({"noise_variance": float("nan")}, "noise_variance must be one or more finite numbers"),
        ({"covariance": np.zeros((16, 16))}, "covariance must be positive definite"),
        ({"context_length": 2**31}, "a prompt's streams hold"),
    ],
)
def test_bad_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        SparseRegression(**arguments).sample(1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_queries": -1}, ValueError, "n_queries must be at least 0, got -1"),
        ({"n_queries": 1.5}, TypeError, "n_queries must be an integer"),
        ({"n_prompts": -1}, ValueError, "n_prompts must be at least 0"),
        ({"seed": -1}, ValueError, "seed must lie in"),
        ({"dtype": torch.int64}, TypeError, "dtype must be one of"),
        ({"device": "meta"}, ValueError, "meta device"),
    ],
)
def test_bad_addresses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SparseRegression().sample(**{"n_prompts": 1, "seed": 0, **arguments})
