"""Planted bases are found again, and where the weights do not determine them the decomposition says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decomposable import allowed_rotations, assemble, matching, plant, rotation_within, span_distance
from scipy.linalg import block_diag
from scipy.optimize import linear_sum_assignment
from spectral_tasks import block_support, block_task, diagonal_weights, overlapping_task

from mhicl_fast.spectral import asymptotic_loss, diagonal
from mhicl_fast.spectral.basis.decompose import decompose, departures, recompose
from mhicl_fast.train import GradientFlow

OVERLAPPING = np.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]], bool)
SETTINGS = [
    (np.ones((1, 1), bool), None),
    (np.ones((1, 6), bool), None),
    (np.ones((3, 5), bool), None),
    (np.ones((4, 4), bool), [1.0, 2.0, 1.0, 2.0]),
    (np.ones((6, 2), bool), 0.7),
    (block_support((4, 1, 3)), None),
    (block_support((2, 3), unread=4), None),
    (OVERLAPPING, None),
    (np.concatenate([OVERLAPPING, OVERLAPPING, OVERLAPPING[:1]]), [1.0, 1.0, 1.0, 3.0, 1.0]),
]


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize(("support", "signal"), SETTINGS)
def test_planted_bases_and_values_are_found(support, signal, heads):
    truth = plant(support, signal, heads, np.random.default_rng(heads))
    omega, mu, bases, residual = decompose(truth.kq, truth.ov, support.shape[1], support=support, signal=signal)
    assert residual < 1e-14
    assert bases.identifiable
    assert bases.covariate_groups == tuple((j,) for j in range(support.shape[1]))
    assert bases.output_groups == tuple((i,) for i in range(len(support)))
    for found, true, values, true_values in (
        (bases.covariates, truth.covariates, omega, truth.omega),
        (bases.outputs, truth.outputs, mu, truth.mu),
    ):
        order, error = matching(found, true)
        assert error < 1e-10
        np.testing.assert_allclose(values, true_values[:, order], atol=1e-13)
        np.testing.assert_allclose(found.T @ found, np.eye(len(found)), atol=1e-14)
    kq, ov = recompose(decompose(truth.kq, truth.ov, support.shape[1], support=support, signal=signal))
    np.testing.assert_allclose(kq, truth.kq, atol=1e-13)
    np.testing.assert_allclose(ov, truth.ov, atol=1e-13)


@pytest.mark.parametrize(("support", "signal"), SETTINGS)
def test_bases_mix_exchangeable_coordinates_only(support, signal):
    """Even for weights that no allowed rotation diagonalises."""
    d, n_tasks = support.shape[1], len(support)
    rng = np.random.default_rng(0)
    kq, ov = rng.normal(size=(2, d + n_tasks, d + n_tasks)), rng.normal(size=(2, n_tasks, d + n_tasks))
    bases = decompose(kq, ov, d, support=support, signal=signal).bases
    patterns = allowed_rotations(support, signal, rng)
    assert not bases.covariates[patterns[0] == 0].any()
    assert not bases.outputs[patterns[1] == 0].any()


def test_columns_stand_and_point_nearest_to_the_axes():
    for seed in range(20):
        truth = plant(np.ones((1, 6), bool), None, 2, np.random.default_rng(seed))
        found = decompose(truth.kq, truth.ov, 6).bases.covariates
        assert (np.diagonal(found) >= 0).all()
        rows, columns = linear_sum_assignment(-np.square(found))
        np.testing.assert_array_equal(rows, columns)


@pytest.mark.parametrize("task", [overlapping_task(), block_task((3, 1), 50, unread=2)])
def test_diagonal_weights_have_the_identity_as_basis(task):
    rng = np.random.default_rng(1)
    mu, omega = rng.normal(size=(3, task.n_tasks)), rng.normal(size=(3, task.dim_x))
    kq, ov = diagonal_weights(task, mu, omega)
    found = decompose(kq, ov, task.dim_x, support=task.support, signal=task.signal)
    np.testing.assert_array_equal(found.bases.covariates, np.eye(task.dim_x))
    np.testing.assert_array_equal(found.bases.outputs, np.eye(task.n_tasks))
    axes = diagonal(kq, ov, task)
    np.testing.assert_array_equal(found.omega, axes.omega)
    np.testing.assert_array_equal(found.mu, axes.mu)
    assert found.residual == axes.residual == 0


def test_weights_that_are_zero():
    found = decompose(np.zeros((2, 5, 5)), np.zeros((2, 2, 5)), 3)
    assert found.residual == 0
    assert found.bases.covariate_groups == ((0, 1, 2),)
    assert not found.bases.identifiable
    np.testing.assert_array_equal(found.bases.covariates, np.eye(3))
    assert set(departures(np.zeros((2, 5, 5)), np.zeros((2, 2, 5)), found).values()) == {0.0}


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e180])
def test_size_does_not_matter(size):
    truth = plant(OVERLAPPING, None, 2, np.random.default_rng(2))
    found = decompose(size * truth.kq, size * truth.ov, 7, support=OVERLAPPING)
    order, error = matching(found.bases.covariates, truth.covariates)
    assert error < 1e-10
    np.testing.assert_allclose(found.omega / size, truth.omega[:, order], atol=1e-13)
    assert found.bases.identifiable
    assert 0 < found.residual < 1e-14


def with_repeats(heads, pattern, rng):
    """ω (heads, len(pattern)), equal in columns of equal letter and zero in those of letter 0."""
    letters = sorted(set(pattern))
    values = rng.normal(size=(heads, len(letters))) * (np.array(letters) != "0")
    return values[:, [letters.index(letter) for letter in pattern]]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("pattern", ["aabbbcd", "a00b00c", "aaaaaaa", "0000000", "abcdefa"])
def test_repeated_and_zero_columns_are_told_and_their_spans_found(heads, pattern):
    rng = np.random.default_rng(heads)
    truth = assemble(
        with_repeats(heads, pattern, rng), rng.normal(size=(heads, 1)), rotation_within([np.arange(7)], rng), np.eye(1)
    )
    omega, _, bases, residual = decompose(truth.kq, truth.ov, 7)
    assert residual < 1e-14
    assert not bases.identifiable
    assert sorted(map(len, bases.covariate_groups)) == sorted(pattern.count(letter) for letter in set(pattern))
    for group in bases.covariate_groups:
        np.testing.assert_allclose(omega[:, group], omega[:, group[:1]] * np.ones(len(group)), atol=1e-14)
        alike = np.abs(truth.omega - omega[:, group[:1]]).max(0) < 1e-8
        assert span_distance(bases.covariates[:, group], truth.covariates[:, alike]) < 1e-10
        assert_nearest_to_axes(bases.covariates[:, group], group, rng)


def assert_nearest_to_axes(columns, axes, rng):
    """No other basis of the span is nearer to these axes."""
    target = np.eye(len(columns))[:, list(axes)]
    distance = np.linalg.norm(columns - target)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(20):
            turn = np.linalg.qr(np.eye(len(axes)) + size * rng.normal(size=(len(axes),) * 2))[0]
            assert np.linalg.norm(columns @ turn * np.sign(np.diagonal(turn)) - target) >= distance - 1e-12


@pytest.mark.parametrize("support", [block_support((3, 4)), OVERLAPPING])
def test_values_constant_on_the_supports_leave_the_axes(support):
    """What training converges to: every rotation within supports fits, and the axes are the one reported."""
    rng = np.random.default_rng(5)
    d = support.shape[1]
    truth = assemble(rng.normal(size=(2, 2)) @ support, rng.normal(size=(2, 2)), np.eye(d), np.eye(2))
    found = decompose(truth.kq + 1e-3 * rng.normal(size=truth.kq.shape), truth.ov, d, support=support)
    assert not found.bases.identifiable
    np.testing.assert_allclose(found.bases.covariates, np.eye(d), atol=1e-14)
    np.testing.assert_allclose(found.omega, truth.omega, atol=5e-3)


def test_a_repeated_output_is_told():
    rng = np.random.default_rng(6)
    mu = rng.normal(size=(2, 1)) * np.ones(3)
    truth = assemble(rng.normal(size=(2, 4)), mu, *(rotation_within([np.arange(n)], rng) for n in (4, 3)))
    bases = decompose(truth.kq, truth.ov, 4).bases
    assert bases.output_groups == ((0, 1, 2),)
    assert len(bases.covariate_groups) == 4
    assert not bases.identifiable
    np.testing.assert_allclose(bases.outputs, np.eye(3), atol=1e-14)


def test_tolerance_decides_which_values_are_equal():
    rng = np.random.default_rng(7)
    omega = np.array([[1.0, 1.0001, 0.3]])
    truth = assemble(omega, np.ones((1, 1)), rotation_within([np.arange(3)], rng), np.eye(1))
    assert decompose(truth.kq, truth.ov, 3).bases.identifiable
    coarse = decompose(truth.kq, truth.ov, 3, tolerance=1e-3)
    assert sorted(map(len, coarse.bases.covariate_groups)) == [1, 2]
    assert 0 < coarse.residual < 1e-4


def noisy(truth, size, rng):
    return truth.kq + size * rng.normal(size=truth.kq.shape), truth.ov + size * rng.normal(size=truth.ov.shape)


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-3])
def test_noise_turns_the_basis_as_predicted(size):
    """Errors in proportion to the noise; over many draws the basis turns by as much as is reported, about ε / gap."""
    observed, reported, per_gap = [], [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        truth = plant(np.ones((1, 6), bool), None, 3, rng)
        kq, ov = noisy(truth, size, rng)
        found = decompose(kq, ov, 6)
        assert found.bases.identifiable
        order, _ = matching(found.bases.covariates, truth.covariates)
        assert np.abs(found.omega - truth.omega[:, order]).max() < 6 * size
        planted = max(
            np.linalg.norm(kq - truth.kq) / np.linalg.norm(kq), np.linalg.norm(ov - truth.ov) / np.linalg.norm(ov)
        )
        assert 0.5 * planted < found.residual < 1.1 * planted
        overlap = truth.covariates[:, order].T @ found.bases.covariates
        observed.append(np.linalg.norm(overlap - np.diag(np.diagonal(overlap)), axis=0))
        reported.append(found.bases.covariate_errors)
        gaps = np.linalg.norm(found.omega[:, :, None] - found.omega[:, None, :], axis=0) + np.diag(np.full(6, np.inf))
        per_gap.append(size / np.sqrt(2) / gaps.min(0))
    assert np.sqrt(np.mean(np.square(observed)) / np.mean(np.square(reported))) == pytest.approx(1, abs=0.25)
    ratio = np.array(observed) / np.array(per_gap)
    assert 0.2 < np.median(ratio) < 3
    assert ratio.max() < 12


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_equal_values_are_not_told_apart_by_noise(heads):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        omega = (np.array([0.0, 1.0, -1.0]) + rng.uniform(-0.3, 0.3, size=(heads, 3))).repeat([3, 5, 2], axis=1)
        truth = assemble(omega, np.ones((heads, 1)), rotation_within([np.arange(10)], rng), np.eye(1))
        kq, ov = noisy(truth, 1e-3, rng)
        found = decompose(kq, ov, 10)
        assert sorted(map(len, found.bases.covariate_groups)) == [2, 3, 5]
        for group in found.bases.covariate_groups:
            alike = np.abs(truth.omega - found.omega[:, group].mean(1)[:, None]).max(0) < 0.1
            assert span_distance(found.bases.covariates[:, group], truth.covariates[:, alike]) < 0.02


def test_noise_of_symmetric_weights_is_measured_by_what_they_have():
    """W_Q = W_K makes KQ symmetric: no antisymmetric part does not mean little noise."""
    observed, reported = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = plant(np.ones((1, 6), bool), None, 2, rng)
        kq, ov = noisy(truth, 1e-5, rng)
        bases = decompose((kq + kq.swapaxes(1, 2)) / 2, ov, 6).bases
        order, _ = matching(bases.covariates, truth.covariates)
        overlap = truth.covariates[:, order].T @ bases.covariates
        observed.append(np.linalg.norm(overlap - np.diag(np.diagonal(overlap)), axis=0))
        reported.append(bases.covariate_errors)
    assert np.sqrt(np.mean(np.square(observed)) / np.mean(np.square(reported))) == pytest.approx(1, abs=0.25)


def test_departures_name_their_cause():
    rng = np.random.default_rng(8)
    support = block_support((3, 2))
    truth = plant(support, None, 3, rng)
    antisymmetric = rng.normal(size=(3, 5, 5))
    parts = {
        "kq_off_diagonal": (0, np.s_[:, 0, 4], 0.02),  # covariates of different supports: no rotation may remove it
        "kq_labels": (0, np.s_[:, 5:, :5], 0.03),
        "ov_off_diagonal": (1, np.s_[:, :, 5:], np.array([[0, 0.04], [0.04, 0]])),
        "ov_antisymmetric": (1, np.s_[:, :, 5:], np.array([[0, 0.05], [-0.05, 0]])),
        "ov_covariates": (1, np.s_[:, :, :5], 0.06),
        "kq_antisymmetric": (0, np.s_[:, :5, :5], 0.01 * (antisymmetric - antisymmetric.swapaxes(1, 2))),
    }
    for cause, (which, where, amount) in parts.items():
        weights = [truth.kq.copy(), truth.ov.copy()]
        weights[which][where] += amount
        if cause == "kq_off_diagonal":
            weights[0][:, 4, 0] += amount
        weights[0][:, :5, 5:] = rng.normal(size=(3, 5, 2))  # never matters
        found = decompose(*weights, 5, support=support)
        by_cause = departures(*weights, found)
        clean = (truth.kq, truth.ov)[which]
        meeting = np.s_[:, :, :5] if which == 0 else np.s_[:]
        norm = np.linalg.norm((weights[which] - clean)[meeting]) / np.linalg.norm(weights[which][meeting])
        assert by_cause.pop(cause) == pytest.approx(norm, rel=1e-9)
        assert max(by_cause.values()) < 1e-12
        assert found.residual == pytest.approx(norm, rel=1e-9)
        assert matching(found.bases.covariates, truth.covariates)[1] < 1e-10


def test_departures_add_up_to_the_residual():
    rng = np.random.default_rng(9)
    kq, ov = rng.normal(size=(2, 6, 6)), rng.normal(size=(2, 2, 6))
    found = decompose(kq, ov, 4)
    by_cause = departures(kq, ov, found)
    squares = [sum(v**2 for k, v in by_cause.items() if k.startswith(which)) for which in ("kq", "ov")]
    assert max(squares) == pytest.approx(found.residual**2)
    fitted_kq, fitted_ov = recompose(found)
    assert squares[0] == pytest.approx(np.square((kq - fitted_kq)[:, :, :4]).sum() / np.square(kq[:, :, :4]).sum())
    assert squares[1] == pytest.approx(np.square(ov - fitted_ov).sum() / np.square(ov).sum())


@pytest.mark.parametrize(("support", "signal"), SETTINGS[3:])
def test_rotating_the_problem_rotates_the_bases(support, signal):
    rng = np.random.default_rng(10)
    d = support.shape[1]
    truth = plant(support, signal, 3, rng)
    kq, ov = noisy(truth, 1e-3, rng)
    covariates, outputs = allowed_rotations(support, signal, rng)
    tokens = block_diag(covariates, outputs)
    one = decompose(kq, ov, d, support=support, signal=signal)
    other = decompose(tokens @ kq @ tokens.T, outputs @ ov @ tokens.T, d, support=support, signal=signal)
    assert other.residual == pytest.approx(one.residual, rel=1e-9)
    assert one.bases.identifiable
    order, error = matching(other.bases.covariates, covariates @ one.bases.covariates)
    assert error < 1e-9
    np.testing.assert_allclose(other.omega, one.omega[:, order], atol=1e-12)
    order, error = matching(other.bases.outputs, outputs @ one.bases.outputs)
    assert error < 1e-9
    np.testing.assert_allclose(other.mu, one.mu[:, order], atol=1e-12)


def test_weights_without_a_common_basis_get_the_nearest_one():
    """Nothing can be told apart, yet no basis, the axes and random ones among them, leaves a smaller residual."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        kq, ov = np.zeros((2, 6, 6)), np.zeros((2, 1, 6))
        kq[:, :5, :5] = rng.normal(size=(2, 5, 5))
        ov[:, :, 5] = 1
        found = decompose(kq, ov, 5)
        assert found.residual > 0.4
        for _ in range(200):
            tokens = block_diag(rotation_within([np.arange(5)], rng), 1)
            assert diagonal(tokens.T @ kq @ tokens, ov @ tokens, block_task((5,), 10)).residual > found.residual


