"""The integrator of noise-free flows: orders of convergence, stability, choice of method, edges."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import RK45, solve_ivp

from mhicl_fast.train.matrix import dormand_prince
from mhicl_fast.train.matrix.chebyshev import chebyshev_error, chebyshev_step, stages_for, stiffness_of
from mhicl_fast.train.matrix.dormand_prince import dormand_prince_step
from mhicl_fast.train.matrix.solver import FlowSolver, StepError


def gradient_flow(seed=0, size=6):
    """A smooth nonlinear gradient flow with decay rates from 0.1 to 1000: −∇(½ yᵀA y + ¼ Σ y⁴ + bᵀy)."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    matrix, b = basis @ np.diag(np.logspace(-1, 3, size)) @ basis.T, rng.normal(size=size)
    return (lambda y: -(matrix @ y + y**3 + b)), rng.normal(size=size)


def integrate(field, y, t_end, rtol, groups=None):
    solver = FlowSolver(field, np.arange(y.size) if groups is None else groups, rtol, rtol * 1e-3)
    states = [solver.start(y)]
    while states[-1].t < t_end:
        states.append(solver.advance(states[-1], t_end))
    assert states[-1].t == t_end
    return states


def test_dormand_prince_is_that_method():
    for row, weights in enumerate(dormand_prince._STAGES[:-1], start=1):
        np.testing.assert_allclose(weights, RK45.A[row][:row], rtol=1e-15)
    np.testing.assert_allclose(dormand_prince._STAGES[-1], RK45.B, rtol=1e-15)
    np.testing.assert_allclose(np.abs(dormand_prince._ERROR), np.abs(RK45.E), rtol=1e-15)


@pytest.mark.parametrize(("order", "stages"), [(5, None), (2, 2), (2, 3), (2, 9), (2, 40)])
def test_order_of_convergence(order, stages):
    """y'' = −sin y as a system: halving the step divides the error by 2^order."""

    def field(y):
        return np.array([y[1], -np.sin(y[0])])

    start = np.array([1.0, 0.3])
    exact = solve_ivp(lambda _, y: field(y), (0, 1), start, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    errors = []
    for n in (8, 16, 32):
        y, velocity = start, field(start)
        for _ in range(n):
            if stages is None:
                y, velocity, _ = dormand_prince_step(field, y, velocity, 1 / n)
            else:
                y, velocity = chebyshev_step(field, y, velocity, 1 / n, stages)
        errors.append(np.abs(y - exact).max())
    for coarse, fine in pairwise(errors):
        assert np.log2(coarse / fine) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("stages", [2, 3, 5, 20, 150])
def test_chebyshev_is_stable_where_it_says(stages):
    """One step multiplies an eigencomponent by less than 1 up to `stiffness_of`, and grows soon beyond its reach."""
    reach = stiffness_of(stages)
    assert stages_for(0.999 * reach) <= stages

    def factor(z):
        return float(chebyshev_step(lambda y: z * y, np.ones(1), np.full(1, z), 1.0, stages)[0][0])

    assert max(abs(factor(-z)) for z in np.linspace(0.01 * reach + 0.1, max(reach, 0.2), 400)) < 1
    assert factor(-1e-3) == pytest.approx(np.exp(-1e-3), abs=1e-9)
    assert abs(factor(-0.8 * stages**2 - 2)) > 1


def test_chebyshev_error_estimate_is_the_third_derivative():
    """For y = t³ exactly known at both ends, 0.8 Δ + 0.4 h (F + F) = 0.4 h³ = h³ y''' / 15."""
    h = 0.3
    error = chebyshev_error(np.zeros(1), np.zeros(1), np.array([h**3]), np.array([3 * h**2]), h)
    np.testing.assert_allclose(error, h**3 * 6 / 15)


def test_tolerance_controls_the_error_and_stiffness_costs_little():
    field, start = gradient_flow()
    exact = solve_ivp(lambda _, y: field(y), (0, 60), start, method="Radau", rtol=1e-11, atol=1e-13, dense_output=True)
    errors = []
    for rtol in (1e-4, 1e-6, 1e-8):
        states = integrate(field, start, 60.0, rtol)
        errors.append(max(np.abs(state.y - exact.sol(state.t)).max() for state in states))
    assert all(fine < coarse / 8 for coarse, fine in pairwise(errors))
    assert errors[-1] < 1e-6
    explicit = solve_ivp(lambda _, y: field(y), (0, 60), start, method="RK45", rtol=1e-4, atol=1e-7).nfev
    assert integrate(field, start, 60.0, 1e-4)[-1].evaluations < explicit / 20


def test_radius_is_an_upper_estimate():
    field, start = gradient_flow(1)
    for state in integrate(field, start, 10.0, 1e-5):
        step = 1e-6 * np.eye(start.size)
        jacobian = np.array([field(state.y + row) - field(state.y - row) for row in step]) / 2e-6
        assert np.abs(np.linalg.eigvalsh(jacobian)).max() < 1.05 * state.radius


def test_radius_follows_the_flow():
    """Decay at the rate 1 + 100 a while a grows from 0 to 5."""
    states = integrate(lambda y: np.array([1.0, -(1 + 100 * y[0]) * y[1]]), np.array([0.0, 1.0]), 5.0, 1e-6)
    assert states[0].radius < 130
    assert 350 < states[-1].radius < 700  # it may be some steps old


def test_steps_do_not_depend_on_the_basis_of_a_group():
    field, start = gradient_flow(2)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    plain = integrate(field, start, 5.0, 1e-6, groups=np.array([0]))
    turned = integrate(lambda y: rotation @ field(rotation.T @ y), rotation @ start, 5.0, 1e-6, groups=np.array([0]))
    assert len(plain) == len(turned)
    np.testing.assert_allclose([s.t for s in turned], [s.t for s in plain], rtol=0.02)
    np.testing.assert_allclose(rotation.T @ turned[-1].y, plain[-1].y, atol=1e-6)


def test_edges():
    still = integrate(lambda y: 0 * y, np.ones(2), 7.0, 1e-6)
    assert len(still) == 2  # one step
    with pytest.raises(StepError, match="start"):
        FlowSolver(lambda y: y * np.nan, np.array([0]), 1e-6, 1e-9).start(np.ones(1))

    def square_root(y):  # y' = −1/(2y) reaches 0 at t = 1 and does not exist beyond
        return np.where(y > 0, -0.5 / np.where(y > 0, y, 1), np.nan)

    solver = FlowSolver(square_root, np.array([0]), 1e-6, 1e-9)
    state = solver.start(np.ones(1))
    with pytest.raises(StepError, match="step length"):  # noqa: PT012
        while True:
            state = solver.advance(state)
    assert state.t == pytest.approx(1, abs=1e-5)
    assert state.y[0] == pytest.approx(0, abs=1e-2)
