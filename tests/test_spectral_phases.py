"""Phases, allocation, plateaus, and the distance between a run and the ODE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spectral_tasks import block_task, demo_task, multi_task_start, overlapping_task, small_start

from mhicl_fast.spectral import (
    half_learnt,
    head_shares,
    observed_allocation,
    ode_distance,
    phases,
    plateau_and_escape,
    predict_allocation,
    shares,
    solve,
)


def test_phases_interpolate_between_samples():
    t = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    curves = np.array([[0.0, 0.0, 0.02], [0.1, 0.0, 0.02], [0.6, 0.4, 0.02], [1.0, 0.8, 0.02], [1.0, 0.8, 0.02]])
    result = phases(t, torch.as_tensor(curves))
    np.testing.assert_allclose(result.task_warmup_end, [0.5, 1.1, np.nan])
    np.testing.assert_allclose(result.task_emergence_end, [2.875, 2.9, np.nan])
    assert (result.warmup_end, result.emergence_end) == pytest.approx((0.5, 2.9))
    assert result.learnt.tolist() == [True, True, False]
    np.testing.assert_allclose(half_learnt(t, curves), [1.8, 2.25, np.inf])


def test_phases_of_a_run_that_learns_nothing_or_starts_learnt():
    t = np.linspace(0, 1, 5)
    nothing = phases(t, np.full((5, 2), 1e-3))
    assert np.isnan([nothing.warmup_end, nothing.emergence_end, *nothing.task_warmup_end]).all()
    learnt = phases(t + 7, np.full((5, 1), 0.9))
    assert (learnt.warmup_end, learnt.emergence_end) == (7, 7)


def test_trajectory_phases_are_located_on_the_dense_output():
    trajectory = solve(demo_task(), *small_start(0), t_end=500.0)
    exact, coarse = trajectory.phases(), phases(trajectory.t, trajectory.shares())
    np.testing.assert_allclose(exact.task_warmup_end, coarse.task_warmup_end, rtol=1e-3)
    final = shares(demo_task(), trajectory.mu[-1], trajectory.omega[-1])
    for times, level in ((exact.task_warmup_end, 0.05), (exact.task_emergence_end, 0.95)):
        state = trajectory(times)
        reached = np.diagonal(shares(demo_task(), state.mu, state.omega))
        np.testing.assert_allclose(reached, level * final, rtol=1e-8)
    assert exact.warmup_end == exact.task_warmup_end.min()
    assert exact.emergence_end == exact.task_emergence_end.max()


def test_shares_average_omega_over_supports():
    task = overlapping_task()
    rng = np.random.default_rng(0)
    mu, omega = rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 3, 7))
    expected = np.stack([mu[..., 0] * omega[..., :4].mean(-1), mu[..., 1] * omega[..., 2:6].mean(-1)], -1)
    np.testing.assert_allclose(head_shares(task, mu, omega), expected)
    np.testing.assert_allclose(shares(task, mu, omega), expected.sum(1))
    blocks = block_task((2, 3), 400, unread=1)
    values = rng.normal(size=(3, 2))
    spread = values @ np.asarray(blocks.support, float)
    np.testing.assert_allclose(shares(blocks, mu[0], values), shares(blocks, mu[0], spread))


def test_observed_allocation():
    task = block_task((2, 2, 2, 2), 400)
    each = np.array([[0.9, 0.5, 0.02, 2.0], [0.05, 0.5, 0.01, -0.5], [-0.05, 0.0, 0.0, -0.6]])
    # won; shared equally; not learnt; won by a head that the others partly cancel
    assert observed_allocation(task, each, np.ones((3, 4))).tolist() == [0, -1, -1, 0]
    cancelled = each.copy()
    cancelled[:, 3] = [1.2, 0.9, -1.0]  # more than half of the share, no majority of what the heads do
    assert observed_allocation(task, np.stack([each, cancelled]), np.ones((2, 3, 4)))[:, 3].tolist() == [0, -1]


def test_predictions_for_the_multi_task_start():
    task, mu, omega, scale = multi_task_start()
    integrated = predict_allocation(task, mu, omega, scale=scale, formula="integrated")
    short = predict_allocation(task, mu, omega, scale=scale, formula="short")
    assert integrated.time[0] == pytest.approx(323.6, abs=0.05)
    assert short.time[0] == pytest.approx(210, abs=0.5)
    assert integrated.head.tolist() == short.head.tolist() == [0, 1, 2]
    automatic = predict_allocation(task, mu, omega, scale=scale)
    np.testing.assert_array_equal(automatic.time, integrated.time)  # noise is not negligible here
    spread = omega @ np.asarray(task.support, float)
    np.testing.assert_allclose(predict_allocation(task, mu, spread, scale=scale).time, integrated.time)


@pytest.mark.parametrize("formula", ["auto", "short", "integrated"])
def test_predicted_winners_and_times_match_the_ode(formula):
    """Random starts in which every task has its own best head; the others end with a shared head, and are skipped."""
    task, tried = demo_task(), 0
    for seed in range(40):
        mu, omega = small_start(seed)
        predicted = predict_allocation(task, mu, omega, formula=formula)
        if len(set(predicted.head)) < 3:
            continue
        tried += 1
        trajectory = solve(task, mu, omega, t_end=300.0, rtol=1e-7)
        observed = observed_allocation(task, trajectory.mu[-1], trajectory.omega[-1])
        assert predicted.head.tolist() == observed.tolist()
        times = half_learnt(trajectory.t, trajectory.shares())
        np.testing.assert_allclose(predicted.time, times, rtol=0.06)
    assert tried >= 5


def test_formulas_agree_where_noise_is_negligible_and_depend_on_scale():
    task, (mu, omega) = demo_task().replace(context_length=10**6), small_start(1)
    mu, omega = mu * 1e-3, omega * 1e-3
    for scale in (1.0, 0.2):
        short, integrated = (
            predict_allocation(task, mu, omega, scale=scale, formula=formula) for formula in ("short", "integrated")
        )
        np.testing.assert_array_equal(short.head, integrated.head)
        np.testing.assert_allclose(short.time, integrated.time, rtol=2e-3)
        u, v = mu, 10 * omega / scale
        by_hand = np.log(u / v) / (4 * scale * (u - v))
        np.testing.assert_allclose(short.time, by_hand.min(0), rtol=1e-9)


def test_heads_that_cannot_win_and_ties():
    task = block_task((10, 10), 10**6)
    equal = predict_allocation(task, [[0.01, 0.0], [-0.01, 0.02]], [[0.001, 0.1], [0.002, -0.1]])
    assert equal.head.tolist() == [0, -1]  # the other head's signs differ; a zero and differing signs
    np.testing.assert_allclose(equal.time, [1 / (4 * 0.01), np.inf])  # u₀ = v₀
    negative = predict_allocation(task, [[-0.01, 0.01]], [[-0.001, 0.001]], formula="integrated")
    assert negative.time[0] == pytest.approx(negative.time[1], rel=1e-4)
    for formula in ("short", "integrated"):
        tied = predict_allocation(task, np.full((4, 2), 0.01), np.full((4, 2), 0.001), formula=formula)
        assert tied.head.tolist() == [-1, -1]
        assert np.isfinite(tied.time).all()
    learnt = predict_allocation(task, [[2.0, 2.0]], [[0.3, 0.3]], formula="integrated")
    assert learnt.time.tolist() == [0, 0]


def test_combined_prediction_matches_the_ode():
    task = demo_task().replace(context_length=10**5)
    rng = np.random.default_rng(2)
    mu, omega = 1e-4 * rng.normal(size=(2, 3, 3))
    predicted = predict_allocation(task, mu, omega, parameters="combined")
    trajectory = solve(task, mu, omega, parameters="combined", t_end=20.0)
    assert predicted.head.tolist() == [-1, -1, -1]
    observed = half_learnt(trajectory.t, trajectory.shares())
    np.testing.assert_allclose(predicted.time, observed, rtol=0.05)
    # While nothing is learnt yet heads keep their shares of Σ_h (u + v)².
    half = float(predicted.time.min() * 0.8)
    state = trajectory(half)
    now, start = head_shares(task, state.mu, state.omega), (mu + np.sqrt(10) * omega) ** 2
    np.testing.assert_allclose(now / now.sum(0), start / start.sum(0), atol=0.02)
    never = predict_allocation(task, 0 * mu, 0 * omega, parameters="combined")
    assert np.isinf(never.time).all()


def test_prediction_refuses_what_it_cannot_predict():
    task, (mu, omega) = demo_task(), small_start(0)
    mixed = np.ones((3, 30))
    mixed[1, 14] = -1
    for arguments, options, message in [
        ((task, mu, omega), {"parameters": "unbalanced"}, "parameters must be one of 'factored', 'combined'"),
        ((task, mu, omega), {"formula": "long"}, "formula must be one of"),
        ((task, mu, omega), {"scale": 0.0}, "scale must be positive"),
        ((task, mu, omega[:2]), {}, "mu has 3 heads"),
        ((task, mu[None], omega), {}, "two dimensions"),
        ((task, mu, mixed), {}, "omega0 of head 1 has both signs inside the support of task 1"),
        ((overlapping_task(), mu[:, :2], np.ones((3, 7))), {}, "disjoint supports"),
    ]:
        with pytest.raises(ValueError, match=message):
            predict_allocation(*arguments, **options)


def falling_curve(t, plateau=0.8, final=0.4, escape=100.0):
    first = plateau + 15 * (1 - np.tanh(t - 10))
    return first - (plateau - final) / 2 * (1 + np.tanh((t - escape) / 10))


def test_plateau_and_escape():
    t = np.linspace(0, 300, 3001)
    plateau, escape = plateau_and_escape(t, falling_curve(t), 0.8)
    assert plateau.loss == pytest.approx(0.8, rel=0.02)
    assert 10 < plateau.start < 15
    assert 85 < plateau.end < escape.time
    assert escape.time == pytest.approx(100 - 5 * np.log(0.4 / 0.16 - 1), abs=0.1)
    assert escape.final_loss == pytest.approx(0.4)
    stays, gone = plateau_and_escape(t, falling_curve(t, escape=1e9), 0.8)
    assert stays.end == 300
    assert gone is None
    assert plateau_and_escape(t, falling_curve(t), 5.0) == (None, None)  # only passes by
    assert plateau_and_escape(t, falling_curve(t), 0.1) == (None, None)  # never gets there
    with pytest.raises(ValueError, match="plateau_loss must be positive"):
        plateau_and_escape(t, falling_curve(t), 0.0)
    with pytest.raises(ValueError, match="tolerance < margin"):
        plateau_and_escape(t, falling_curve(t), 0.8, margin=0.05)


def test_ode_distance_of_shifted_and_disturbed_curves():
    trajectory = solve(demo_task(), *small_start(0), t_end=200.0)
    t = np.linspace(0, 150, 15000)
    same = ode_distance(t, trajectory(t).loss, trajectory)
    assert same.loss_gap < 1e-3
    assert abs(same.time_shift) < 0.01
    # Sampled finely, a delayed copy is the same curve; its extra time at the end has nothing to be compared with.
    delayed = ode_distance(t + 70.0, trajectory(t).loss, trajectory)
    assert delayed.time_shift == pytest.approx(70, abs=0.01)
    assert delayed.loss_gap < 1e-3
    spread = np.ptp(trajectory.loss)
    bumped = trajectory(t).loss
    bumped[12000] += 0.1 * spread
    assert ode_distance(t, bumped, trajectory).loss_gap == pytest.approx(0.1, abs=1e-3)
    offset = ode_distance(t, trajectory(t).loss + 0.02 * spread, trajectory)
    assert offset.loss_gap == pytest.approx(0.02, abs=1e-3)


def test_ode_distance_is_none_without_emergence():
    trajectory = solve(demo_task(), *small_start(0), t_end=200.0)
    t = np.linspace(0, 10, 50)
    assert ode_distance(t, np.full(50, 30.0), trajectory) is None
    assert ode_distance(t, np.full(50, 0.8), trajectory) is None
    still = solve(demo_task(), np.zeros((3, 3)), np.zeros((3, 3)), t_end=10.0)
    assert ode_distance(t, np.linspace(30, 1, 50), still) is None


@pytest.mark.parametrize("call", [lambda t, x: phases(t, x), lambda t, x: half_learnt(t, x)])
def test_series_are_checked(call):
    with pytest.raises(ValueError, match="increase strictly"):
        call([0.0, 1.0, 1.0], np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"need t \(times,\) and values \(times, tasks\)"):
        call([0.0, 1.0], np.zeros((3, 2)))
    with pytest.raises(ValueError, match="must be finite"):
        call([0.0, 1.0], np.full((2, 2), np.nan))


def test_ode_distance_is_none_for_a_trajectory_that_hardly_moves():
    trajectory = solve(demo_task(), *small_start(0), t_end=1.0)
    t = np.linspace(0, 1, 50)
    noise = np.random.default_rng(0).normal(size=50)
    assert 0 < np.ptp(trajectory.loss) < 0.05 * trajectory.loss.max()
    assert ode_distance(t, trajectory(t).loss + noise, trajectory) is None