def test_float32_weights_that_require_gradients():
    truth = plant(np.ones((2, 6), bool), None, 2, np.random.default_rng(11))
    kq, ov = (torch.tensor(weights, dtype=torch.float32, requires_grad=True) for weights in (truth.kq, truth.ov))
    omega, _, bases, residual = decompose(kq, ov, 6)
    order, error = matching(bases.covariates, truth.covariates)
    assert bases.identifiable
    assert error < 1e-5
    np.testing.assert_allclose(omega, truth.omega[:, order], atol=2e-6)
    assert residual < 1e-6
    assert departures(kq, ov, decompose(kq, ov, 6))["kq_labels"] == 0


def test_rounding_of_float32_does_not_tell_columns_apart():
    omega = np.array([[0.3] * 4 + [0.7]])
    omega[0, :4] *= 1 + 1e-7 * np.arange(4)
    truth = assemble(omega, np.ones((1, 1)), np.eye(5), np.eye(1))
    kq, ov = (torch.tensor(weights, dtype=torch.float32) for weights in (truth.kq, truth.ov))
    assert decompose(kq, ov, 5).bases.covariate_groups == ((0, 1, 2, 3), (4,))
    assert len(decompose(truth.kq, truth.ov, 5).bases.covariate_groups) == 5


def test_bad_input_is_refused():
    kq, ov = np.zeros((2, 5, 5)), np.zeros((2, 2, 5))
    with pytest.raises(ValueError, match=r"kq must be \(heads, 6, 6\), got shape \[2, 5, 5\]"):
        decompose(kq, ov, 4)
    with pytest.raises(ValueError, match=r"ov must be \(3 heads, 2, 5\), got shape \[2, 2, 5\]"):
        decompose(np.zeros((3, 5, 5)), ov, 3)
    with pytest.raises(ValueError, match=r"ov must be \(heads, tasks, 3 covariates \+ tasks\), got shape \[2, 5\]"):
        decompose(kq, ov[:, 0], 3)
    with pytest.raises(ValueError, match="ov must be"):
        decompose(kq[:0], ov[:0], 3)
    with pytest.raises(ValueError, match="kq must be finite, got 1 NaN"):
        decompose(np.where(np.arange(50).reshape(2, 5, 5) == 7, np.nan, kq), ov, 3)
    with pytest.raises(TypeError, match="kq must hold real numbers"):
        decompose(kq + 1j, ov, 3)
    with pytest.raises(ValueError, match="dim_x must be at least 1, got 0"):
        decompose(kq, ov, 0)
    with pytest.raises(TypeError):
        decompose(kq, ov, 3.0)
    with pytest.raises(ValueError, match=r"support must be \(2 tasks, 3 covariates\), got shape \[3, 2\]"):
        decompose(kq, ov, 3, support=np.ones((3, 2)))
    with pytest.raises(ValueError, match="support must hold booleans or 0 and 1"):
        decompose(kq, ov, 3, support=np.full((2, 3), 0.5))
    with pytest.raises(ValueError, match=r"signal must be positive, one number or \(2,\)"):
        decompose(kq, ov, 3, signal=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="signal must be positive"):
        decompose(kq, ov, 3, signal=0)
    with pytest.raises(ValueError, match="tolerance must be at least 0 and below 1, got -1"):
        decompose(kq, ov, 3, tolerance=-1)


