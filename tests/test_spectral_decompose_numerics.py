"""Joint diagonalisation against its definition: least squares over rotations."""

from __future__ import annotations

import numpy as np
import pytest
from decomposable import matching
from scipy.linalg import expm
from scipy.optimize import minimize, minimize_scalar

from mhicl_fast.spectral.basis import joint_diagonalisation
from mhicl_fast.spectral.basis.joint_diagonalisation import NotConvergedError, joint_diagonaliser, off_diagonal_squares


def random_rotation(n, rng):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def with_common_basis(count, n, rng):
    basis, values = random_rotation(n, rng), rng.normal(size=(count, n))
    return basis @ (values[:, :, None] * basis.T), basis


def antisymmetric(numbers, n):
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n, 1)] = numbers
    return matrix - matrix.T


@pytest.mark.parametrize(("count", "n"), [(1, 1), (3, 1), (1, 2), (4, 2), (2, 5), (1, 8), (3, 31), (8, 100)])
def test_a_common_basis_is_found_to_rounding(count, n):
    matrices, basis = with_common_basis(count, n, np.random.default_rng(n))
    found = joint_diagonaliser(matrices)
    np.testing.assert_allclose(found.T @ found, np.eye(n), atol=1e-14)
    assert off_diagonal_squares(matrices, found) ** 0.5 < 2e-14 * np.linalg.norm(matrices)
    assert matching(found, basis)[1] < 1e-11


def test_antisymmetric_parts_change_nothing():
    rng = np.random.default_rng(0)
    matrices, basis = with_common_basis(2, 6, rng)
    odd = rng.normal(size=(2, 6, 6))
    assert matching(joint_diagonaliser(matrices + 3 * (odd - odd.swapaxes(1, 2))), basis)[1] < 1e-11


def test_one_matrix_gives_its_eigenvectors():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(7, 7))
    _, vectors = np.linalg.eigh(matrix + matrix.T)
    assert matching(joint_diagonaliser(matrix[None]), vectors)[1] < 1e-13


