"""Factored weights: planted factors are found again, and the flow conserves what it should."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from decomposable import allowed_rotations, matching, span_distance
from scipy.integrate import solve_ivp
from spectral_tasks import block_support, overlapping_task

from mhicl_fast.spectral import asymptotic_loss
from mhicl_fast.spectral.basis.decompose import decompose
from mhicl_fast.spectral.basis.factored import conserved, decompose_factored
from mhicl_fast.spectral.flow import Factors
from mhicl_fast.train import Factored, initial_parameters
from mhicl_fast.train.parameters import pull_back


class PlantedFactors(NamedTuple):
    """Factored weights and what a decomposition of them should find."""

    w_q: np.ndarray
    w_k: np.ndarray
    w_v: np.ndarray
    w_o: np.ndarray
    factors: Factors
    covariates: np.ndarray
    outputs: np.ndarray

    @property
    def weights(self):
        return self[:4]


def own_basis(width, columns, rng):
    """Orthonormal columns (width, columns), those beyond the width zero, in random places."""
    basis = np.zeros((width, columns))
    kept = rng.permutation(columns)[: min(width, columns)]
    basis[:, kept] = np.linalg.qr(rng.normal(size=(width, width)))[0][:, : len(kept)]
    return basis


def plant_factors(support, heads, width, rng):
    """κ_Q and v_V positive, κ_K and v_O of both signs; all zero where a head has no direction left."""
    n_tasks, d = support.shape
    covariates, outputs = allowed_rotations(support, None, rng)
    w_q, w_k, w_v = np.zeros((3, heads, width, d + n_tasks))
    w_o = np.zeros((heads, n_tasks, width))
    factors = Factors(*(np.zeros((heads, n)) for n in (n_tasks, n_tasks, d, d)))
    for h in range(heads):
        a, b = own_basis(width, d, rng), own_basis(width, n_tasks, rng)
        factors.kappa_q[h] = rng.uniform(0.2, 1.5, size=d) * a.any(0)
        factors.kappa_k[h] = rng.normal(size=d) * a.any(0)
        factors.v_v[h] = rng.uniform(0.2, 1.5, size=n_tasks) * b.any(0)
        factors.v_o[h] = rng.normal(size=n_tasks) * b.any(0)
        w_q[h, :, :d] = a @ np.diag(factors.kappa_q[h]) @ covariates.T
        w_k[h, :, :d] = a @ np.diag(factors.kappa_k[h]) @ covariates.T
        w_v[h, :, d:] = b @ np.diag(factors.v_v[h]) @ outputs.T
        w_o[h] = outputs @ np.diag(factors.v_o[h]) @ b.T
    return PlantedFactors(w_q, w_k, w_v, w_o, factors, covariates, outputs)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    ("support", "width"),
    [
        (np.ones((1, 1), bool), 1),
        (np.ones((1, 1), bool), 4),
        (np.ones((1, 5), bool), 6),
        (np.ones((3, 4), bool), 7),
        (np.ones((3, 4), bool), 3),
        (block_support((2, 3)), 12),
        (block_support((2, 3)), 4),
        (np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]], bool), 5),
    ],
)
def test_planted_factors_are_found(support, width, heads):
    truth = plant_factors(support, heads, width, np.random.default_rng(heads + width))
    d = support.shape[1]
    found = decompose_factored(*truth.weights, d, scale=0.3, support=support)
    assert found.residual < 1e-13
    covariates, error = matching(found.bases.covariates, truth.covariates)
    assert error < 1e-6
    outputs, error = matching(found.bases.outputs, truth.outputs)
    assert error < 1e-6
    for name, values in found.factors._asdict().items():
        order = covariates if name.startswith("kappa") else outputs
        np.testing.assert_allclose(values, getattr(truth.factors, name)[:, order], atol=1e-10)
    np.testing.assert_allclose(found.omega, 0.3 * found.factors.kappa_q * found.factors.kappa_k)
    np.testing.assert_allclose(found.mu, found.factors.v_o * found.factors.v_v)
    for basis, values in ((found.query_key, found.factors.kappa_q), (found.value_output, found.factors.v_v)):
        for h in range(heads):
            used = basis[h][:, values[h] > 1e-9]
            np.testing.assert_allclose(used.T @ used, np.eye(used.shape[1]), atol=1e-12)


def test_factors_multiply_to_the_semi_singular_values_of_the_products():
    support = block_support((3, 2))
    truth = plant_factors(support, 2, 8, np.random.default_rng(0))
    kq = 0.4 * truth.w_k.swapaxes(1, 2) @ truth.w_q
    factored = decompose_factored(*truth.weights, 5, scale=0.4, support=support)
    combined = decompose(kq, truth.w_o @ truth.w_v, 5, support=support)
    order, error = matching(factored.bases.covariates, combined.bases.covariates)
    assert error < 1e-9
    np.testing.assert_allclose(factored.omega, combined.omega[:, order], atol=1e-12)
    np.testing.assert_allclose(factored.mu, combined.mu, atol=1e-12)


def test_starting_weights_have_the_axes_as_bases():
    """Equal values leave the basis open. W_K's label columns act on nothing here and do not count."""
    task = overlapping_task()
    start = initial_parameters(task, 3, start="decomposable", seed=0)
    assert start.w_k[:, :, 7:].any()
    found = decompose_factored(*start.tensors().values(), 7, scale=start.logit_scale, support=task.support)
    assert found.residual < 1e-12
    assert not found.bases.identifiable
    np.testing.assert_allclose(found.bases.covariates, np.eye(7), atol=1e-12)
    unit = task.context_length**-0.75
    np.testing.assert_allclose(found.factors.kappa_q, unit)
    np.testing.assert_allclose(found.factors.kappa_k, unit)
    np.testing.assert_allclose(found.factors.v_v, unit * np.array([[2, 1], [1, 2], [2, 1]]))
    np.testing.assert_allclose(found.factors.v_o, found.factors.v_v)


