"""Optimal heads: the bounds behind them, and every state against minimisation and integration of the loss itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from spectral_tasks import block_task, demo_task, overlapping_task

from mhicl_fast.spectral import observed_allocation, solve, spectral_gradient, spectral_loss, theory
from mhicl_fast.spectral.atoms import atoms
from mhicl_fast.spectral.optima import meeting_heads
from mhicl_fast.spectral.optima.capture import CaptureProblem, water_filling
from mhicl_fast.spectral.optima.states import best_multi_head, best_shared_heads, shared_heads_state, single_head
from mhicl_fast.tasks import MultiTaskRegression

UNEQUAL = {"noise_std": 0.5, "signal": [1.0, 2.0, 0.1]}


def random_task(seed, tasks=4, dim_x=8, length=600, **options):
    """Supports that overlap at random."""
    rng = np.random.default_rng(seed)
    support = rng.random((tasks, dim_x)) < 0.5
    support[np.arange(tasks), np.arange(tasks)] = True
    signal = np.exp(0.5 * rng.normal(size=tasks))
    return MultiTaskRegression(dim_x, tasks, length, support=support, signal=signal, **({"noise_std": 0.4} | options))


def atom_minimum(task, heads, seed, size=0.3):
    """The smallest loss that minimisation over μ and ω of the atoms finds from a random start."""
    partition = atoms(task)
    counts = (heads * task.n_tasks, heads * len(partition.count))

    def unpack(flat):
        mu, omega = np.split(flat, counts[:1])
        return mu.reshape(heads, -1), partition.expand(omega.reshape(heads, -1))

    def loss(flat):
        mu, omega = unpack(flat)
        by_mu, by_omega = spectral_gradient(task, mu, omega)
        gathered = np.stack([by_omega[:, partition.class_of == m].sum(1) for m in range(len(partition.count))], 1)
        return float(spectral_loss(task, mu, omega)), np.concatenate([by_mu.reshape(-1), gathered.reshape(-1)])

    start = size * np.random.default_rng(seed).normal(size=sum(counts))
    bounds = [(None, None)] * counts[0] + [(-1, 1)] * counts[1]
    options = {"maxcor": 50, "maxiter": 800, "ftol": 1e-11, "gtol": 1e-9}
    return float(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun)


def best_readout(task, omega):
    """The best μ (H, I) for omega (H, d): the loss is quadratic, so gradients at 0 and unit vectors give it."""
    heads, tasks = len(omega), task.n_tasks
    at_zero = spectral_gradient(task, np.zeros((heads, tasks)), omega)[0]
    units = np.eye(heads)[:, :, None] * np.ones(tasks)
    curvature = spectral_gradient(task, units, omega)[0] - at_zero  # (h, g, i)
    return -np.stack([np.linalg.solve(curvature[:, :, i].T, at_zero[:, i]) for i in range(tasks)], 1)


def test_heads_capture_at_most_one_direction_less_than_they_are():
    """tr E⁻¹ K ≤ H − 1 for H ≥ 2 heads, 1/e for one, and E⁻¹ weighted by ω never exceeds the identity."""
    rng = np.random.default_rng(0)
    for heads, dim in itertools.product((1, 2, 3, 5), (1, 2, 6)):
        for spread in np.exp(rng.uniform(-2, 1, 300)):
            omega = spread * rng.normal(size=(heads, dim)) + rng.normal(size=dim) * rng.integers(0, 2)
            gram = omega @ omega.T
            kernel = np.exp(np.minimum(gram, 300))
            if gram.max() > 30 or np.linalg.cond(kernel) > 1e9:
                continue
            captured = omega.T @ np.linalg.solve(kernel, omega)
            assert np.trace(captured) <= (heads - 1 if heads > 1 else 1 / np.e) + 1e-6
            assert np.linalg.eigvalsh(captured).max() <= 1 + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_captured_directions_give_the_loss_of_the_best_readout(seed):
    task, rng = random_task(seed), np.random.default_rng(seed)
    partition = atoms(task)
    scaled = 0.4 * rng.normal(size=(3, len(partition.count)))  # √n ω of each atom
    if not partition.reads.any(0).all():
        scaled[:, ~partition.reads.any(0)] = 0
    omega = partition.expand(scaled / np.sqrt(partition.count))
    gamma = scaled.T @ np.linalg.solve(np.exp(scaled @ scaled.T), scaled)
    read = partition.reads.any(0)
    task_loss, slope = CaptureProblem.of(task).losses(gamma[np.ix_(read, read)])
    mu = best_readout(task, omega)
    assert task_loss.sum() == pytest.approx(float(spectral_loss(task, mu, omega)), rel=1e-9)
    # The slope is the derivative: along a random symmetric direction.
    direction = rng.normal(size=slope.shape)
    direction = 1e-7 * (direction + direction.T)
    problem, inner = CaptureProblem.of(task), gamma[np.ix_(read, read)]
    change = problem.losses(inner + direction)[0].sum() - problem.losses(inner - direction)[0].sum()
    assert change / 2 == pytest.approx(-np.sum(slope * direction), rel=1e-4)


def test_water_filling_is_the_minimum_over_the_simplex():
    rng = np.random.default_rng(1)
    for tasks, cap in itertools.product((1, 2, 5), (1.0, 1 / np.e)):
        weights, rho = np.exp(2 * rng.normal(size=(2, tasks)))
        for total in (0.01 * cap, 0.4 * tasks * cap, 0.99 * tasks * cap, tasks * cap):
            level = water_filling(weights, rho, total, cap)
            assert level.sum() == pytest.approx(total, rel=1e-12)
            assert (level >= 0).all()
            assert (level <= cap).all()
            slope = weights / (rho + level) ** 2  # equal where free, smaller at 0, larger at the cap
            inside = (level > 1e-12) & (level < cap - 1e-12)
            if inside.any():
                np.testing.assert_allclose(slope[inside], slope[inside][0], rtol=1e-9)
                assert (slope[level <= 1e-12] <= slope[inside][0] * (1 + 1e-9)).all()
                assert (slope[level >= cap - 1e-12] >= slope[inside][0] * (1 - 1e-9)).all()


@pytest.mark.parametrize("heads", [2, 3, 4])
@pytest.mark.parametrize("signal", [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 0.1, 0.5]])
def test_closed_form_and_numerical_search_agree(heads, signal):
    """For disjoint supports the numerical path is independent of water filling; here it must find the same."""
    task = block_task((4, 10, 30, 3), 800, noise_std=0.5, signal=signal)
    problem = CaptureProblem.of(task)
    assert best_multi_head(task, heads).source == "closed form"
    found = problem._search(heads - 1, 1.0)
    assert found.task_loss.sum() == pytest.approx(best_multi_head(task, heads).excess, rel=1e-7)
    assert found.lower_bound == pytest.approx(found.task_loss.sum(), rel=1e-3)
    assert found.lower_bound <= best_multi_head(task, heads).excess * (1 + 1e-12)


@pytest.mark.parametrize(
    ("task", "heads"),
    [
        (block_task((4, 10, 30), 1000, **UNEQUAL), 2),
        (block_task((4, 10, 30), 1000, **UNEQUAL), 3),
        (block_task((10, 10, 10, 10), 1000, noise_std=0.3), 3),
        (overlapping_task(), 2),
        (overlapping_task(), 3),
        (random_task(0), 3),
        (random_task(1), 2),
    ],
)
def test_best_multi_head_is_not_beaten_by_minimisation(task, heads):
    state = best_multi_head(task, heads)
    assert (state.omega, state.mu, state.values) == (None, None, None)
    found = min(atom_minimum(task, heads, seed) for seed in range(2))
    assert (state.lower_bound or state.loss) <= found < 1.03 * state.loss
    if state.lower_bound is None:
        assert state.source == "closed form"
    else:
        assert state.source == "numerical"
        assert 0.9 * state.loss < state.lower_bound <= state.loss


def wide_overlaps(**options):
    """Supports 0–3, 1–4 and 2–5."""
    support = np.array([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]])
    return MultiTaskRegression(6, 3, 400, support=support, **({"signal": [1.0, 2.0, 4.0]} | options))


def sparse_overlaps():
    """Three tasks that two heads near ω = 0 serve far from as well as two that meet elsewhere."""
    support = np.array([[0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0, 1]])
    return MultiTaskRegression(7, 3, 1442, support=support, signal=[0.99, 4.23, 0.284])


def least_around(task, m, direction, apart=0.03):
    """The loss of two heads m ± apart · direction with the best readout, after minimisation over both from there."""
    d = task.dim_x

    def loss(flat):
        aside = apart * flat[d:] / np.linalg.norm(flat[d:])
        omega = np.stack([flat[:d] + aside, flat[:d] - aside])
        return float(spectral_loss(task, best_readout(task, omega), omega))

    return float(minimize(loss, np.concatenate([m, direction]), method="BFGS", options={"maxiter": 40}).fun)


def test_no_finite_heads_around_a_common_point_beat_the_best_multi_head():
    """Two heads m ± εδ with δ ⊥ m lose O(|m|⁴) of what they capture, and can beat every projection that way."""
    task = sparse_overlaps()
    m = np.array([0.0868, 0, 0.0329, 0, -0.2295, 0.0378, 0.0868])
    direction = np.array([0.493, 0, 0.907, 0, 0.652, 0.906, 0.493])
    constructed = least_around(task, m, direction)
    state = best_multi_head(task, 2)
    limit = CaptureProblem.of(task).minimise(1, 1.0)
    assert constructed < 0.86 * limit.task_loss.sum()
    assert state.lower_bound <= state.loss <= constructed + 1e-9
    assert constructed == pytest.approx(state.loss, rel=1e-3)
    task, rng = wide_overlaps(), np.random.default_rng(0)
    state = best_multi_head(task, 2)
    start = CaptureProblem.of(task).minimise(1, 1.0)
    direction = atoms(task).expand(start.directions[:, 0] / np.sqrt(atoms(task).count))
    constructed = min(least_around(task, 0.1 * rng.normal(size=6), direction) for _ in range(3))
    assert constructed < start.task_loss.sum()
    assert state.lower_bound <= state.loss <= constructed + 1e-9


@pytest.mark.parametrize("heads", [2, 3])
def test_losses_of_heads_that_meet_are_approached_and_their_gradient_is_right(heads):
    task, rng = wide_overlaps(noise_std=0.4), np.random.default_rng(heads)
    partition, problem = atoms(task), CaptureProblem.of(task)
    point = 0.4 * rng.normal(size=(heads, len(partition.count)))
    task_loss, gradient = meeting_heads._losses(problem, point)
    for size, tolerance in ((1e-1, 0.1), (1e-3, 1e-3)):
        scaled = point[0] + size * np.concatenate([point[:1] * 0, point[1:]])
        omega = partition.expand(scaled / np.sqrt(partition.count))
        assert task_loss.sum() == pytest.approx(
            float(spectral_loss(task, best_readout(task, omega), omega)), rel=tolerance
        )
    for _ in range(4):
        step = 1e-6 * rng.normal(size=point.shape)
        change = np.subtract(*(meeting_heads._losses(problem, point + sign * step)[0].sum() for sign in (1, -1)))
        assert change / 2 == pytest.approx(np.sum(gradient * step), rel=1e-5)


def test_overlapping_tasks_that_start_with_the_same_best_head_share_it():
    """One head per task is stable, not the only end: here all tasks start with the same best head, and share it."""
    task = wide_overlaps(signal=1.0)
    mu, omega = np.full((3, 3), 1e-3), np.full((3, 6), 1e-4)
    mu[0], omega[0] = 0.02, 0.01
    end = solve(task, mu, omega, t_end=1e4)
    assert observed_allocation(task, end.mu[-1], end.omega[-1]).tolist() == [0, 0, 0]
    assert end.loss[-1] > 1.05 * theory(task, 3).one_head_per_task.loss
    assert end.loss[-1] == pytest.approx(single_head(task).loss, rel=0.02)


@pytest.mark.parametrize("heads", [2, 3])
def test_the_limit_is_approached_from_its_directions(heads):
    """ω^h = ε a^h with the a^h in the span found and Σ_h μ_i^h = 0: the loss falls towards the limit as ε → 0."""
    task = random_task(2, noisy_target=True)
    partition = atoms(task)
    read = partition.reads.any(0)
    optimum = CaptureProblem.of(task).minimise(heads - 1, 1.0)
    corners = np.linalg.qr(np.eye(heads) - 1 / heads)[0][:, : heads - 1]  # (H, H − 1), columns sum to 0
    scaled = np.zeros((heads, len(read)))
    scaled[:, read] = corners @ optimum.directions.T
    excess = []
    for size in (1e-1, 1e-2, 1e-3):
        omega = size * partition.expand(scaled / np.sqrt(partition.count))
        mu = best_readout(task, omega)
        excess.append(float(spectral_loss(task, mu, omega)) - 4 * 0.16)
        assert np.abs(mu.sum(0)).max() < 3 * size * np.abs(mu).max()
    bound = optimum.task_loss.sum()
    assert bound < excess[2] < excess[1] < excess[0]
    assert excess[2] == pytest.approx(bound, rel=1e-4)
    assert best_multi_head(task, heads).loss <= (bound + 4 * 0.16) * (1 + 1e-12)


def test_identical_supports_need_two_heads():
    task = MultiTaskRegression(6, 3, 500, signal=[1.0, 0.5, 2.0], noise_std=0.3)
    two, four = best_multi_head(task, 2), best_multi_head(task, 4)
    assert two.source == "closed form"
    assert two.excess == pytest.approx(four.excess)
    rho = np.asarray(task.noise_factor) * 6 / 500
    np.testing.assert_allclose(two.task_loss, np.asarray(task.signal) * 6 * rho / (1 + rho))
    one = single_head(task)  # and for one head the tasks do not compete
    np.testing.assert_allclose(one.omega, 6**-0.5)
    np.testing.assert_allclose(one.task_loss, theory(task, 3).one_head_per_task.task_loss)


@pytest.mark.parametrize("task", [overlapping_task(noisy_target=True), random_task(0), random_task(5, tasks=5)])
def test_single_head_with_overlapping_supports_is_the_minimum(task):
    state = single_head(task)
    assert state.source == "numerical"
    mu, omega = state.values
    assert np.square(omega).sum() == pytest.approx(1, rel=1e-9)
    assert state.loss == pytest.approx(float(spectral_loss(task, mu, omega)), rel=1e-12)
    by_mu, by_omega = spectral_gradient(task, mu, omega)
    assert max(np.abs(by_mu).max(), np.abs(by_omega).max()) < 1e-4
    assert state.loss == pytest.approx(min(atom_minimum(task, 1, seed) for seed in range(4)), rel=1e-6)
    assert 0.995 * state.loss < state.lower_bound <= state.loss * (1 + 1e-9)
    reads = np.asarray(task.support)
    np.testing.assert_allclose(state.omega, (omega * reads).sum(1) / reads.sum(1))


@pytest.mark.parametrize("seed", [0, 1])
def test_one_head_per_task_is_where_balanced_flows_end_with_overlapping_supports(seed):
    task = overlapping_task()
    state = theory(task, 2).one_head_per_task
    rng = np.random.default_rng(seed)
    mu, omega = state.values
    start = (0.9 * mu + rng.uniform(0.01, 0.05, mu.shape), 0.9 * omega + rng.uniform(0.01, 0.05, omega.shape))
    end = solve(task, *start, t_end=1e5)
    assert end.loss[-1] == pytest.approx(state.loss, rel=1e-3)
    np.testing.assert_allclose(end.mu[-1], mu, atol=0.02)
    assert state.loss == pytest.approx(float(spectral_loss(task, mu, omega)), rel=1e-12)


@pytest.mark.parametrize("task", [demo_task(), block_task((4, 10, 30), 1000, **UNEQUAL), overlapping_task()])
def test_first_order_single_head_is_a_minimum(task):
    state = theory(task, 1).single_head_first_order
    mu, omega = state.values
    assert state.loss == pytest.approx(float(spectral_loss(task, mu, omega, order="first")), rel=1e-9)
    by_mu, by_omega = spectral_gradient(task, mu, omega, order="first")
    assert max(np.abs(by_mu).max(), np.abs(by_omega).max()) < 1e-4
    rng = np.random.default_rng(0)
    for _ in range(20):
        near = (mu * (1 + 0.02 * rng.normal(size=mu.shape)), omega * (1 + 0.02 * rng.normal(size=omega.shape)))
        assert float(spectral_loss(task, *near, order="first")) > state.loss


def test_first_order_single_head_is_where_the_flow_ends():
    task = demo_task()
    state = theory(task, 1).single_head_first_order
    end = solve(task, np.full((1, 3), 0.05), np.full((1, 3), 0.01), order="first", t_end=1e4)
    assert end.loss[-1] == pytest.approx(state.loss, rel=1e-6)
    np.testing.assert_allclose(end.omega[-1, 0], state.omega, rtol=1e-4)


def test_a_bad_start_ends_in_the_state_with_shared_heads():
    """Head 0 starts best for tasks 0 and 1: the balanced flow stays there, and theory knows the price."""
    task = block_task((10, 6, 10), 1000, noise_std=0.3, signal=[1.0, 1.5, 1.0])
    mu, omega = np.full((3, 3), 1e-3), np.full((3, 3), 1e-4)
    mu[0, :2], omega[0, :2] = 0.02, 0.004
    mu[2, 2], omega[2, 2] = 0.02, 0.004
    end = solve(task, mu, omega, t_end=1e5)
    assert observed_allocation(task, end.mu[-1], end.omega[-1]).tolist() == [0, 0, 2]
    state = shared_heads_state(task, [[0, 1], [2]])
    assert end.loss[-1] == pytest.approx(state.loss, rel=1e-4)
    np.testing.assert_allclose(end.omega[-1][[0, 0, 2], [0, 1, 2]], state.omega, rtol=1e-3)
    assert state.head.tolist() == [0, 0, 1]
    assert state.loss > theory(task, 3).one_head_per_task.loss


@pytest.mark.parametrize(
    ("task", "heads"),
    [
        (block_task((4, 10, 30, 3, 8), 300, noise_std=0.5, signal=[1.0, 2.0, 0.1, 1.0, 0.5]), 2),
        (block_task((4, 10, 30, 3, 8), 300, noise_std=0.5, signal=[1.0, 2.0, 0.1, 1.0, 0.5]), 3),
        (block_task((6,) * 5, 300, noise_std=0.5), 2),
        (random_task(3), 2),
    ],
)
def test_best_grouping_is_the_best_of_all(task, heads):
    state = best_shared_heads(task, heads)
    losses = []
    for labels in itertools.product(range(heads), repeat=task.n_tasks):
        if labels[0] == 0 and len(set(labels)) == heads:
            groups = [[i for i, label in enumerate(labels) if label == h] for h in range(heads)]
            losses.append(shared_heads_state(task, groups).loss)
    assert state.loss == pytest.approx(min(losses), rel=1e-9)
    assert state.loss == pytest.approx(float(spectral_loss(task, *state.values)), rel=1e-12)
    assert len(set(state.head)) == heads


def test_groupings_that_are_not_looked_for():
    assert "at most 8 such tasks, there are 9" in best_shared_heads(block_task(range(2, 11), 300), 3)
    assert "see single_head" in best_shared_heads(demo_task(), 1)
    assert "see one_head_per_task" in best_shared_heads(demo_task(), 3)
    assert best_shared_heads(block_task((5,) * 20, 300), 6).source == "closed form"  # equal tasks: any number
    for groups in ([[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2], []], [[0, 1, 3]]):
        with pytest.raises(ValueError, match="each of the 3 tasks once"):
            shared_heads_state(demo_task(), groups)
    with pytest.raises(ValueError, match="identity covariance"):
        shared_heads_state(MultiTaskRegression(3, 1, 500, covariance=2 * torch.eye(3).double()), [[0]])