@pytest.mark.parametrize("seed", range(5))
def test_two_columns_turn_by_the_best_angle(seed):
    matrices = np.random.default_rng(seed).normal(size=(3, 2, 2))

    def left(angle):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        symmetric = (matrices + matrices.swapaxes(1, 2)) / 2
        return off_diagonal_squares(symmetric, turn)

    best = min(
        minimize_scalar(left, bounds=(a, a + 0.2), method="bounded", options={"xatol": 1e-9}).fun
        for a in np.arange(0, np.pi / 2, 0.2)
    )
    symmetric = (matrices + matrices.swapaxes(1, 2)) / 2
    assert off_diagonal_squares(symmetric, joint_diagonaliser(matrices)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_matrices_without_common_basis_get_the_best_rotation(seed):
    """Against a general-purpose minimiser from many starts."""
    rng = np.random.default_rng(seed)
    n = 4
    matrices = rng.normal(size=(3, n, n))
    matrices = matrices + matrices.swapaxes(1, 2)

    def left(numbers, start):
        return off_diagonal_squares(matrices, start @ expm(antisymmetric(numbers, n)))

    results = [minimize(left, np.zeros(6), args=(random_rotation(n, rng),)).fun for _ in range(12)]
    assert off_diagonal_squares(matrices, joint_diagonaliser(matrices)) <= min(results) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("count", "n", "noise", "values"),
    [(2, 12, 1.0, 0.0), (4, 20, 1.0, 1.0), (3, 25, 1e-4, 1.0), (3, 24, 1e-3, "blocks")],
)
def test_result_is_a_minimum_to_machine_precision(count, n, noise, values):
    """Without a common basis, or where noise alone tells columns apart: no slope, and no way down from there."""
    rng = np.random.default_rng(2)
    level = (
        rng.normal(size=(count, 3)).repeat(n // 3, 1) if values == "blocks" else values * rng.normal(size=(count, 1))
    )
    matrices = noise * rng.normal(size=(count, n, n)) + (level * np.ones((count, n)))[:, :, None] * np.eye(n)
    matrices = matrices + matrices.swapaxes(1, 2)
    found = joint_diagonaliser(matrices)
    turned = found.T @ matrices @ found
    diagonals = np.diagonal(turned, axis1=1, axis2=2)
    slope = (turned * (diagonals[:, :, None] - diagonals[:, None, :])).sum(0)
    assert np.linalg.norm(slope) < 1e-13 * np.linalg.norm(matrices) ** 2
    least = off_diagonal_squares(matrices, found)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            turn = expm(size * antisymmetric(rng.normal(size=n * (n - 1) // 2) / n, n))
            assert off_diagonal_squares(matrices, found @ turn) > least


@pytest.mark.parametrize("seed", range(10))
def test_directions_that_all_matrices_ignore_stay_apart(seed):
    """Products of low rank without a common basis: a subspace of zeros, where every rotation is as good."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 2, 8))
    matrices = np.stack([x.T @ x, y.T @ y, x.T @ y + y.T @ x])
    found = joint_diagonaliser(matrices)
    np.testing.assert_allclose(found.T @ found, np.eye(8), atol=1e-14)
    ignored = np.linalg.norm(np.concatenate([x, y]) @ found, axis=0) < 1e-10
    assert ignored.sum() == 4


def test_gradient_and_hessian_are_derivatives_along_turns():
    rng = np.random.default_rng(5)
    n, step = 5, 1e-4
    matrices = rng.normal(size=(3, n, n))
    matrices = matrices + matrices.swapaxes(1, 2)
    x, y = (antisymmetric(rng.normal(size=n * (n - 1) // 2), n) for _ in range(2))
    behind, here, ahead = (off_diagonal_squares(matrices, expm(t * x)) / 2 for t in (-step, 0, step))
    gradient = joint_diagonalisation._gradient(matrices)
    along_x, along_y = (joint_diagonalisation._hessian(matrices, gradient, z) for z in (x, y))
    assert (gradient * x).sum() == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)
    assert (along_x * x).sum() == pytest.approx((ahead - 2 * here + behind) / step**2, rel=1e-5)
    assert (along_x * y).sum() == pytest.approx((along_y * x).sum(), rel=1e-12)


def test_several_starts_escape_local_minima(monkeypatch):
    """Sweeps from one start can end in a local minimum: the other starts improve some of these, and worsen none."""
    rng = np.random.default_rng(3)
    stacks = [rng.normal(size=(3, 6, 6)) for _ in range(40)]
    stacks = [matrices + matrices.swapaxes(1, 2) for matrices in stacks]
    several = np.array([off_diagonal_squares(matrices, joint_diagonaliser(matrices)) for matrices in stacks])
    monkeypatch.setattr(joint_diagonalisation, "_starts", lambda symmetric: iter([np.eye(6)]))
    single = np.array([off_diagonal_squares(matrices, joint_diagonaliser(matrices)) for matrices in stacks])
    assert (several < single * (1 - 1e-3)).any()
    assert (several < single * (1 + 1e-9)).all()


def test_it_says_so_if_it_does_not_converge(monkeypatch):
    monkeypatch.setattr(joint_diagonalisation, "_NEWTON_STEPS", 1)
    with pytest.raises(NotConvergedError, match="4 matrices of size 30 did not converge in 1 steps"):
        joint_diagonaliser(np.random.default_rng(4).normal(size=(4, 30, 30)))


def test_rounds_meet_every_pair_once():
    for n in range(1, 12):
        rounds = list(joint_diagonalisation._rounds(n))
        pairs = [tuple(sorted(pair)) for p, q in rounds for pair in zip(p.tolist(), q.tolist(), strict=True)]
        assert sorted(pairs) == [(i, j) for i in range(n) for j in range(i + 1, n)]
        assert all(len({*p.tolist(), *q.tolist()}) == 2 * len(p) for p, q in rounds)