def test_zero_columns_leave_their_span():
    rng = np.random.default_rng(1)
    truth = plant_factors(np.ones((1, 6), bool), 2, 8, rng)
    dead = truth.covariates[:, :3]
    weights = list(truth.weights)
    for which in (0, 1):
        weights[which] = weights[which].copy()
        weights[which][:, :, :6] -= weights[which][:, :, :6] @ dead @ dead.T
    found = decompose_factored(*weights, 6)
    assert found.residual < 1e-13
    (group,) = (group for group in found.bases.covariate_groups if len(group) > 1)
    assert len(group) == 3
    assert span_distance(found.bases.covariates[:, group], dead) < 1e-6
    np.testing.assert_allclose(found.omega[:, group], 0, atol=1e-13)


def test_noise_of_the_factors_shows_in_proportion():
    rng = np.random.default_rng(2)
    truth = plant_factors(np.ones((2, 5), bool), 2, 7, rng)
    errors = []
    for size in (1e-6, 1e-4):
        draw = np.random.default_rng(3)
        weights = [matrix + size * draw.normal(size=matrix.shape) for matrix in truth.weights]
        found = decompose_factored(*weights, 5)
        order, angle = matching(found.bases.covariates, truth.covariates)
        assert angle < 100 * size
        values = np.abs(found.factors.kappa_k - truth.factors.kappa_k[:, order]).max()
        assert values < 100 * size
        errors.append((found.residual, angle, values))
    np.testing.assert_allclose(np.array(errors[1]) / errors[0], 100, rtol=0.1)


def test_own_bases_are_the_best_ones():
    """No other orthonormal basis of a head, near or far, explains more of weights that do not factor."""
    rng = np.random.default_rng(4)
    w_q, w_k, w_v = rng.normal(size=(3, 1, 5, 4))
    w_o = rng.normal(size=(1, 1, 5))
    found = decompose_factored(w_q, w_k, w_v, w_o, 3)
    assert found.residual > 0.1
    first, second = (w[0, :, :3] @ found.bases.covariates for w in (w_q, w_k))
    basis = found.query_key[0]

    def explained(columns):
        return np.square((columns * first).sum(0)).sum() + np.square((columns * second).sum(0)).sum()

    for size in (1e-3, 1e-2, 0.1):
        for _ in range(50):
            other = np.linalg.qr(np.eye(5) + size * rng.normal(size=(5, 5)))[0]
            assert explained((other * np.sign(np.diagonal(other))) @ basis) < explained(basis)


