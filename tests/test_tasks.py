"""Prompts against their definition and their distribution, purity, and the task as a value."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray

from mhicl_fast import sampling
from mhicl_fast.tasks import MultiTaskRegression, Prompts

MAX_Z = 4.5  # standard errors: one honest statistic in 150,000 is further out


def covariance(dim_x: int, seed: int) -> NDArray[np.float64]:
    """A well-conditioned covariance without structure."""
    matrix = np.random.default_rng(seed).normal(size=(dim_x, 2 * dim_x))
    return matrix @ matrix.T / (2 * dim_x)


def random_support(n_tasks: int, dim_x: int, seed: int) -> NDArray[np.bool_]:
    support = np.random.default_rng(seed).random((n_tasks, dim_x)) < 0.5
    support[:, -1] = True
    return support


TASKS = {
    "one covariate": MultiTaskRegression(1, 1, 3),
    "no context": MultiTaskRegression(5, 2, 0, noise_std=0.5, noisy_target=True),
    "odd sizes": MultiTaskRegression(17, 3, 65, noise_std=0.3, signal=[1.0, 0.2, 5.0]),
    "overlapping": MultiTaskRegression(
        6, 2, 48, support=[[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]], signal=0.25, noise_std=0.3, noisy_target=True
    ),
    "covariance": MultiTaskRegression(21, 2, 33, covariance=covariance(21, 0), noise_std=0.1),
    "several tiles": MultiTaskRegression(3, 2, 3000, noise_std=0.5, noisy_target=True, covariance=covariance(3, 1)),
    "wide": MultiTaskRegression(130, 5, 70, support=random_support(5, 130, 2), covariance=covariance(130, 3)),
}


def reference(task: MultiTaskRegression, prompt: int, seed: int, step: int) -> Prompts:
    scale = np.sqrt(task.signal.numpy())[:, None] * task.support.numpy()
    parts = sampling.multi_task_prompt(
        scale,
        task.context_length,
        seed=seed,
        step=step,
        prompt=prompt,
        noise_std=task.noise_std,
        noisy_target=task.noisy_target,
        covariance_factor=None if task.covariance_factor is None else task.covariance_factor.numpy(),
    )
    return Prompts(*map(torch.from_numpy, parts))


def assert_same_bits(left: Prompts, right: Prompts) -> None:
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


def assert_mean(samples: NDArray[Any], expected: float, variance: float | None = None) -> None:
    """The samples' mean is within MAX_Z standard errors of what it should be; their own variance if none is given."""
    spread = samples.var() if variance is None else variance
    z = (samples.mean() - expected) / np.sqrt(spread / samples.size)
    assert abs(z) < MAX_Z, f"mean {samples.mean()} against {expected}: {z:.1f} standard errors"


