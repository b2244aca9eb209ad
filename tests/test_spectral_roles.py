"""Roles of heads at states that are known, and at the ends of flows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from spectral_tasks import block_task, demo_task, overlapping_task

from mhicl_fast.spectral import head_shares, observed_allocation, solve, spectral_loss, theory
from mhicl_fast.spectral.optima.states import one_head_per_task, shared_heads_state
from mhicl_fast.spectral.roles import head_roles
from mhicl_fast.tasks import MultiTaskRegression


def with_idle_head(values):
    """The state with one more head, which attends and is not read."""
    mu, omega = values
    return np.vstack([mu, 0 * mu[:1]]), np.vstack([omega, omega[:1]])


@pytest.mark.parametrize("task", [demo_task(), overlapping_task(noisy_target=True)])
def test_one_head_per_task(task):
    roles = head_roles(task, *with_idle_head(one_head_per_task(task).values))
    tasks = list(range(task.n_tasks))
    assert roles.winner == tasks
    assert roles.serving == [[i] for i in tasks]
    assert (roles.shared, roles.superposed, roles.pairs, roles.zero_sum) == ({}, {}, [], [])
    assert roles.unused == [task.n_tasks]
    assert roles.cost == pytest.approx(0, abs=1e-12)
    assert roles.expected_cost == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(roles.balance, 1)
    # Silencing a head leaves its task unlearnt.
    signal = np.asarray(task.signal * task.support_sizes)
    np.testing.assert_allclose(roles.removal[:-1], signal - one_head_per_task(task).task_loss)


def test_shared_heads_cost_what_theory_says():
    task = block_task((10, 6, 10), 1000, noise_std=0.3, signal=[1.0, 1.5, 1.0])
    state = shared_heads_state(task, [[0, 1], [2]])
    roles = head_roles(task, *state.values)
    assert roles.winner == [0, 0, 1]
    assert roles.shared == roles.superposed == {0: [0, 1]}
    assert roles.cost == pytest.approx(state.loss - theory(task, 3).one_head_per_task.loss)
    assert roles.cost == pytest.approx(roles.expected_cost)
    assert roles.unused == []


def test_pairs_of_opposite_heads_are_zero_sum():
    task = demo_task()
    mu, omega = one_head_per_task(task).values
    both = (np.vstack([mu, -mu]) / 2, np.vstack([omega, -omega]))
    roles = head_roles(task, *both)
    assert roles.pairs == [(0, 3), (1, 4), (2, 5)]
    assert roles.zero_sum == [0, 1, 2]
    assert roles.serving == [[0, 3], [1, 4], [2, 5]]
    assert roles.winner == [-1, -1, -1]  # neither holds a majority
    assert roles.expected_cost is None
    assert roles.cost < 0
    assert head_roles(task, both[0] * 1.0, np.vstack([omega, -0.7 * omega])).pairs == []  # 18 % apart
    near = np.vstack([omega, -0.9 * omega])
    assert head_roles(task, both[0], near).pairs == [(0, 3), (1, 4), (2, 5)]  # 5 % apart


def test_superposition_without_sharing():
    """A head that helps a second task is superposed; it is shared only if it wins both."""
    task = block_task((4, 4), 1000)
    mu, omega = np.array([[1.6, 0.4], [0.0, 1.2]]), np.full((2, 2), 0.5)
    roles = head_roles(task, mu, omega)
    assert roles.winner == [0, 1]
    assert roles.shared == {}
    assert roles.superposed == {0: [0, 1]}
    assert roles.serving == [[0], [1, 0]]
    np.testing.assert_allclose(roles.parts, head_shares(task, mu, omega))
    reference = one_head_per_task(task).loss
    assert roles.cost == pytest.approx(float(spectral_loss(task, mu, omega)) - reference)


def test_parts_below_the_threshold_do_not_count():
    task = block_task((4,), 1000)
    for part, serving in ((0.06, [0, 1]), (0.04, [0])):
        mu, omega = np.array([[1 - part], [part]]), np.ones((2, 1)) * 0.9
        assert head_roles(task, mu, omega).serving == [serving]
    early = head_roles(task, np.full((2, 1), 0.02), np.full((2, 1), 0.3))  # a share of 0.012 is not learnt yet
    assert (early.serving, early.superposed, early.winner) == ([[]], {}, [-1])
    nothing = head_roles(task, np.zeros((2, 1)), np.zeros((2, 1)))
    assert (nothing.serving, nothing.winner, nothing.unused, nothing.zero_sum) == ([[]], [-1], [0, 1], [])
    assert nothing.balance.tolist() == [1]


def test_an_escaped_flow_ends_zero_sum():
    """Combined parameters: the heads together do better than one each, with outputs that cancel."""
    task = demo_task()
    rng = np.random.default_rng(0)
    mu, omega = rng.uniform(0.02, 0.1, (2, 4, 3)) ** 2
    end = solve(task, mu, omega, parameters="combined", t_end=3e6)
    roles = head_roles(task, end.mu[-1], end.omega[-1])
    assert roles.zero_sum == [0, 1, 2]
    assert roles.cost < 0
    assert all(len(heads) > 1 for heads in roles.serving)
    assert len(roles.superposed) >= 2


def test_roles_are_json_and_agree_with_the_allocation():
    rng = np.random.default_rng(1)
    for task, columns in ((demo_task(), 3), (overlapping_task(), 7)):
        mu, omega = rng.normal(size=(4, task.n_tasks)), 0.3 * rng.normal(size=(4, columns))
        roles = head_roles(task, torch.as_tensor(mu), omega)
        assert roles.winner == observed_allocation(task, mu, omega).tolist()
        plain = json.loads(json.dumps(roles.to_dict(), allow_nan=False))
        assert plain["serving"] == roles.serving
        assert all(isinstance(head, str) for head in plain["superposed"])
        assert np.shape(plain["parts"]) == (4, task.n_tasks)


def test_bad_input():
    task = demo_task()
    with pytest.raises(ValueError, match="mu and omega must have two dimensions"):
        head_roles(task, np.ones((2, 3, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="mu has 3 heads, omega has 2"):
        head_roles(task, np.ones((3, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="must be finite"):
        head_roles(task, np.full((3, 3), np.nan), np.ones((3, 3)))
    correlated = MultiTaskRegression(3, 1, 500, covariance=2 * torch.eye(3).double())
    with pytest.raises(ValueError, match="identity covariance"):
        head_roles(correlated, np.ones((1, 1)), 0.1 * np.ones((1, 3)))
