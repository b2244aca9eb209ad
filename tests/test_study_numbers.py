"""Numbers of the study that no other file reproduces, each by an independent path where there is one.

Elsewhere: leading- and first-order losses in test_spectral_loss; limits of flows, the escape and the half-learning time
324 in test_spectral_ode; predicted times 323.6 and 210 in test_spectral_phases; optima, ratios and their limits for
three tasks in test_spectral_theory; Monte Carlo losses of given weights in test_train_objective; numbers of attended
examples in test_spectral_attention; the closed form for other lengths in test_lengths.
"""

from __future__ import annotations

import numpy as np
import pytest
from spectral_tasks import block_task, demo_task, diagonal_weights, small_start

from mhicl_fast.spectral import (
    half_learnt,
    observed_allocation,
    plateau_and_escape,
    predict_allocation,
    solve,
    spectral_loss,
    theory,
)
from mhicl_fast.spectral.lengths import length_generalisation
from mhicl_fast.train import Objective, population_loss

pytestmark = pytest.mark.filterwarnings("ignore::mhicl_fast.spectral.ShortContextWarning")


def simulated_loss(task, mu, omega, prompts, batches=10, seed=0, length=None):
    """Conditional Monte Carlo loss of μ (H, I), ω (H, d) and its standard error, for prompts of a length.

    Each batch is divided by its loss at zero weights, Σ_i λ_i |S_i x_q|², whose mean is known: the queries' lengths,
    which both have in common, then cancel.
    """
    task = task if length is None else task.replace(context_length=length)
    kq, ov = (weights.float() for weights in diagonal_weights(task, mu, omega))
    noise = task.noise_std**2 * task.n_tasks if task.noisy_target else 0.0
    whole = float((task.signal * task.support_sizes).sum())

    def batch(step, factor):
        return float(
            population_loss(task, kq * factor, ov * factor, n_prompts=prompts // batches, seed=seed, step=step)
        )

    losses = [whole * (batch(step, 1) - noise) / (batch(step, 0) - noise) for step in range(batches)]
    return np.mean(losses) + noise, np.std(losses, ddof=1) / batches**0.5


@pytest.mark.parametrize(
    ("sizes", "length", "options", "prompts", "published", "its_error", "value"),
    [
        ((5,), 40, {"signal": 0.2, "noise_std": 0.1**0.5}, 100_000, 0.407, 0.002, 0.4079),
        ((10, 10, 10), 1000, {"noise_std": 0.1}, 10_000, 1.004, 0.015, 0.996),
    ],
)
def test_monte_carlo_of_one_head_per_task(sizes, length, options, prompts, published, its_error, value):
    """The orders' losses at these states are .372 and .574, and .825 and 1.034; longer runs gave `value` to ±1 in its
    last digit but one. Where L is short the first order is the worse of the two, at L = 1000 by far the better."""
    task = block_task(sizes, length, noisy_target=True, **options)
    mu, omega = theory(task, len(sizes)).one_head_per_task.values
    mean, error = simulated_loss(task, mu, omega, prompts)
    assert error < 0.01 * mean
    assert abs(mean - value) < 4 * error
    assert abs(mean - published) < 4 * error + its_error
    off = [abs(float(spectral_loss(task, mu, omega, order=order)) - mean) for order in ("leading", "first")]
    assert (off[1] < off[0] / 2) if length == 1000 else (off[1] > 2 * off[0])


def test_monte_carlo_of_two_large_tasks():
    """7.269 ± .05, between leading order's 6.919 and first order's 7.380."""
    task = block_task((20, 20), 400, noise_std=0.5, noisy_target=True)
    own = np.eye(2, dtype=bool)
    mu, omega = np.where(own, 0.7 * 20**0.5, 0.1), np.where(own, 20**-0.5, 0.05)
    mean, error = simulated_loss(task, mu, omega @ np.asarray(task.support, float), 8000)
    assert abs(mean - 7.269) < 4 * error + 0.05
    assert error < 0.03
    assert 6.919 + 4 * error < mean < 7.380 - 4 * error


def test_winners_and_times_of_three_heads():
    """Starts that emerge near t = 27. Published are 26.5, 27.0, 28.2 predicted and 27.2, 27.7, 28.8 observed, 2 to 3 %
    early: how much depends on the start, the sign does not. The integrated early equations are within ½ %."""
    task, rng = demo_task(), np.random.default_rng(0)
    for _ in range(4):
        owner = rng.permutation(3)
        relative = rng.uniform(0.5, 0.8, (2, 3, 3))
        relative[:, owner, np.arange(3)] = rng.uniform(0.97, 1.03, (2, 3))
        mu, omega = 0.00925 * relative[0], 0.000925 * relative[1]
        short, integrated = (predict_allocation(task, mu, omega, formula=name) for name in ("short", "integrated"))
        trajectory = solve(task, mu, omega, t_end=300.0)
        assert short.head.tolist() == integrated.head.tolist() == owner.tolist()
        assert observed_allocation(task, trajectory.mu[-1], trajectory.omega[-1]).tolist() == owner.tolist()
        times = half_learnt(trajectory.t, trajectory.shares())
        assert ((times > 25) & (times < 32)).all()
        early = 1 - short.time / times
        assert ((early > 0.003) & (early < 0.035)).all()
        np.testing.assert_allclose(integrated.time, times, rtol=5e-3)


@pytest.mark.parametrize("tasks", [2, 5, 8])
def test_gap_between_one_and_many_heads_grows_like_the_number_of_tasks(tasks):
    """The excess of a single head tends to I times that of one head per task, and this to e times the best's."""
    ratios = []
    for length in (10**3, 10**5, 10**7):
        result = theory(demo_task(tasks).replace(context_length=length), tasks + 1)
        ratios.append(result.ratios["single_head_over_one_head_per_task"] / tasks)
        assert result.ratios["one_head_per_task_over_best_multi_head"] < np.e
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(1, rel=1e-3)
    assert result.ratios["one_head_per_task_over_best_multi_head"] == pytest.approx(np.e, rel=1e-4)


def test_escape_value_is_the_infimum_and_plateau_the_saddle():
    """.8247, then .474: by integration of the combined flow, next to theory."""
    task = demo_task()
    result = theory(task, 3)
    trajectory = solve(task, *small_start(3), parameters="combined", t_end=3e6)
    plateau, escape = plateau_and_escape(trajectory.t, trajectory.loss, result.one_head_per_task.loss)
    assert result.one_head_per_task.loss == pytest.approx(0.8247, abs=5e-5)
    assert plateau.loss == pytest.approx(0.8247, rel=0.05)
    assert escape.final_loss == pytest.approx(0.474, abs=1e-3)
    assert escape.final_loss > result.best_multi_head.loss


def test_lengths_by_integration_and_simulation():
    """λ d (r² + r L/L') / (1+r)² of what the flow at L learns, and of prompts of L' examples."""
    task = block_task((4, 6), 2000, noise_std=0.3)
    start = small_start(4, heads=2, tasks=2)
    assert sorted(predict_allocation(task, *start).head) == [0, 1]
    end = solve(task, *start, t_end=3e4)
    lengths = [1000, 2000, 8000]
    power, r = np.array([4.0, 6.0]), np.e * np.asarray(task.noise_factor) * np.array([4.0, 6.0]) / 2000
    closed = np.array([(power * (r**2 + r * 2000 / length) / (1 + r) ** 2).sum() for length in lengths])
    np.testing.assert_allclose(length_generalisation(task, end.mu[-1], end.omega[-1], lengths).loss, closed, rtol=1e-3)
    first = length_generalisation(task, end.mu[-1], end.omega[-1], lengths, order="first").loss
    omega = end.omega[-1] @ np.asarray(task.support, float)
    for k, length in enumerate(lengths):
        mean, error = simulated_loss(task, end.mu[-1], omega, 2_400_000 // length, length=length)
        assert error < 0.1 * mean
        assert abs(mean - closed[k]) < 4 * error + abs(first[k] - closed[k])  # terms of the next order in 1/L


def test_training_on_prompts_follows_the_ode():
    """Gradient descent on drawn prompts, at five flow times and for four streams of prompts, against the ODE.

    Allowed: four standard errors, and the difference of the two orders, since each neglects terms of the next. The
    flow time of steps of 0.01 lags by about 2 % where the loss falls fastest, which the streams' spread covers.
    """
    task, step, streams = block_task((4, 6), 500, noise_std=0.3), 0.01, 4
    mu, omega = small_start(1, heads=2, tasks=2)
    times = np.array([0.4, 0.8, 1.2, 1.6, 2.4])
    losses = np.empty((streams, len(times)))
    for stream in range(streams):
        kq, ov = diagonal_weights(task, mu, omega @ np.asarray(task.support, float))
        kq, ov = kq.float(), ov.float()
        train = Objective(task, "conditional", 16, seed=stream)
        test = Objective(task, "conditional", 1024, seed=100 + stream)
        for k in range(1, round(times[-1] / step) + 1):
            _, by_kq, by_ov = train(kq, ov, k)
            kq, ov = kq - step * by_kq, ov - step * by_ov
            at = np.flatnonzero(np.isclose(times, k * step))
            if at.size:
                # Relative to the same prompts' loss at zero weights, 10 on average.
                losses[stream, at[0]] = 10 * test(kq, ov, k).loss / test(0 * kq, 0 * ov, k).loss
    mean, error = losses.mean(0), losses.std(0, ddof=1) / streams**0.5
    leading, first = (
        solve(task, mu, omega, parameters="combined", order=order, t_end=times[-1])(times).loss
        for order in ("leading", "first")
    )
    assert mean[0] > 9.8  # warm-up,
    assert mean[-1] < 0.8  # emergence, and convergence: the times span the phases
    np.testing.assert_array_less(np.abs(mean - first), 4 * error + np.abs(first - leading))
    np.testing.assert_array_less(error, 0.25)