# --- the definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_prompts_follow_the_definition(task: MultiTaskRegression, dtype: torch.dtype, tolerance: float) -> None:
    prompts = task.sample(3, seed=2**64 - 3, step=7, first_prompt=2**40, dtype=dtype)
    assert [part.dtype for part in prompts] == [dtype] * 3
    for index in range(3):
        for found, expected in zip(prompts, reference(task, 2**40 + index, 2**64 - 3, 7), strict=True):
            assert found[index].shape == expected.shape
            scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
            torch.testing.assert_close(found[index].double(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_whitened_covariates_are_those_of_the_prompts(task: MultiTaskRegression, dtype: torch.dtype) -> None:
    address: dict[str, Any] = {"seed": 5, "step": 2**32 - 1, "first_prompt": 2**56 - 2, "dtype": dtype}
    xi, xi_query = task.sample_covariates(2, **address)
    context, query, _ = task.sample(2, **address)
    factor = torch.eye(task.dim_x, dtype=dtype) if task.covariance_factor is None else task.covariance_factor.to(dtype)
    exact = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(context[..., : task.dim_x], xi @ factor.T, rtol=exact, atol=exact)
    torch.testing.assert_close(query[..., : task.dim_x], xi_query @ factor.T, rtol=exact, atol=exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_from_single(dtype: torch.dtype) -> None:
    task = TASKS["overlapping"]
    single, half = (task.sample(4, seed=1, dtype=kind) for kind in (torch.float32, dtype))
    assert_same_bits(half, Prompts(*(part.to(dtype) for part in single)))
    for one, other in zip(
        task.sample_covariates(4, seed=1, dtype=dtype), task.sample_covariates(4, seed=1), strict=True
    ):
        assert torch.equal(one, other.to(dtype))


def test_the_default_dtype_is_torchs() -> None:
    assert TASKS["odd sizes"].sample(1, seed=0).context.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert TASKS["odd sizes"].sample(1, seed=0).context.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# --- purity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_any_chunk_is_part_of_the_whole(task: MultiTaskRegression, dtype: torch.dtype) -> None:
    whole = task.sample(60, seed=3, step=1, first_prompt=10, dtype=dtype)
    for first, count in [(0, 1), (7, 20), (59, 1), (30, 0)]:
        part = task.sample(count, seed=3, step=1, first_prompt=10 + first, dtype=dtype)
        assert_same_bits(part, Prompts(*(tensor[first : first + count] for tensor in whole)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_a_shorter_context_is_a_prefix(task: MultiTaskRegression, dtype: torch.dtype) -> None:
    whole = task.sample(4, seed=3, dtype=dtype)
    whole_xi = task.sample_covariates(4, seed=3, dtype=dtype)[0]
    for length in {0, task.context_length // 3, task.context_length // 2, max(0, task.context_length - 1)}:
        shorter = task.replace(context_length=length)
        part = shorter.sample(4, seed=3, dtype=dtype)
        assert_same_bits(part, whole._replace(context=whole.context[:, :length]))
        assert torch.equal(shorter.sample_covariates(4, seed=3, dtype=dtype)[0], whole_xi[:, :length])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_does_not_matter(dtype: torch.dtype) -> None:
    sigma = covariance(260, 4)  # large enough for LAPACK to use threads
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            task = MultiTaskRegression(260, 2, 30, noise_std=0.5, covariance=sigma)
            results.append(task.sample(101, seed=9, dtype=dtype))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


def test_every_part_of_the_address_matters() -> None:
    task = MultiTaskRegression(4, 1, 5)
    variants = [
        {"seed": 1},
        {"seed": 1 + 2**32},
        {"seed": 1, "step": 1},
        {"seed": 1, "first_prompt": 1},
        {"seed": 1, "first_prompt": 2**32},
    ]
    contexts = [task.sample(1, **variant).context for variant in variants]
    assert len({context[0, 0, 0].item() for context in contexts}) == len(variants)
    assert len({context[0, 0, -1].item() for context in contexts}) == len(variants)


def test_noise_does_not_move_other_numbers() -> None:
    quiet = MultiTaskRegression(6, 2, 9)
    noisy = quiet.replace(noise_std=0.5, noisy_target=True)
    a, b = quiet.sample(5, seed=0, dtype=torch.float64), noisy.sample(5, seed=0, dtype=torch.float64)
    assert torch.equal(a.context[..., :6], b.context[..., :6])
    assert torch.equal(a.query, b.query)
    louder = noisy.replace(noise_std=1.0).sample(5, seed=0, dtype=torch.float64)
    torch.testing.assert_close(louder.target - a.target, 2 * (b.target - a.target))


def test_empty_sizes() -> None:
    task = MultiTaskRegression(3, 2, 4)
    prompts = task.sample(0, seed=0)
    assert [list(part.shape) for part in prompts] == [[0, 4, 5], [0, 5], [0, 2]]
    assert [list(part.shape) for part in task.sample_covariates(0, seed=0)] == [[0, 4, 3], [0, 3]]
    assert list(task.replace(context_length=0).sample(2, seed=0).context.shape) == [2, 0, 5]
    assert list(task.replace(context_length=0).sample_covariates(2, seed=0)[0].shape) == [2, 0, 3]


# --- the distribution -------------------------------------------------------------------------------------------------


def coefficients(task: MultiTaskRegression, prompts: Prompts) -> NDArray[np.float64]:
    """β (N, d, I) of noiseless prompts, by solving for it."""
    x, y = prompts.context.split([task.dim_x, task.n_tasks], dim=-1)
    return torch.linalg.lstsq(x, y).solution.numpy()


def test_coefficients() -> None:
    signal = [0.5, 2.0, 1.0]
    support = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 0, 1]], dtype=bool)
    task = MultiTaskRegression(5, 3, 30, support=support, signal=signal, covariance=covariance(5, 5))
    prompts = task.sample(20_000, seed=1, dtype=torch.float64)
    beta = coefficients(task, prompts)
    torch.testing.assert_close(
        torch.einsum("njd,nj->nd", torch.from_numpy(beta), prompts.query[:, :5]), prompts.target, rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(beta[:, ~support.T], 0, atol=1e-10)
    normalised = beta[:, support.T] / np.sqrt(np.broadcast_to(signal, (5, 3))[support.T])
    for column in normalised.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
    correlations = normalised.T @ normalised / len(normalised) - np.eye(support.sum())
    assert np.abs(correlations).max() < MAX_Z * np.sqrt(2 / len(normalised))


def test_covariates_have_their_covariance() -> None:
    sigma = covariance(4, 6)
    context, query, _ = MultiTaskRegression(4, 1, 20, covariance=sigma).sample(10_000, seed=2, dtype=torch.float64)
    for x in (context[..., :4].reshape(-1, 4).numpy(), query[:, :4].numpy()):
        for i in range(4):
            assert_mean(x[:, i], 0.0)
            for j in range(i + 1):
                assert_mean(x[:, i] * x[:, j], sigma[i, j])


def test_context_tokens_and_query_are_independent() -> None:
    context, query, _ = MultiTaskRegression(3, 1, 4).sample(50_000, seed=3, dtype=torch.float64)
    tokens = torch.cat([query[:, None, :3], context[..., :3]], dim=1).flatten(1).numpy()
    correlations = tokens.T @ tokens / len(tokens) - np.eye(tokens.shape[1])
    assert np.abs(correlations).max() < MAX_Z * np.sqrt(2 / len(tokens))


@pytest.mark.parametrize("noisy_target", [False, True])
def test_noise(noisy_target: bool) -> None:
    task = MultiTaskRegression(5, 2, 40, signal=[1.0, 3.0])
    noisy = task.replace(noise_std=0.7, noisy_target=noisy_target)
    clean, observed = (kind.sample(20_000, seed=4, dtype=torch.float64) for kind in (task, noisy))
    noise = (observed.context - clean.context)[..., 5:].numpy() / 0.7
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    assert_mean(noise[..., 0] * noise[..., 1], 0.0, 1.0)
    assert_mean(noise[:, 1:] * noise[:, :-1], 0.0, 1.0)
    assert_mean(noise * clean.context[..., 5:].numpy(), 0.0)
    of_target = (observed.target - clean.target).numpy() / 0.7
    if noisy_target:
        assert scipy.stats.kstest(of_target.ravel(), "norm").pvalue > 1e-4
        assert_mean(of_target * noise[:, 0], 0.0, 1.0)
    else:
        assert (of_target == 0).all()
    assert (observed.query[:, 5:] == 0).all()


# --- the task as a value ----------------------------------------------------------------------------------------------


def test_attributes() -> None:
    sigma = covariance(4, 7)
    support = [[1, 1, 0, 0], [False, True, True, True]]
    task = MultiTaskRegression(4, 2, 9, support=support, signal=2, noise_std=0.5, noisy_target=True, covariance=sigma)
    assert (task.dim_x, task.n_tasks, task.context_length, task.dim) == (4, 2, 9, 6)
    assert (task.noise_std, task.noisy_target) == (0.5, True)
    assert task.support.tolist() == [[True, True, False, False], [False, True, True, True]]
    assert task.support.dtype == torch.bool
    assert task.signal.tolist() == [2.0, 2.0]
    assert task.signal.dtype == torch.float64
    factor = task.covariance_factor
    assert factor is not None
    torch.testing.assert_close(factor @ factor.T, torch.from_numpy(sigma))
    assert torch.equal(factor, factor.tril())
    sizes = [sigma[0, 0] + sigma[1, 1], sigma[1, 1] + sigma[2, 2] + sigma[3, 3]]
    np.testing.assert_allclose(task.support_sizes, sizes)
    np.testing.assert_allclose(task.noise_factor, 1 + 0.25 / (2 * np.array(sizes)))
    assert task.target_noise == 0.25 * 2
    assert task.replace(noisy_target=False).target_noise == 0


def test_defaults() -> None:
    task = MultiTaskRegression(np.int64(4), 2, 0)
    assert task.support.all()
    assert task.signal.tolist() == [1.0, 1.0]
    assert task.support_sizes.tolist() == [4.0, 4.0]
    assert task.noise_factor.tolist() == [1.0, 1.0]
    assert task.covariance is None
    assert task.covariance_factor is None
    assert isinstance(task.dim_x, int)


def test_python_floats_keep_their_precision() -> None:
    task = MultiTaskRegression(2, 2, 1, signal=[0.1, 0.3], covariance=[[1.1, 0.3], [0.3, 1.7]])
    assert task.signal.tolist() == [0.1, 0.3]
    assert task.covariance is not None
    assert task.covariance.tolist() == [[1.1, 0.3], [0.3, 1.7]]


def test_immutable() -> None:
    support = torch.ones(1, 3, dtype=torch.bool)
    task = MultiTaskRegression(3, 1, 4, support=support, covariance=np.eye(3))
    support[0, 0] = False
    with pytest.raises(AttributeError):
        task.noise_std = 1.0  # type: ignore[misc]
    with pytest.raises(AttributeError):
        task.anything = 1.0  # type: ignore[attr-defined]
    for tensor in (task.support, task.signal, task.covariance, task.covariance_factor, task.support_sizes):
        assert tensor is not None
        tensor.zero_()
    assert task == MultiTaskRegression(3, 1, 4, covariance=np.eye(3))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_copies_are_equal(task: MultiTaskRegression) -> None:
    through_json = MultiTaskRegression.from_dict(json.loads(json.dumps(task.to_dict())))
    for other in (through_json, pickle.loads(pickle.dumps(task)), copy.deepcopy(task), task.replace()):
        assert other == task
        assert hash(other) == hash(task)
        assert_same_bits(other.sample(1, seed=0), task.sample(1, seed=0))


def test_inequality() -> None:
    task = MultiTaskRegression(3, 2, 4)
    changes: list[dict[str, Any]] = [
        {"dim_x": 4},
        {"n_tasks": 3},
        {"context_length": 5},
        {"support": [[1, 1, 1], [1, 1, 0]]},
        {"signal": [1, 2]},
        {"noise_std": 0.1},
        {"noisy_target": True},
        {"covariance": np.eye(3)},
    ]
    others = [task.replace(**change) for change in changes]
    assert all(other != task for other in others)
    assert len({task, *others}) == len(others) + 1
    assert task != "task"


def test_repr() -> None:
    assert repr(MultiTaskRegression(3, 1, 4)) == (
        "MultiTaskRegression(dim_x=3, n_tasks=1, context_length=4, signal=1.0, noise_std=0.0)"
    )
    task = TASKS["overlapping"].replace(signal=[1, 2], covariance=np.eye(6), support=[[1, 1, 0, 1, 0, 1], [1] * 6])
    assert repr(task) == (
        "MultiTaskRegression(dim_x=6, n_tasks=2, context_length=48, support=[0:2, 3:4, 5:6 | 0:6], signal=[1.0, 2.0], "
        "noise_std=0.3, noisy_target=True, covariance=<6x6, trace 6>)"
    )


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim_x": 0}, ValueError, "dim_x must be at least 1, got 0"),
        ({"dim_x": 2.5}, TypeError, "dim_x must be an integer, got 2.5"),
        ({"dim_x": True}, TypeError, "dim_x must be an integer, got True"),
        ({"n_tasks": -1}, ValueError, "n_tasks must be at least 1, got -1"),
        ({"context_length": -1}, ValueError, "context_length must be at least 0, got -1"),
        ({"support": [[1, 1]]}, ValueError, r"support must be \(n_tasks, dim_x\) = \(2, 3\), got shape \[1, 2\]"),
        ({"support": [[1, 1, 2], [1, 1, 1]]}, ValueError, "support must hold booleans or 0 and 1"),
        ({"support": [[1, 1, 1], [0, 0, 0]]}, ValueError, "at least one covariate, got none in support for task 1"),
        ({"support": [[1, 1, 1], [0, 0]]}, ValueError, "support must be a mask"),
        ({"support": "all"}, ValueError, "support must be a mask"),
        ({"signal": 0.0}, ValueError, "signal must be positive and finite, got 0.0"),
        ({"signal": [1.0, float("nan")]}, ValueError, "signal must be positive and finite"),
        ({"signal": [1.0, float("inf")]}, ValueError, "signal must be positive and finite"),
        ({"signal": [1.0, 1.0, 1.0]}, ValueError, r"signal must be a number or \(n_tasks,\) = \(2,\), got shape \[3\]"),
        ({"signal": "strong"}, ValueError, "signal must be a number or one for each task"),
        ({"noise_std": -0.1}, ValueError, "noise_std must be at least 0 and finite, got -0.1"),
        ({"noise_std": float("nan")}, ValueError, "noise_std must be at least 0 and finite, got nan"),
        ({"noise_std": "loud"}, TypeError, "noise_std must be a number, got 'loud'"),
        ({"noisy_target": 1}, TypeError, "noisy_target must be a bool, got 1"),
        ({"covariance": np.eye(2)}, ValueError, r"covariance must be \(dim_x, dim_x\) = \(3, 3\), got shape \[2, 2\]"),
        ({"covariance": np.ones((3, 3)) - 1e-3 * np.eye(3)}, ValueError, "covariance must be positive definite, got"),
        ({"covariance": -np.eye(3)}, ValueError, "covariance must be positive definite, got smallest eigenvalue -1"),
        ({"covariance": np.tri(3)}, ValueError, "covariance must be symmetric, got entries that differ"),
        ({"covariance": np.full((3, 3), np.nan)}, ValueError, "covariance must be finite"),
    ],
)
def test_bad_tasks(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    valid = {"dim_x": 3, "n_tasks": 2, "context_length": 4}
    with pytest.raises(error, match=message):
        MultiTaskRegression(**{**valid, **arguments})


@pytest.mark.parametrize("method", ["sample", "sample_covariates"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_prompts": -1}, ValueError, "n_prompts must be at least 0, got -1"),
        ({"n_prompts": 1.0}, TypeError, "n_prompts must be an integer, got 1.0"),
        ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, ValueError, "seed must lie in"),
        ({"step": -1}, ValueError, r"step must lie in \[0, 2\*\*32\), got -1"),
        ({"step": 2**32}, ValueError, "step must lie in"),
        ({"first_prompt": -1}, ValueError, r"prompts must lie in \[0, 2\*\*56\), got first_prompt=-1"),
        ({"first_prompt": 2**56}, ValueError, "prompts must lie in"),
        ({"dtype": torch.int64}, TypeError, "dtype must be one of torch.float32, .* got torch.int64"),
        ({"device": "meta"}, ValueError, "meta device"),
    ],
)
def test_bad_samples(method: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(MultiTaskRegression(3, 2, 4), method)(**{"n_prompts": 1, "seed": 0, **arguments})


def test_prompts_longer_than_a_stream() -> None:
    for dim_x, n_tasks, length in [(4, 1, 2**32 + 1), (1, 8, 2**31), (5, 1, 16 * (2**34 // 80) + 1)]:
        task = MultiTaskRegression(dim_x, n_tasks, length)
        for method in (task.sample, task.sample_covariates):
            with pytest.raises(
                ValueError, match=rf"streams hold 2\*\*34 random numbers each, got context_length={length}"
            ):
                method(0, seed=0)
    longest = MultiTaskRegression(5, 1, 16 * (2**34 // 80))
    assert list(longest.sample_covariates(0, seed=0)[0].shape) == [0, longest.context_length, 5]
    assert list(longest.sample(0, seed=0).context.shape) == [0, longest.context_length, 6]


@pytest.mark.parametrize("change", [{"dim": 4}, {"dim_x": None}])
def test_bad_dicts(change: dict[str, Any]) -> None:
    values = {**MultiTaskRegression(3, 1, 4).to_dict(), **change}
    values = {key: value for key, value in values.items() if value is not None or key == "covariance"}
    with pytest.raises(ValueError, match="a task has the keys dim_x, n_tasks,"):
        MultiTaskRegression.from_dict(values)


# --- the operators ----------------------------------------------------------------------------------------------------


def operands(dtype: torch.dtype = torch.float32) -> tuple[list[Any], dict[str, Any]]:
    tensors = [torch.zeros(shape, dtype=dtype) for shape in ((2, 4, 5), (2, 5), (2, 2), (2, 3), (3, 3))]
    return tensors, {"seed": 1, "step": 2, "first_prompt": 3, "noise_std": 0.5, "noisy_target": True}


def test_opcheck() -> None:
    tensors, keywords = operands()
    torch.library.opcheck(torch.ops.mhicl.sample_multi_task.default, tensors, keywords)
    address = {name: keywords[name] for name in ("seed", "step", "first_prompt")}
    torch.library.opcheck(torch.ops.mhicl.sample_covariates.default, (torch.zeros(2, 4, 3), torch.zeros(2, 3)), address)


@pytest.mark.parametrize(
    ("position", "replacement", "error", "message"),
    [
        (0, torch.zeros(4, 5), ValueError, r"context must be \(prompts, length, dim\), got shape \[4, 5\]"),
        (0, torch.zeros(2, 4, 6), ValueError, r"context must have shape \[2, 4, 5\], got \[2, 4, 6\]"),
        (0, torch.zeros(2, 4, 5).half(), TypeError, "context must be float32 or float64, got Half"),
        (1, torch.zeros(3, 5), ValueError, "query must have shape"),
        (1, torch.zeros(5, 2).T, ValueError, "query must be contiguous"),
        (2, torch.zeros(2, 2).double(), TypeError, "target must have dtype Float, got Double"),
        (3, torch.zeros(3), ValueError, r"coefficient_scale must be \(tasks, covariates\), got shape \[3\]"),
        (3, torch.zeros(0, 3), ValueError, "coefficient_scale must not be empty"),
        (4, torch.zeros(2, 2), ValueError, "covariance_factor must have shape"),
    ],
)
def test_operator_refuses_other_shapes(
    position: int, replacement: torch.Tensor, error: type[Exception], message: str
) -> None:
    tensors, keywords = operands()
    tensors[position] = replacement
    with pytest.raises(error, match=message):
        torch.ops.mhicl.sample_multi_task(*tensors, **keywords)


def test_operators_refuse_prompts_longer_than_a_stream() -> None:
    address = {"seed": 1, "step": 2, "first_prompt": 3}
    length = 16 * (2**34 // 48) + 1
    with pytest.raises(ValueError, match=f"streams hold 2.*34 random numbers each, got {length} tokens of 3 numbers"):
        torch.ops.mhicl.sample_covariates(torch.zeros(0, length, 3), torch.zeros(0, 3), **address)
    tensors = [torch.zeros(shape) for shape in ((0, 2**33, 3), (0, 3), (0, 2), (2, 1))]
    with pytest.raises(ValueError, match="got 8589934592 tokens of 2 numbers after others"):
        torch.ops.mhicl.sample_multi_task(*tensors, None, **address, noise_std=0.5, noisy_target=True)
