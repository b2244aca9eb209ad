"""The estimators against NumPy's and scikit-learn's, and the conditions that define the Lasso."""

import math

import numpy as np
import pytest
import torch

from mhicl_fast.sparse.estimators import baselines
from mhicl_fast.sparse.estimators.lasso import lasso
from mhicl_fast.tasks.sparse import SparseRegression

SHAPES = [(40, 16), (10, 16), (16, 16), (1, 4), (6, 1), (0, 3)]


def _prompts(n, dim, seed=1, n_prompts=30, sparsity=None):
    task = SparseRegression(dim, min(dim, 3) if sparsity is None else sparsity, n, noise_variance=(0.0, 0.3))
    return task.sample(n_prompts, seed=seed, dtype=torch.float64)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
@pytest.mark.parametrize("penalty", [0.01, 3.0, math.inf])
def test_ridge_solves_its_equations(n, dim, penalty):
    prompts = _prompts(n, dim)
    found = baselines.ridge(prompts.x, prompts.y, penalty)
    if math.isinf(penalty):
        assert not found.any()
        return
    for x, y, beta in zip(prompts.x.numpy(), prompts.y.numpy(), found.numpy()):
        np.testing.assert_allclose(beta, np.linalg.solve(x.T @ x + penalty * np.eye(dim), x.T @ y), atol=1e-10)


def test_ridge_with_a_penalty_for_each_prompt():
    prompts = _prompts(12, 5, n_prompts=4)
    penalties = torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = baselines.ridge(prompts.x, prompts.y, penalties)
    for k, i in np.ndindex(3, 4):
        alone = baselines.ridge(prompts.x[[i]], prompts.y[[i]], float(penalties[k, i]))[0]
        torch.testing.assert_close(found[k, i], alone)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_minimum_norm_least_squares(n, dim):
    prompts = _prompts(n, dim)
    for x, y, beta in zip(prompts.x.numpy(), prompts.y.numpy(), baselines.minimum_norm(prompts.x, prompts.y).numpy()):
        np.testing.assert_allclose(beta, np.linalg.pinv(x) @ y, atol=1e-7)


@pytest.mark.parametrize(("n", "sparsity"), [(20, 3), (2, 3), (20, 0), (0, 2)])
def test_least_squares_on_the_support(n, sparsity):
    prompts = _prompts(n, 6, sparsity=sparsity)
    found = baselines.support_least_squares(prompts.x, prompts.y, prompts.coefficients)
    for x, y, w, beta in zip(*(part.numpy() for part in (prompts.x, prompts.y, prompts.coefficients, found))):
        assert not beta[w == 0].any()
        np.testing.assert_allclose(beta[w != 0], np.linalg.pinv(x[:, w != 0]) @ y, atol=1e-8)


@pytest.mark.parametrize(("n", "dim"), [*SHAPES, (60, 33), (5, 2)])
def test_lasso_meets_the_conditions_of_its_minimum(n, dim):
    prompts = _prompts(n, dim, sparsity=min(dim, 8))
    penalties = torch.tensor([2.0, 0.5, 0.1, 0.01, 1e-4, 0.0], dtype=torch.float64)
    for penalty, beta in zip(penalties, lasso(prompts.x, prompts.y, penalties)):
        residual = prompts.y - (prompts.x @ beta[..., None])[..., 0]
        gradient = (prompts.x.mT @ residual[..., None])[..., 0] / max(n, 1)
        off = torch.where(beta != 0, (gradient - penalty * beta.sign()).abs(), gradient.abs() - penalty)
        assert off.max() < 1e-9


@pytest.mark.parametrize(("n", "dim"), [(40, 16), (10, 16), (6, 1)])
def test_lasso_is_scikit_learns(n, dim):
    linear_model = pytest.importorskip("sklearn.linear_model")
    prompts = _prompts(n, dim, n_prompts=12)
    penalties = [0.4, 0.1, 0.02]
    for penalty, found in zip(penalties, lasso(prompts.x, prompts.y, torch.tensor(penalties, dtype=torch.float64))):
        model = linear_model.Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=1_000_000)
        for x, y, beta in zip(prompts.x.numpy(), prompts.y.numpy(), found.numpy()):
            np.testing.assert_allclose(beta, model.fit(x, y).coef_, atol=1e-6)


def test_lasso_at_penalties_of_each_prompt_and_one_for_all():
    prompts = _prompts(20, 8, n_prompts=4)
    penalties = torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = lasso(prompts.x, prompts.y, penalties)
    for k, i in np.ndindex(3, 4):
        alone = lasso(prompts.x[[i]], prompts.y[[i]], float(penalties[k, i]))
        assert alone.shape == (1, 8)
        torch.testing.assert_close(found[k, i], alone[0])


def test_lasso_with_equal_columns_and_labels_of_zero():
    prompts = _prompts(20, 4)
    x = torch.cat([prompts.x, prompts.x[:, :, :1], torch.zeros_like(prompts.x[:, :, :1])], 2)
    doubled, plain = lasso(x, prompts.y, 0.05), lasso(prompts.x, prompts.y, 0.05)
    joined = torch.cat([doubled[:, :1] + doubled[:, 4:5], doubled[:, 1:4]], 1)
    torch.testing.assert_close(joined, plain)
    assert not doubled[:, 5].any()
    assert not lasso(prompts.x, 0 * prompts.y, 0.0).any()


def test_excess_risk_is_the_mean_over_queries():
    generator = torch.Generator().manual_seed(0)
    beta, w = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    factor = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    queries = torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
    for covariance, x in ((None, queries), (factor @ factor.T, queries @ factor.T)):
        squares = (x @ (beta - w).T) ** 2
        error = squares.std(0) / math.sqrt(len(x))
        assert ((squares.mean(0) - baselines.excess_risk(beta, w, covariance)).abs() < 5 * error).all()


def test_where_least_squares_has_infinite_risk():
    assert [n for n in range(10) if baselines.has_infinite_risk(n, 4, 0.1)] == [3, 4, 5]
    assert not baselines.has_infinite_risk(4, 4, 0.0)
    assert not baselines.has_infinite_risk(0, 1, 0.1)


def test_penalties():
    assert baselines.bayes_penalty(16, 4, 0.4) == pytest.approx(1.6)
    assert baselines.bayes_penalty(16, 0, 0.4) == math.inf
    assert baselines.usual_lasso_penalty(16, 40, 0.4) == pytest.approx(
        math.sqrt(0.4) * math.sqrt(2 * math.log(16) / 40)
    )
    prompts = _prompts(5, 3)
    with pytest.raises(ValueError, match="penalties must be at least 0"):
        lasso(prompts.x, prompts.y, -0.1)
