"""Theory of the risk against Monte Carlo, with error bars: exact for raw covariates, its gap for preprocessed ones."""

import math

import pytest
import torch

from mhicl_fast.sparse.estimators import spectrum
from mhicl_fast.sparse.estimators.algorithm import gradient_descent, preprocess, preprocessed_descent
from mhicl_fast.sparse.estimators.baselines import excess_risk
from mhicl_fast.tasks import SparseRegression

CORRELATED = 0.6 ** (torch.arange(6)[:, None] - torch.arange(6)).abs().double()


def _prompts(n=12, *, dim=6, sparsity=2, noise=0.5, covariance=None, n_prompts=4000, seed=11):
    task = SparseRegression(dim, sparsity, n, noise_variance=noise, covariance=covariance)
    prompts = task.sample(n_prompts, n_queries=0, seed=seed, dtype=torch.float64)
    return prompts, prompts.x.mT @ prompts.x / n


def _standard_error(values):
    return float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("covariance", [None, CORRELATED])
@pytest.mark.parametrize(("n", "steps", "c"), [(12, 5, 1.0), (12, 40, 1.7), (4, 7, 0.5), (6, 3, 1.0), (1, 2, 1.0)])
def test_risk_on_raw_covariates_is_exact(n, steps, c, covariance):
    """Given X the theory is the mean over w and ξ, so the difference from simulated risks has mean 0."""
    prompts, sample = _prompts(n, covariance=covariance)
    theory = spectrum.RawSpectrum.of(sample, covariance)
    parts = theory.risk(n, signal_variance=2 / 6, noise_variance=0.5, steps=steps, c=c)
    simulated = excess_risk(gradient_descent(prompts.x, prompts.y, steps, c=c), prompts.coefficients, covariance)
    difference = simulated - parts.risk
    assert abs(float(difference.mean())) < 4 * _standard_error(difference)


@pytest.mark.parametrize("part", ["bias", "variance"])
def test_parts_on_raw_covariates(part):
    """Labels without noise have the bias alone, labels of noise the variance."""
    prompts, sample = _prompts(9)
    parts = spectrum.RawSpectrum.of(sample).risk(9, signal_variance=2 / 6, noise_variance=0.5, steps=6)
    clean = (prompts.x @ prompts.coefficients[..., None])[..., 0]
    labels, truth = (clean, prompts.coefficients) if part == "bias" else (prompts.y - clean, 0 * prompts.coefficients)
    difference = excess_risk(gradient_descent(prompts.x, labels, 6), truth) - getattr(parts, part)
    assert abs(float(difference.mean())) < 4 * _standard_error(difference)


@pytest.mark.parametrize("covariance", [None, CORRELATED])
@pytest.mark.parametrize(("n", "steps"), [(12, 5), (4, 20)])
def test_risk_on_preprocessed_covariates_is_exact_for_other_noise(n, steps, covariance):
    """With R̂ from one draw of the noise and the labels from another the theory is exact."""
    prompts, sample = _prompts(n, covariance=covariance)
    clean = (prompts.x @ prompts.coefficients[..., None])[..., 0]
    scales = preprocess(prompts.x, prompts.y)
    other = 0.5**0.5 * torch.randn(prompts.y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theory = spectrum.PreprocessedSpectrum.of(sample, scales, prompts.coefficients, covariance)
    parts = theory.risk(n, noise_variance=0.5, steps=steps)
    found = gradient_descent(prompts.x * scales[:, None, :], clean + other, steps) * scales
    difference = excess_risk(found, prompts.coefficients, covariance) - parts.risk
    assert abs(float(difference.mean())) < 4 * _standard_error(difference)


def test_risk_on_preprocessed_covariates_without_noise_is_the_algorithms():
    prompts, sample = _prompts(noise=0.0, n_prompts=20)
    theory = spectrum.PreprocessedSpectrum.of(sample, preprocess(prompts.x, prompts.y), prompts.coefficients)
    parts = theory.risk(12, noise_variance=0.0, steps=8, c=torch.tensor([[0.5], [1.0]]))
    for row, c in zip(parts.risk, (0.5, 1.0)):
        beta = preprocessed_descent(prompts.x, prompts.y, 8, c=c)
        torch.testing.assert_close(row, excess_risk(beta, prompts.coefficients))


@pytest.mark.parametrize(("sparsity", "noise", "steps"), [(4, 0.1, 10), (4, 0.8, 10), (2, 0.8, 10), (4, 0.4, 50)])
def test_what_the_noise_shared_with_the_scales_adds(sparsity, noise, steps):
    """The theory is too low where noise matters, by at most a third at d = 16, n = 40."""
    prompts, sample = _prompts(40, dim=16, sparsity=sparsity, noise=noise, n_prompts=2000)
    scales = preprocess(prompts.x, prompts.y)
    theory = spectrum.PreprocessedSpectrum.of(sample, scales, prompts.coefficients)
    expected = theory.risk(40, noise_variance=noise, steps=steps).risk
    simulated = excess_risk(preprocessed_descent(prompts.x, prompts.y, steps), prompts.coefficients)
    gap = simulated - expected
    assert float(gap.mean()) > -3 * _standard_error(gap)
    assert float(gap.mean()) - 3 * _standard_error(gap) < float(simulated.mean()) / 3


@pytest.mark.parametrize("covariance", [None, CORRELATED])
def test_moments_of_the_scales(covariance):
    """Of r̂ over fresh examples and noise for one w, and of the Gaussian that stands for it."""
    w = torch.tensor([[1.0, -0.5, 0, 0, 0, 2.0]], dtype=torch.float64)
    mean, expected = spectrum.scale_moments(w, 12, 0.5, covariance)
    prompts, _ = _prompts(covariance=covariance, n_prompts=20_000)
    noise = prompts.y - (prompts.x @ prompts.coefficients[..., None])[..., 0]
    found = preprocess(prompts.x, (prompts.x @ w[0]) + noise)
    drawn = spectrum.gaussian_scales(w.expand(20_000, 6), 12, 0.5, torch.Generator().manual_seed(0), covariance)
    for scales in (found, drawn):
        centred = scales - mean
        products = centred[:, :, None] * centred[:, None, :]
        assert (centred.mean(0).abs() < 4.5 * centred.std(0) / 20_000**0.5).all()
        assert ((products.mean(0) - expected[0]).abs() < 4.5 * products.std(0) / 20_000**0.5).all()


def test_nothing_to_scale_leaves_the_bias_of_predicting_zero():
    _, sample = _prompts(n_prompts=3)
    w = torch.ones(3, 6, dtype=torch.float64)
    parts = spectrum.PreprocessedSpectrum.of(sample, 0 * w, w).risk(12, noise_variance=0.5, steps=4)
    torch.testing.assert_close(parts.risk, torch.full((3,), 6.0, dtype=torch.float64))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="sample covariances must be"):
        spectrum.RawSpectrum.of(torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match=r"covariance must be \[4, 4\]"):
        spectrum.RawSpectrum.of(torch.zeros(3, 4, 4), torch.eye(3))
    with pytest.raises(ValueError, match="scales and coefficients must be"):
        spectrum.PreprocessedSpectrum.of(torch.zeros(3, 4, 4), torch.zeros(3, 4), torch.zeros(3, 5))