def test_gradient_flow_keeps_rotated_weights_decomposable():
    """Noise-free training from a rotated start: the bases stay, and the values are those of the unrotated run."""
    task = overlapping_task()
    rng = np.random.default_rng(12)
    mu, omega = rng.uniform(0.1, 0.5, size=(2, 2)), rng.uniform(0.05, 0.2, size=(2, 7))
    covariates, outputs = allowed_rotations(task.support, task.signal, rng)
    runs = []
    for bases in ((covariates, outputs), (np.eye(7), np.eye(2))):
        start = assemble(omega, mu, *bases)
        weights = {"kq": torch.tensor(start.kq), "ov": torch.tensor(start.ov)}
        flow = GradientFlow(0.01)
        for _ in range(200):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
            asymptotic_loss(task, leaves["kq"], leaves["ov"]).backward()
            flow.step(weights, {name: leaf.grad for name, leaf in leaves.items()})
        runs.append(decompose(weights["kq"], weights["ov"], 7, support=task.support, signal=task.signal))
    rotated, plain = runs
    assert rotated.residual < 1e-13
    order, error = matching(rotated.bases.covariates, covariates)
    assert error < 1e-10
    np.testing.assert_array_equal(plain.bases.covariates, np.eye(7))
    np.testing.assert_allclose(rotated.omega, plain.omega[:, order], atol=1e-12)
    np.testing.assert_allclose(rotated.mu, plain.mu, atol=1e-12)
    assert np.abs(plain.omega - omega).max() > 0.05
