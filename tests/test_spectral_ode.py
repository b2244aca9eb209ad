"""The spectral ODEs: their limits, their invariants, and the integrator."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from spectral_tasks import block_task, demo_task, multi_task_start, overlapping_task, small_start

from mhicl_fast.spectral import (
    asymptotic_loss,
    half_learnt,
    observed_allocation,
    plateau_and_escape,
    solve,
    spectral_gradient,
    spectral_loss,
    theory,
)
from mhicl_fast.spectral.atoms import coarsest_partition
from mhicl_fast.spectral.flow import BalancedFlow, CombinedFlow, Factors, UnbalancedFlow
from mhicl_fast.spectral.loss import SpectralProblem

PARAMETERS = ("factored", "combined", "unbalanced")


def start_for(parameters, seed=0, heads=3, tasks=3):
    """A small start in the form `solve` takes; unbalanced factors differ by a few percent."""
    mu, omega = small_start(seed, heads, tasks)
    if parameters != "unbalanced":
        return mu, omega
    tilt = np.random.default_rng(seed + 1).uniform(0.97, 1.03, (2, heads, tasks))
    return (mu**0.5 * tilt[0], mu**0.5 / tilt[0]), (omega**0.5 * tilt[1], omega**0.5 / tilt[1])


def test_balanced_limit_is_one_head_per_task():
    trajectory = solve(demo_task(), *small_start(0), t_end=3000.0)
    winners = observed_allocation(demo_task(), trajectory.mu[-1], trajectory.omega[-1])
    assert sorted(winners) == [0, 1, 2]
    own = (winners, np.arange(3))
    np.testing.assert_allclose(trajectory.omega[-1][own] * np.sqrt(10), 1.0, atol=5e-5)
    np.testing.assert_allclose(trajectory.mu[-1][own], 3.0785, rtol=2e-5)
    assert trajectory.loss[-1] == pytest.approx(0.8247, abs=5e-5)
    assert trajectory.loss[-1] == pytest.approx(
        theory(demo_task(), 3).one_head_per_task.loss, rel=1e-5
    )  # losers die slowly


def test_first_order_moves_the_limit():
    trajectory = solve(demo_task(), *small_start(0), order="first", t_end=3000.0)
    expected = theory(demo_task(), 3).one_head_per_task_first_order
    assert trajectory.omega[-1].max() * np.sqrt(10) == pytest.approx(0.872, abs=5e-4)
    assert trajectory.omega[-1].max() == pytest.approx(expected.omega[0], rel=1e-5)
    assert trajectory.mu[-1].max() == pytest.approx(expected.mu[0], rel=1e-5)
    assert trajectory.loss[-1] == pytest.approx(expected.loss, rel=1e-5)


def test_single_head_limit():
    trajectory = solve(demo_task(), *small_start(0, heads=1), t_end=1e5)
    np.testing.assert_allclose(trajectory.omega[-1] * np.sqrt(10), 0.5774, atol=5e-5)
    np.testing.assert_allclose(trajectory.mu[-1], 5.0639, atol=5e-5)
    assert trajectory.loss[-1] == pytest.approx(2.2941, abs=5e-5)


@pytest.mark.parametrize("parameters", ["combined", "unbalanced"])
def test_other_flows_escape_the_saddle(parameters):
    task = demo_task()
    trajectory = solve(task, *start_for(parameters), parameters=parameters, t_end=3e6)
    state = theory(task, 3)
    plateau, escape = plateau_and_escape(trajectory.t, trajectory.loss, state.one_head_per_task.loss)
    assert plateau.loss == pytest.approx(0.8247, rel=0.05)
    assert plateau.end < escape.time
    assert escape.final_loss == trajectory.loss[-1]
    # The infimum is approached as ω → 0 and |μ| → ∞, never reached.
    assert state.best_multi_head.loss < trajectory.loss[-1] < 0.4745
    assert trajectory.mu[-1].min() < -1
    assert len(trajectory.t) < 10_000  # the slow end needs long steps: an inexact Jacobian takes hundreds of thousands
    balanced = solve(task, *small_start(0), t_end=3e5)
    assert plateau_and_escape(balanced.t, balanced.loss, state.one_head_per_task.loss)[1] is None


def test_known_half_learning_times():
    task, mu, omega, scale = multi_task_start()
    trajectory = solve(task, mu, omega, scale=scale, t_end=1000.0)
    assert half_learnt(trajectory.t, trajectory.shares())[0] == pytest.approx(324, abs=0.5)
    np.testing.assert_array_equal(observed_allocation(task, trajectory.mu[-1], trajectory.omega[-1]), [0, 1, 2])


@pytest.mark.parametrize("order", ["leading", "first"])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_jacobian_matches_differences(parameters, order):
    task = block_task((4, 3), 500, noise_std=0.3)
    rng = np.random.default_rng(10)
    problem = SpectralProblem.of(task, coarsest_partition(task, np.ones((2, 2))), order)
    v_o, v_v, kappa_q, kappa_k = 0.5 * rng.normal(size=(4, 2, 2))
    flow = {
        "factored": BalancedFlow(problem, v_o, kappa_q, 0.7),
        "combined": CombinedFlow(problem, v_o, kappa_q / 2),
        "unbalanced": UnbalancedFlow(problem, Factors(v_o, v_v, kappa_q, kappa_k), 0.7),
    }[parameters]
    steps = 1e-5 * np.eye(flow.start.size)
    difference = (flow.velocity(flow.start + steps) - flow.velocity(flow.start - steps)).T / 2e-5
    np.testing.assert_allclose(flow.jacobian(flow.start), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("order", ["leading", "first"])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_loss_falls_and_is_the_loss_of_the_values(parameters, order):
    task = demo_task()
    trajectory = solve(task, *start_for(parameters, seed=2), parameters=parameters, order=order, t_end=300.0)
    assert np.diff(trajectory.loss).max() <= 1e-9 * trajectory.loss[0]
    np.testing.assert_allclose(
        trajectory.loss, spectral_loss(task, trajectory.mu, trajectory.omega, order=order), rtol=1e-12
    )
    # dLoss/dt = −|gradient|², with each ω's share of the parameters' metric.
    t = np.array([0.5, 5.0, 50.0])
    step = 1e-4 * t
    rate = (trajectory(t + step).loss - trajectory(t - step).loss) / (2 * step)
    state = trajectory(t)
    by_mu, by_omega = spectral_gradient(task, state.mu, state.omega, order=order)
    if parameters == "combined":
        metric = (1.0, 1.0)
    elif parameters == "factored":
        metric = (2 * np.abs(state.mu), 2 * np.abs(state.omega))
    else:
        v_o, v_v, kappa_q, kappa_k = state.factors
        metric = (v_o**2 + v_v**2, kappa_q**2 + kappa_k**2)
    expected = -(metric[0] * by_mu**2).sum((1, 2)) - (metric[1] * by_omega**2 / 10).sum((1, 2))
    np.testing.assert_allclose(rate, expected, rtol=1e-4, atol=1e-9)


def test_flow_is_gradient_flow_of_the_weights():
    """The spectral combined flow against the Euclidean gradient of the full-matrix loss at a random point."""
    task = overlapping_task()
    rng = np.random.default_rng(0)
    mu, omega = rng.normal(size=(2, 2)), 0.2 * rng.normal(size=(2, 3))[:, [0, 0, 1, 1, 2, 2, 2]]
    kq, ov = torch.zeros(2, 9, 9, dtype=torch.float64), torch.zeros(2, 2, 9, dtype=torch.float64)
    kq[:, :7, :7], ov[:, :, 7:] = torch.diag_embed(torch.as_tensor(omega)), torch.diag_embed(torch.as_tensor(mu))
    kq.requires_grad_()
    ov.requires_grad_()
    asymptotic_loss(task, kq, ov).backward()
    step = 1e-6
    trajectory = solve(task, mu, omega, parameters="combined", order="first", t_end=step)
    np.testing.assert_allclose(
        (trajectory.omega[-1] - omega) / step, -kq.grad[:, :7, :7].diagonal(dim1=1, dim2=2).numpy(), atol=1e-4
    )
    np.testing.assert_allclose(
        (trajectory.mu[-1] - mu) / step, -ov.grad[:, :, 7:].diagonal(dim1=1, dim2=2).numpy(), atol=1e-4
    )


@pytest.mark.parametrize("order", ["leading", "first"])
def test_unbalanced_flow_conserves_what_factors_conserve(order):
    rng = np.random.default_rng(1)
    v_o, v_v, kappa_q, kappa_k = 0.4 * rng.normal(size=(4, 3, 3))
    trajectory = solve(
        demo_task(), (v_o, v_v), (kappa_q, kappa_k), parameters="unbalanced", scale=0.6, order=order, t_end=50.0
    )
    factors = trajectory.factors
    assert factors.kappa_q.shape == (len(trajectory.t), 3, 3)
    for difference, at_start in [
        (factors.kappa_q**2 - factors.kappa_k**2, kappa_q**2 - kappa_k**2),
        (factors.v_v**2 - factors.v_o**2, v_v**2 - v_o**2),
    ]:
        assert np.abs(difference - at_start).max() < 1e-6
    np.testing.assert_allclose(trajectory.mu, factors.v_o * factors.v_v, rtol=1e-14)
    np.testing.assert_allclose(trajectory.omega, 0.6 * factors.kappa_q * factors.kappa_k, rtol=1e-14)
    np.testing.assert_allclose(trajectory.mu[0], v_o * v_v, rtol=1e-14)


def test_unbalanced_flow_from_balanced_factors_is_the_balanced_flow():
    task, scale = demo_task(), 0.7
    mu, omega = small_start(4)
    mu[0, 1] *= -1
    omega[2, 0] *= -1
    balanced = solve(task, mu, omega, scale=scale, t_end=20.0)
    v, kappa = np.sqrt(np.abs(mu)), np.sqrt(np.abs(omega) / scale)
    unbalanced = solve(
        task, (v, np.sign(mu) * v), (kappa, np.sign(omega) * kappa), parameters="unbalanced", scale=scale, t_end=20.0
    )
    t = np.linspace(0, 20, 41)
    np.testing.assert_allclose(balanced(t).loss, unbalanced(t).loss, rtol=1e-5)
    np.testing.assert_allclose(balanced(t).mu, unbalanced(t).mu, atol=1e-5)


def test_logarithms_agree_with_linear_coordinates():
    task, scale = block_task((4, 3), 500, noise_std=0.3), 0.5
    mu, omega = np.array([[0.3, 0.2], [0.1, 0.25]]), np.array([[0.2, 0.1], [0.15, 0.2]])

    def velocity(_, state):
        m, w = state.reshape(2, 2, 2)
        by_mu, by_omega = spectral_gradient(task, m, w)
        return -2 * np.stack([np.abs(m) * by_mu, scale * np.abs(w) * by_omega / [4, 3]]).reshape(-1)

    linear = solve_ivp(velocity, (0, 10), np.stack([mu, omega]).reshape(-1), method="DOP853", rtol=1e-11, atol=1e-13)
    trajectory = solve(task, mu, omega, scale=scale, t_end=10.0)
    expected = linear.y[:, -1].reshape(2, 2, 2)
    np.testing.assert_allclose(trajectory.mu[-1], expected[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(trajectory.omega[-1], expected[1], rtol=1e-6, atol=1e-9)


def test_tighter_tolerances_converge_and_methods_agree():
    task, start = demo_task(), small_start(5)
    t = np.linspace(0, 40, 200)
    exact = solve(task, *start, t_end=40.0, rtol=1e-11, atol=1e-14, method="Radau")(t).loss
    errors = [
        np.abs(solve(task, *start, t_end=40.0, rtol=rtol, atol=rtol / 100)(t).loss - exact).max()
        for rtol in (1e-5, 1e-7, 1e-9)
    ]
    assert all(finer < coarser / 5 for coarser, finer in pairwise(errors))
    assert errors[-1] < 1e-5 * exact[0]


def test_atoms_and_covariates_agree():
    """Merging covariates into atoms is exact, unread covariates included: their ω decays through the softmax alone."""
    task = overlapping_task()
    rng = np.random.default_rng(6)
    mu, atoms_omega = 0.3 * np.abs(rng.normal(size=(3, 2))), 0.2 * np.abs(rng.normal(size=(3, 4)))
    omega = atoms_omega[:, [0, 0, 1, 1, 2, 2, 3]]
    merged = solve(task, mu, omega, t_end=30.0)
    nudged = omega * (1 + 1e-9 * rng.uniform(-1, 1, omega.shape))  # all columns differ: nothing can be merged
    separate = solve(task, mu, nudged, t_end=30.0)
    t = np.linspace(0, 30, 31)
    assert merged.omega.shape[1:] == (3, 7)
    np.testing.assert_allclose(merged(t).loss, separate(t).loss, rtol=1e-6)
    np.testing.assert_allclose(merged(t).omega, separate(t).omega, atol=1e-5)
    assert np.all(np.diff(merged.omega[:, :, 6], axis=0) <= 0)
    assert np.all(merged.omega[-1, :, 6] < omega[:, 6])


def test_per_task_and_per_covariate_starts_agree():
    task = block_task((3, 5), 400, unread=2, noise_std=0.2)
    mu, omega = small_start(7, heads=2, tasks=2)
    per_task = solve(task, 20 * mu, 5 * omega, t_end=30.0)
    per_covariate = solve(task, 20 * mu, 5 * omega @ np.asarray(task.support, float), t_end=30.0)
    assert (per_task.omega.shape[1:], per_covariate.omega.shape[1:]) == ((2, 2), (2, 10))
    t = np.linspace(0, 30, 31)
    np.testing.assert_allclose(per_task(t).loss, per_covariate(t).loss, rtol=1e-7)
    np.testing.assert_allclose(per_task(t).omega, per_covariate(t).omega[..., [0, 3]], rtol=1e-5, atol=1e-9)


def test_zeros_stay_zero_and_signs_stay():
    mu, omega = small_start(8)
    mu[0] = 0
    omega[1, 2] = 0
    mu[2, 0] *= -1
    trajectory = solve(demo_task(), mu, omega, t_end=200.0)
    np.testing.assert_array_equal(np.sign(trajectory.mu), np.broadcast_to(np.sign(mu), trajectory.mu.shape))
    np.testing.assert_array_equal(np.sign(trajectory.omega), np.broadcast_to(np.sign(omega), trajectory.omega.shape))
    nothing = solve(demo_task(), 0 * mu, 0 * omega, t_end=5.0)
    np.testing.assert_allclose(nothing.loss, 30.03)


def test_dense_output_has_the_shape_of_the_times():
    trajectory = solve(demo_task(), *small_start(9, heads=2), t_end=10.0)
    for shape in ((), (4,), (2, 3), (0,)):
        state = trajectory(np.full(shape, 2.5))
        assert state.mu.shape == (*shape, 2, 3)
        assert state.omega.shape == (*shape, 2, 3)
        assert state.loss.shape == shape
        assert state.factors is None
    np.testing.assert_allclose(trajectory(trajectory.t).mu, trajectory.mu, rtol=1e-7)
    for outside in (-1e-3, 10.1, [1.0, 11.0]):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 10\]"):
            trajectory(outside)


def test_first_order_stays_in_its_domain():
    task = block_task((1,), 1000, noise_std=0.1)  # at d = 1 the leading order's ω = 1/√d lies outside
    with pytest.raises(ValueError, match="does not exist"):
        solve(task, [[0.1]], [[0.8]], order="first", t_end=1.0)
    trajectory = solve(task, [[0.1]], [[0.1]], order="first", t_end=1e4)
    assert trajectory.omega.max() < 0.5**0.5
    with pytest.raises(RuntimeError, match=r"could not be followed past t = .* below 0.707107"):
        solve(task.replace(noise_std=0.0), [[-5.0]], [[0.7]], parameters="combined", order="first", t_end=100.0)


def test_bad_inputs_are_named():
    task, (mu, omega) = demo_task(), small_start(0)
    for changes, message in [
        ({"parameters": "balanced"}, "parameters must be one of 'factored', 'combined', 'unbalanced'"),
        ({"order": "zeroth"}, "order must be one of"),
        ({"method": "RK45"}, "method must be one of"),
        ({"t_end": 0.0}, "t_end must be positive"),
        ({"t_end": np.inf}, "t_end must be positive"),
        ({"scale": -1.0}, "scale must be positive"),
        ({"mu0": mu[:, :2]}, "mu0 must be"),
        ({"mu0": mu[None]}, "mu0 must have two dimensions"),
        ({"omega0": omega[:2]}, "mu has 3 heads, omega has 2"),
        ({"omega0": omega[:, :2]}, "omega0 must be"),
        ({"omega0": omega * np.nan}, "omega0 must be finite"),
        ({"parameters": "unbalanced"}, r"pair \(v_O, v_V\), got 3 parts"),
        ({"parameters": "unbalanced", "mu0": (mu, mu), "omega0": (omega, np.ones((3, 30)))}, "one shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            solve(task, **({"mu0": mu, "omega0": omega, "t_end": 1.0} | changes))
    with pytest.raises(ValueError, match="supports overlap"):
        solve(overlapping_task(), mu[:, :2], omega[:, :2], t_end=1.0)
    with pytest.raises(ValueError, match="identity covariance"):
        solve(overlapping_task(covariance=2 * torch.eye(7).double()), mu[:, :2], np.ones((3, 7)), t_end=1.0)
