"""Weights trained from random starts come close to decomposable ones, and what departs is named."""

from __future__ import annotations

import numpy as np
import pytest

from mhicl_fast.presets import preset
from mhicl_fast.spectral.basis.decompose import decompose, departures
from mhicl_fast.train.parameters import pull_back


def trained(settings):
    """(task, start, end) of the `demystified` preset with these settings, learning rate falling to 0 in the end."""
    config = preset("demystified").with_settings(settings)
    objective, optimizer, parameters = config.objective(), config.make_optimizer(), config.start_parameters()
    start = [matrix.clone() for matrix in parameters.to_combined()]
    for step in range(config.steps):
        optimizer.learning_rate = config.learning_rate * min(1, 2 - 2 * step / config.steps)
        kq, ov = parameters.to_combined()
        _, grad_kq, grad_ov = objective(kq, ov, step)
        optimizer.step(parameters.tensors(), pull_back(parameters, grad_kq, grad_ov))
    return config.task(), start, parameters.to_combined()


def test_random_weights_become_decomposable():
    """A pair of opposite heads, each with one value for all covariates: the basis is open, so the axes stand."""
    task, start, end = trained(["seed=0", "steps=3000", "learning_rate=0.006"])
    before, after = (decompose(*weights, task.dim_x, support=task.support) for weights in (start, end))
    assert before.residual > 0.8
    assert after.residual < 0.05
    assert after.bases.covariate_groups == (tuple(range(5)),)
    np.testing.assert_allclose(after.bases.covariates, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(after.omega, after.omega.mean(1, keepdims=True) * np.ones(5), rtol=0.1)
    assert after.omega[0].mean() == pytest.approx(-after.omega[1].mean(), rel=0.1)
    assert after.mu[0, 0] == pytest.approx(-after.mu[1, 0], rel=0.1)
    assert max(departures(*end, after).values()) < 0.05


@pytest.mark.slow
def test_random_starts_end_in_two_ways():
    """Opposite heads become decomposable; heads of equal sign keep antisymmetric parts that tell them apart."""
    ends = {"opposite": 0, "equal": 0}
    for seed in range(4):
        task, _, end = trained([f"seed={seed}", "steps=12000", "learning_rate=0.003"])
        found = decompose(*end, task.dim_x)
        by_cause = departures(*end, found)
        if found.mu[0, 0] * found.mu[1, 0] < 0:
            ends["opposite"] += 1
            assert found.residual < 0.04
        else:
            ends["equal"] += 1
            assert by_cause.pop("kq_antisymmetric") > 0.2
            assert max(by_cause.values()) < 0.1
    assert min(ends.values()) >= 1
