"""Closed-form optima against numerical minimisation, and the Bayes risk against regression."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from spectral_tasks import block_task, demo_task, overlapping_task

from mhicl_fast.spectral import spectral_gradient, spectral_loss, theory
from mhicl_fast.tasks import MultiTaskRegression

UNEQUAL = {"noise_std": 0.5, "signal": [1.0, 2.0, 0.1]}


def minimum(task, heads, seed, size=0.3):
    """Smallest loss that minimisation from a random start finds, and where."""
    shape = (2, heads, task.n_tasks)

    def loss(flat):
        mu, omega = flat.reshape(shape)
        by_mu, by_omega = spectral_gradient(task, mu, omega)
        return float(spectral_loss(task, mu, omega)), np.stack([by_mu, by_omega]).reshape(-1)

    start = size * np.abs(np.random.default_rng(seed).normal(size=shape))
    bounds = [(None, None)] * start[0].size + [(-1, 1)] * start[1].size
    options = {"maxcor": 50, "maxiter": 3000, "maxfun": 10000, "ftol": 1e-13, "gtol": 1e-9}
    result = minimize(loss, start.reshape(-1), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return result.fun, *result.x.reshape(shape)


def test_known_values():
    three = theory(demo_task(), 3)
    np.testing.assert_allclose(three.one_head_per_task.omega * np.sqrt(10), 1.0)
    np.testing.assert_allclose(three.one_head_per_task.mu, 3.0785, atol=5e-5)
    assert three.one_head_per_task.loss == pytest.approx(0.8247, abs=5e-5)
    np.testing.assert_allclose(three.one_head_per_task_first_order.omega * np.sqrt(10), 0.872, atol=5e-4)
    one = theory(demo_task(), 1)
    np.testing.assert_allclose(one.single_head.omega * np.sqrt(10), 0.5774, atol=5e-5)
    np.testing.assert_allclose(one.single_head.mu, 5.0639, atol=5e-5)
    assert one.single_head.loss == pytest.approx(2.2941, abs=5e-5)
    assert three.ratios["single_head_over_one_head_per_task"] == pytest.approx(2.85, abs=5e-3)
    assert three.best_multi_head.loss == pytest.approx(0.474, abs=5e-4)
    assert (one.one_head_per_task, one.best_multi_head) == (None, None)
    assert "fewer heads" in one.notes["one_head_per_task"]
    # With longer contexts the single head's excess tends to I times that of one head per task.
    long = theory(demo_task().replace(context_length=10**7), 3)
    assert long.ratios["single_head_over_one_head_per_task"] == pytest.approx(3, rel=1e-4)
    assert long.ratios["one_head_per_task_over_best_multi_head"] == pytest.approx(np.e / 1.5, rel=1e-4)
    four = theory(demo_task().replace(context_length=10**7), 4)
    assert four.ratios["one_head_per_task_over_best_multi_head"] == pytest.approx(np.e, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4, 50, 150])
@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_first_order_head_is_a_minimum(size, noise):
    task = block_task((size,), 400, noise_std=noise)
    state = theory(task, 1).one_head_per_task_first_order
    mu, omega = state.mu[:, None], state.omega[:, None]
    around = [(mu * a, omega * b) for a in (0.98, 1, 1.02) for b in (0.98, 1, 1.02) if (a, b) != (1, 1)]
    assert all(spectral_loss(task, *point, order="first") > state.loss for point in around)


@pytest.mark.parametrize("order", ["leading", "first"])
def test_states_have_their_loss_and_no_gradient_along_their_values(order):
    task = block_task((4, 10, 30), 1000, noisy_target=True, **UNEQUAL)
    result = theory(task, 3)
    state = result.one_head_per_task if order == "leading" else result.one_head_per_task_first_order
    mu, omega = np.diag(state.mu), np.diag(state.omega)
    assert state.loss == pytest.approx(float(spectral_loss(task, mu, omega, order=order)), rel=1e-9)
    assert state.excess == pytest.approx(state.loss - 3 * 0.25)
    np.testing.assert_allclose(state.task_loss.sum(), state.excess)
    by_mu, by_omega = spectral_gradient(task, mu, omega, order=order)
    np.testing.assert_allclose(np.diagonal(by_mu), 0, atol=1e-5)
    np.testing.assert_allclose(np.diagonal(by_omega), 0, atol=1e-4)


@pytest.mark.parametrize(
    "task",
    [
        demo_task(),
        block_task((4, 10, 30), 1000, **UNEQUAL),
        block_task((4, 10, 30), 60, **UNEQUAL),  # one task is not worth any attention
    ],
)
def test_single_head_optimum_is_the_minimum(task):
    state = theory(task, 1).single_head
    mu, omega = state.mu[None], state.omega[None]
    size = np.asarray(task.support_sizes)
    assert (size * state.omega**2).sum() == pytest.approx(1, rel=1e-9)
    assert state.loss == pytest.approx(float(spectral_loss(task, mu, omega)), rel=1e-12)
    found = min(minimum(task, 1, seed)[0] for seed in range(5))
    assert state.loss == pytest.approx(found, rel=1e-7)


def test_single_head_attention_for_long_contexts():
    task = block_task((4, 10, 30), 10**9, **UNEQUAL)
    shares = np.asarray(task.support_sizes) * theory(task, 1).single_head.omega ** 2
    wanted = np.asarray(task.support_sizes) * np.sqrt(np.asarray(task.signal * task.noise_factor))
    np.testing.assert_allclose(shares, wanted / wanted.sum(), rtol=1e-3)


def test_two_heads_of_opposite_sign_approach_the_infimum():
    task = block_task((10, 10, 10), 1000, noise_std=0.3)
    bound = theory(task, 2).best_multi_head.loss
    signs = np.array([[1.0], [-1.0]]) * np.ones((2, 3))
    losses = []
    for omega in (0.1, 0.01, 0.001):
        share = 1 / (1 + 3 * float(task.noise_factor[0]) * 10 / 1000)
        losses.append(float(spectral_loss(task, signs * share / (2 * omega), signs * omega)))
    assert bound < losses[2] < losses[1] < losses[0]
    assert losses[2] == pytest.approx(bound, rel=1e-6)
    assert bound < minimum(task, 2, 0)[0]


@pytest.mark.parametrize(("heads", "options"), [(3, {}), (4, {}), (5, {}), (4, UNEQUAL), (3, UNEQUAL)])
def test_best_multi_head_is_an_infimum(heads, options):
    task = block_task((4, 10, 30) if options else (10, 10, 10), 1000, **({"noise_std": 0.3} | options))
    bound = theory(task, heads).best_multi_head
    assert (bound.omega, bound.mu) == (None, None)
    found = min(minimum(task, heads, seed)[0] for seed in range(4))
    assert bound.loss < found < 1.02 * bound.loss


def test_where_nothing_is_known_the_reason_is_given():
    short = theory(demo_task().replace(context_length=399), 3)
    for name in ("one_head_per_task_first_order", "single_head_first_order"):
        assert getattr(short, name) is None
        assert "not accurate at L = 399" in short.notes[name]
    one = theory(demo_task(), 1)
    assert "fewer heads" in one.notes["one_head_per_task_first_order"]
    assert "see single_head" in one.notes["best_multi_head"]
    assert "see single_head" in one.notes["best_shared_heads"]
    correlated = theory(MultiTaskRegression(3, 1, 500, covariance=2 * torch.eye(3).double()), 2)
    for name in ("one_head_per_task", "single_head", "best_multi_head"):
        assert getattr(correlated, name) is None
        assert "identity covariance" in correlated.notes[name]
    assert correlated.bayes.excess == 0
    for heads in (0, 1.5, True):
        with pytest.raises(ValueError, match="n_heads must be a positive integer"):
            theory(demo_task(), heads)
    for heads in (1, 3):
        with pytest.raises(ValueError, match="at least 1 example, got 0"):
            theory(demo_task().replace(context_length=0), heads)


def test_numerical_states_say_so():
    overlapping = theory(overlapping_task(), 2)
    assert overlapping.one_head_per_task.source == "closed form"
    for name in ("single_head", "best_multi_head"):
        state = getattr(overlapping, name)
        assert state.source == "numerical"
        assert state.lower_bound <= state.loss
        assert "an upper bound" in overlapping.notes[name]
    disjoint = theory(block_task((4, 10, 30), 1000, **UNEQUAL), 2)
    for name in ("single_head", "best_multi_head", "best_shared_heads"):
        assert getattr(disjoint, name).source == "closed form"
        assert getattr(disjoint, name).lower_bound is None


def test_states_are_ordered():
    """More freedom is never worse: Bayes < best multi-head < one head per task < shared heads < single head."""
    for task in (demo_task(), block_task((4, 10, 30), 1000, **UNEQUAL), overlapping_task(400, noisy_target=True)):
        enough, two, one = theory(task, task.n_tasks + 1), theory(task, 2), theory(task, 1)
        losses = [one.single_head.loss, enough.one_head_per_task.loss, enough.best_multi_head.loss, enough.bayes.loss]
        if two.best_shared_heads is not None:
            losses.insert(1, two.best_shared_heads.loss)
        assert losses == sorted(losses, reverse=True)
        assert enough.best_multi_head.loss <= two.best_multi_head.loss < one.single_head.loss


def test_ratios_are_those_of_the_excess_losses():
    result = theory(demo_task(), 2)
    assert set(result.ratios) == {
        "single_head_over_best_multi_head",
        "single_head_over_bayes",
        "best_shared_heads_over_best_multi_head",
        "best_multi_head_over_bayes",
    }
    assert result.ratios["single_head_over_bayes"] == pytest.approx(result.single_head.excess / result.bayes.excess)
    assert "single_head_over_bayes" not in theory(demo_task(noise_std=0.0), 2).ratios


def test_theory_is_json():
    for task, heads in ((demo_task(), 3), (overlapping_task(), 2), (block_task((4, 10, 30), 60, **UNEQUAL), 3)):
        plain = json.loads(json.dumps(theory(task, heads).to_dict(), allow_nan=False))
        assert plain["n_heads"] == heads
        assert set(plain) == {
            "n_heads",
            "one_head_per_task",
            "one_head_per_task_first_order",
            "single_head",
            "single_head_first_order",
            "best_shared_heads",
            "best_multi_head",
            "bayes",
            "ratios",
            "notes",
        }
        assert "values" not in plain["single_head"]


def test_one_head_per_task_over_bayes_is_large_for_small_noise():
    for noise in (0.1, 0.5):
        task = demo_task(noise_std=noise).replace(context_length=10**6)
        snr = 10 / noise**2
        ratio = theory(task, 3).ratios["one_head_per_task_over_bayes"]
        assert ratio == pytest.approx(np.e * (1 + snr), rel=2e-3)