def test_labels_and_covariates_that_are_read_count():
    truth = plant_factors(np.ones((2, 4), bool), 2, 9, np.random.default_rng(5))
    w_q, w_k, w_v, w_o = truth.weights
    for which, columns in ((1, np.s_[:, :, 4:]), (2, np.s_[:, :, :4])):
        weights = [matrix.copy() for matrix in truth.weights]
        weights[which][columns] = 0.05
        assert decompose_factored(*weights, 4).residual > 0.01
    free = w_q.copy()
    free[:, :, 4:] = 1.0  # meets the zeros of the query token
    assert decompose_factored(free, w_k, w_v, w_o, 4).residual < 1e-13


def test_conserved_matrices_hold_the_differences_of_squares():
    truth = plant_factors(np.ones((2, 4), bool), 3, 6, np.random.default_rng(6))
    found = decompose_factored(*truth.weights, 4)
    query_key, value_output = conserved(*truth.weights)
    factors = found.factors
    for matrix, basis, values in (
        (query_key, found.query_key, factors.kappa_q**2 - factors.kappa_k**2),
        (value_output, found.value_output, factors.v_v**2 - factors.v_o**2),
    ):
        np.testing.assert_allclose(matrix, (basis * values[:, None]) @ basis.swapaxes(1, 2), atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_flow_conserves_them_from_random_weights(scale):
    """Along a finely integrated flow; an explicit step of size η breaks them by O(η²)."""
    task = overlapping_task(500)
    rng = np.random.default_rng(7)
    w_q, w_k, w_v = 0.2 * rng.normal(size=(3, 2, 6, 9))
    w_k[:, :, 7:], w_v[:, :, :7] = 0, 0  # the closed form's weights read covariates, and write labels, only
    start = Factored(*(torch.tensor(w) for w in (w_q, w_k, w_v, 0.3 * rng.normal(size=(2, 2, 6)))), scale)
    shapes = {name: tensor.shape for name, tensor in start.tensors().items()}
    sizes = np.cumsum([shape.numel() for shape in shapes.values()])

    def unpack(state):
        parts = np.split(state, sizes[:-1])
        return {name: torch.tensor(part).reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}

    def velocity(_, state):
        weights = start.with_tensors(unpack(state))
        kq, ov = (matrix.requires_grad_() for matrix in weights.to_combined())
        gradients = torch.autograd.grad(asymptotic_loss(task, kq, ov), (kq, ov))
        pulled = pull_back(weights, *gradients)
        return -np.concatenate([pulled[name].numpy().ravel() for name in shapes])

    state = np.concatenate([tensor.numpy().ravel() for tensor in start.tensors().values()])
    flow = solve_ivp(velocity, (0, 1.5), state, method="DOP853", rtol=1e-10, atol=1e-12)
    before, after = (conserved(*unpack(one).values()) for one in (state, flow.y[:, -1]))
    assert np.abs(flow.y[:, -1] - state).max() > 0.2
    for one, other in zip(before, after, strict=True):
        assert np.abs(one).max() > 0.1
        np.testing.assert_allclose(other, one, atol=1e-8)
    drifts = [
        np.abs(conserved(*unpack(state + step * velocity(0, state)).values()).query_key - before.query_key).max()
        for step in (1e-2, 1e-3)
    ]
    assert drifts[0] / drifts[1] == pytest.approx(100, rel=1e-3)


def test_bad_projections_are_refused():
    w, w_o = np.ones((2, 3, 4)), np.ones((2, 1, 3))
    with pytest.raises(ValueError, match=r"w_k must have w_q's shape \[2, 3, 4\], got \[2, 3, 5\]"):
        decompose_factored(w, np.ones((2, 3, 5)), w, w_o, 3)
    with pytest.raises(ValueError, match=r"w_o must be \(2, outputs, 3\), got shape \[2, 1, 4\]"):
        conserved(w, w, w, np.ones((2, 1, 4)))
    with pytest.raises(ValueError, match=r"w_q must be \(heads, width, dim\), got shape \[3, 4\]"):
        conserved(w[0], w, w, w_o)
    with pytest.raises(ValueError, match=r"w_q must be \(heads, width, 2 covariates \+ 1 tasks\)"):
        decompose_factored(w, w, w, w_o, 2)
    with pytest.raises(ValueError, match="w_v must be finite"):
        decompose_factored(w, w, w * np.nan, w_o, 3)
    with pytest.raises(ValueError, match="scale must be positive"):
        decompose_factored(w, w, w, w_o, 3, scale=0)
