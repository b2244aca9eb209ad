"""Growth rates of full weights: against dense Hessians and against the rates of the semi-singular values."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
from spectral_tasks import block_task, diagonal_weights
from test_matrix_flow import TASK, combined, factored, generic

from mhicl_fast.spectral import asymptotic_loss, theory
from mhicl_fast.spectral.asymptotic import exponential_loss
from mhicl_fast.spectral.stability import stability
from mhicl_fast.train import Combined, population_loss
from mhicl_fast.train.matrix.stability import matrix_stability


def one_head_per_task(task, heads, state):
    """(μ (H, I), ω (H, d), balanced factored weights of scale 1)."""
    mu, omega = np.zeros((2, heads, task.n_tasks))
    own = np.arange(task.n_tasks)
    mu[own, own], omega[own, own] = state.mu, state.omega
    omega = omega @ np.asarray(task.support, float)
    v, kappa = np.sqrt(mu), np.sqrt(omega)
    return mu, omega, factored(task, v, v, kappa, kappa, scale=1.0)


@pytest.mark.parametrize("order", ["leading", "first"])
def test_rates_are_eigenvalues_of_the_hessian(order):
    task = block_task((2, 2), 500, noise_std=0.3)
    for weights in generic(task, 2):
        tensors = list(weights.tensors().values())

        def loss(*leaves, weights=weights):
            kq, ov = weights.with_tensors(dict(zip(weights.tensors(), leaves, strict=True))).to_combined()
            kq, ov = kq.clone(), ov.clone()
            mask_kq, mask_ov = torch.zeros_like(kq), torch.zeros_like(ov)
            mask_kq[:, :4, :4] = mask_ov[:, :, 4:] = 1
            return asymptotic_loss(task, kq * mask_kq, ov * mask_ov, order=order)

        blocks = torch.autograd.functional.hessian(loss, tuple(tensors))
        sizes = [tensor.numel() for tensor in tensors]
        dense = torch.cat([torch.cat([b.reshape(n, -1) for b in row], 1) for row, n in zip(blocks, sizes)])
        expected = torch.linalg.eigvalsh(-dense).flip(0).numpy()
        found = matrix_stability(task, weights, order=order, n_rates=4)
        np.testing.assert_allclose(found.every.rates, expected[:4], rtol=1e-8, atol=1e-9)
        assert found.every.lowest == pytest.approx(expected[-1], rel=1e-8)
        assert (found.inside, found.outside) == (None, None)
        gradient = torch.autograd.functional.jacobian(loss, tuple(tensors))
        assert found.velocity == pytest.approx(float(sum(g.square().sum() for g in gradient) ** 0.5), rel=1e-10)


@pytest.mark.parametrize("heads", [2, 3])
@pytest.mark.parametrize("order", ["leading", "first"])
def test_inside_rates_are_those_of_the_semi_singular_values(order, heads):
    """Leading order with exponentials, whose diagonal restriction the spectral flow is."""
    states = theory(TASK, heads)
    if order == "first":
        objective, options, state = TASK, {"order": "first"}, states.one_head_per_task_first_order
    else:
        objective, options = partial(exponential_loss, TASK), {"dim_x": TASK.dim_x}
        state = states.one_head_per_task
    mu, omega, weights = one_head_per_task(TASK, heads, state)
    for parameters, name in ((weights, "unbalanced"), (combined(weights), "combined")):
        found = matrix_stability(objective, parameters, n_rates=12, **options)
        expected = stability(TASK, mu, omega, parameters=name, order=order)
        np.testing.assert_allclose(found.inside.rates, expected.rates[:12], atol=1e-7)
        assert found.inside.lowest == pytest.approx(expected.rates[-1], rel=1e-7)
        assert found.velocity == pytest.approx(expected.velocity, abs=1e-7)
        # No direction outside leaves faster than the fastest inside: as fast with factors, not at all without.
        fastest = expected.rates[0] if name == "unbalanced" else 0
        assert found.outside.rates[0] == pytest.approx(fastest, abs=1e-6) or found.outside.rates[0] < 0
        assert found.every.rates[0] == pytest.approx(max(found.inside.rates[0], found.outside.rates[0]), abs=1e-7)


def test_sets_that_the_hessian_mixes_have_no_rates_of_their_own():
    mu, omega = np.array([[1.3], [-0.4]]), np.array([[0.2, 0.25, 0.3], [0.1, 0.1, 0.1]])
    task = block_task((3,), 50, noise_std=0.5)
    weights = Combined(*diagonal_weights(task, mu, omega))
    apart = matrix_stability(task, weights, order="leading", n_rates=99)
    both = np.sort(np.concatenate([apart.inside.rates, apart.outside.rates]))[::-1]
    np.testing.assert_allclose(apart.every.rates, both, atol=1e-10)

    root = np.random.default_rng(0).normal(size=(3, 3))
    correlated = task.replace(covariance=torch.as_tensor(root @ root.T / 3 + 0.5 * np.eye(3)))
    prompts = partial(population_loss, task, estimator="conditional", n_prompts=16, seed=0, step=0)
    for mixing in (
        matrix_stability(correlated, weights, order="leading"),
        matrix_stability(prompts, weights, dim_x=3),
    ):
        assert (mixing.inside, mixing.outside) == (None, None)


def test_directions():
    _, _, weights = one_head_per_task(TASK, 2, theory(TASK, 2).one_head_per_task_first_order)
    found = matrix_stability(TASK, weights, n_rates=2)
    v_o, v_v = found.inside.directions["w_o"][0], found.inside.directions["w_v"][0]
    for part in (v_o, v_v):
        assert float(part.square().sum()) == pytest.approx(0.5)
    outputs = torch.arange(2)
    torch.testing.assert_close(v_o[:, outputs, outputs + 5], -v_v[:, outputs + 5, outputs + 5])
    off_diagonal = found.outside.directions["w_o"].clone()
    off_diagonal[:, :, outputs, outputs + 5] = 0
    torch.testing.assert_close(off_diagonal, found.outside.directions["w_o"], rtol=0, atol=0)


def test_lanczos_agrees_with_dense_rates(monkeypatch):
    _, _, weights = one_head_per_task(TASK, 2, theory(TASK, 2).one_head_per_task_first_order)
    dense = matrix_stability(TASK, combined(weights), n_rates=3)
    monkeypatch.setattr(sys.modules[matrix_stability.__module__], "_DENSE", 0)
    iterated = matrix_stability(TASK, combined(weights), n_rates=3)
    for name in ("every", "inside", "outside"):
        one, other = getattr(dense, name), getattr(iterated, name)
        assert one.rates[0] == pytest.approx(other.rates[0], abs=1e-8)
        assert one.lowest == pytest.approx(other.lowest, abs=1e-8)


def test_functions_and_bad_arguments():
    kq, ov = diagonal_weights(TASK, np.ones((1, 2)), np.full((1, 5), 0.2))
    weights = Combined(kq, ov)
    found = matrix_stability(lambda kq, ov: kq.sum() + ov.square().sum(), weights, n_rates=2)
    assert found.inside is None
    assert found.every.lowest == pytest.approx(-2)
    assert found.every.rates[0] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="n_rates must be at least 1"):
        matrix_stability(TASK, weights, n_rates=0)
    with pytest.raises(TypeError, match="float64"):
        matrix_stability(TASK, Combined(kq.float(), ov.float()))
    with pytest.raises(ValueError, match="loss must be finite"):
        matrix_stability(lambda kq, ov: kq.sum() * np.nan, weights)
    with pytest.raises(ValueError, match="does not exist"):
        matrix_stability(TASK, Combined(4 * kq, ov))
