"""The Bayes risk: closed forms, exact means over Wishart matrices, Monte Carlo, and what ridge regression achieves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import chi2
from spectral_tasks import block_task, demo_task, overlapping_task

from mhicl_fast.spectral import bayes_risk
from mhicl_fast.spectral.optima.wishart import mean_over_eigenvalues
from mhicl_fast.tasks import MultiTaskRegression


def test_bayes_risk_without_noise():
    risk = bayes_risk(block_task((5, 12, 20), 10, signal=[1.0, 2.0, 0.5]))
    np.testing.assert_allclose(risk.task_loss, [0, 4, 5])
    assert (risk.source, risk.standard_error, risk.draws) == ("closed form", 0, 0)
    covariance = torch.diag(torch.linspace(0.5, 2, 6, dtype=torch.float64))
    enough = bayes_risk(MultiTaskRegression(6, 1, 6, covariance=covariance))
    assert (enough.excess, enough.source) == (0, "closed form")
    # A scalar covariance scales the risk; the Monte Carlo path must find the closed form's value.
    scaled = bayes_risk(MultiTaskRegression(6, 1, 4, covariance=3 * torch.eye(6).double()))
    assert scaled.source == "Monte Carlo"
    assert scaled.excess == pytest.approx(3 * 2, rel=1e-9)


@pytest.mark.parametrize("length", [4, 25])
def test_bayes_risk_is_what_ridge_regression_achieves(length):
    """Ridge regression with the right penalty is the posterior mean: simulate it on every task."""
    rng = np.random.default_rng(0)
    root = np.eye(7) + 0.3 * rng.normal(size=(7, 7))
    task = overlapping_task(length, covariance=torch.as_tensor(root @ root.T), noisy_target=True)
    risk = bayes_risk(task, draws=4000)
    support, signal, noise = np.asarray(task.support, float), np.asarray(task.signal), task.noise_std
    prompts = 4000
    x = rng.normal(size=(prompts, length + 1, 7)) @ np.asarray(task.covariance_factor).T
    errors = np.zeros((prompts, 2))
    for i in range(2):
        beta = np.sqrt(signal[i]) * rng.normal(size=(prompts, 7)) * support[i]
        clean = np.einsum("nlc,nc->nl", x, beta)
        reads = support[i] > 0
        seen = x[:, :-1, reads]
        labels = clean[:, :-1] + noise * rng.normal(size=(prompts, length))
        penalised = seen.transpose(0, 2, 1) @ seen + noise**2 / signal[i] * np.eye(reads.sum())
        estimate = np.linalg.solve(penalised, seen.transpose(0, 2, 1) @ labels[..., None])[..., 0]
        errors[:, i] = (clean[:, -1] - np.einsum("nc,nc->n", x[:, -1, reads], estimate)) ** 2
    spread = errors.std(0) / prompts**0.5
    assert np.all(np.abs(errors.mean(0) - risk.task_loss) < 4 * np.hypot(spread, risk.standard_error))
    assert risk.loss == pytest.approx(risk.excess + 2 * noise**2)


def test_bayes_risk_draws():
    few, many = bayes_risk(demo_task(), draws=50), bayes_risk(demo_task(), draws=256)
    assert (few.source, few.draws, many.draws) == ("Monte Carlo", 50, 256)
    assert abs(few.excess - many.excess) < 4 * np.hypot(few.standard_error, many.standard_error)
    assert bayes_risk(demo_task(), draws=50).excess == few.excess
    assert bayes_risk(demo_task(), draws=50, seed=1).excess != few.excess
    large = bayes_risk(block_task((300,), 400, noise_std=0.5))  # too large for the quadrature
    assert large.source == "Monte Carlo"
    assert large.draws < 256
    with pytest.raises(ValueError, match="draws must be 2 or more"):
        bayes_risk(demo_task(), draws=1)


@pytest.mark.parametrize("length", [1, 3, 12, 200])
def test_quadrature_agrees_with_monte_carlo(length):
    task = block_task((1, 2, 9, 12, 12), length, noise_std=0.7, signal=[1.0, 2.0, 0.3, 0.5, 0.6], noisy_target=True)
    exact, drawn = bayes_risk(task), bayes_risk(task, draws=4000, seed=3)
    assert (exact.source, exact.standard_error, exact.draws) == ("quadrature", 0, 0)
    assert abs(exact.excess - drawn.excess) < 4 * drawn.standard_error
    assert drawn.standard_error < 0.02 * exact.excess
    assert exact.loss == pytest.approx(exact.excess + 5 * 0.49)
    assert bayes_risk(overlapping_task(length)).source == "quadrature"


@pytest.mark.parametrize("length", [1, 2, 30])
def test_one_covariate_is_a_mean_over_chi_squares(length):
    task = block_task((1,), length, noise_std=0.3, signal=0.8)
    density = chi2(length).pdf
    expected = quad(lambda x: density(x) / (1 / 0.8 + x / 0.09), 0, 0.5)[0]
    expected += quad(lambda x: density(x) / (1 / 0.8 + x / 0.09), 0.5, np.inf)[0]
    assert bayes_risk(task).excess == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("size", "freedom"), [(1, 1), (1, 50), (2, 2), (5, 40), (30, 30), (51, 100), (200, 1000), (30, 10**12)]
)
def test_moments_of_wishart_eigenvalues(size, freedom):
    """E tr W = n N, E tr W² = n N (n + N + 1), E tr W⁻¹ = n / (N − n − 1)."""
    assert mean_over_eigenvalues(lambda x: x, size, freedom, 1.0) == pytest.approx(size * freedom, rel=1e-11)
    square = mean_over_eigenvalues(lambda x: x**2, size, freedom, 1.0)
    assert square == pytest.approx(size * freedom * (size + freedom + 1), rel=1e-11)
    if freedom > size + 1:
        inverse = mean_over_eigenvalues(lambda x: 1 / x, size, freedom, 1.0)
        assert inverse == pytest.approx(size / (freedom - size - 1), rel=1e-11)


@pytest.mark.parametrize("size", [1, 2, 30, 200])
def test_a_steep_function_at_the_hard_edge_is_resolved(size):
    """Square matrices have eigenvalues near 0, and small noise makes the mean depend on them."""
    for width in (1e-1, 1e-4):
        coarse, fine = (
            mean_over_eigenvalues(lambda x: 1 / (1 + x / width**2), size, size, width / by)  # noqa: B023
            for by in (1, 5)
        )
        assert coarse == pytest.approx(fine, rel=1e-9)


@pytest.mark.parametrize("aspect", [0.5, 1.5, 5.0])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_large_tasks_follow_the_marchenko_pastur_equivalent(aspect, noise):
    """tr (Id/λ + W/σ²)⁻¹ ~ d m with m = 1 / (1/λ + L / (σ² + d m)), up to O(1): with d, L and σ² all in proportion the
    relative difference falls like 1/d."""
    signal, differences = 0.7, []
    for size in (25, 50, 100):
        length, variance = int(aspect * size), noise * size

        def equation(m, size=size, length=length, variance=variance):
            return m - 1 / (1 / signal + length / (variance + size * m))

        limit = size * brentq(equation, 0, signal)
        exact = bayes_risk(block_task((size,), length, noise_std=variance**0.5, signal=signal)).excess
        differences.append(abs(exact / limit - 1) * size)
    assert max(differences) < 2
    np.testing.assert_allclose(differences[1:], differences[-1], rtol=0.15)
