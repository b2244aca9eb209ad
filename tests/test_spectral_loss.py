"""The loss in semi-singular values and in full matrices: against each other, differences, and simulation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from spectral_tasks import block_task, demo_task, diagonal_weights, overlapping_task

from mhicl_fast.reference import prompt_moments
from mhicl_fast.spectral import (
    ShortContextWarning,
    asymptotic_loss,
    atoms,
    diagonal,
    spectral_gradient,
    spectral_loss,
)
from mhicl_fast.tasks import MultiTaskRegression

ORDERS = ("leading", "first")


def one_head_each(sizes, own_omega, own_mu, off_omega=0.0, off_mu=0.0):
    """μ, ω (I, I), given on the diagonal in units of √d and 1/√d."""
    root = np.sqrt(np.array(sizes, float))
    same = np.eye(len(sizes), dtype=bool)
    return np.where(same, own_mu * root, off_mu), np.where(same, own_omega / root, off_omega)


def random_point(task, heads=3, seed=0, size=0.25):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(heads, task.n_tasks)), size * rng.normal(size=(heads, task.dim_x))


@pytest.mark.parametrize(
    ("sizes", "length", "own_omega", "simulated", "error", "leading", "first"),
    [
        ((10, 10), 100, 1.0, 5.609, 0.046, 5.170, 6.226),
        ((10, 10), 400, 1.0, 3.163, 0.024, 2.973, 3.237),
        ((20, 20), 400, 1.0, 7.269, 0.05, 6.919, 7.380),
        ((5, 5, 5), 200, 1.0, 2.908, 0.022, 2.618, 3.206),
        ((30, 30), 1000, 0.3, 38.54, 0.14, 38.578, 38.606),
    ],
)
@pytest.mark.filterwarnings("ignore::mhicl_fast.spectral.ShortContextWarning")
def test_known_losses(sizes, length, own_omega, simulated, error, leading, first):
    task = block_task(sizes, length, noise_std=0.5, noisy_target=True)
    mu, omega = one_head_each(sizes, own_omega, 0.7, off_omega=0.05, off_mu=0.1)
    assert spectral_loss(task, mu, omega) == pytest.approx(leading, abs=6e-4)
    assert spectral_loss(task, mu, omega, order="first") == pytest.approx(first, abs=6e-4)
    if length >= 400:  # where the expansion is meant to be used it is within 3 % of simulation
        assert spectral_loss(task, mu, omega, order="first") == pytest.approx(simulated, rel=0.03, abs=error)


@pytest.mark.filterwarnings("ignore::mhicl_fast.spectral.ShortContextWarning")
def test_one_head_per_task_losses():
    short = block_task((5,), 40, signal=0.2, noise_std=0.1**0.5, noisy_target=True)
    omega = np.array([[5**-0.5]])
    mu = omega / (omega**2 + np.e * 1.1 / 40)
    assert spectral_loss(short, mu, omega) == pytest.approx(0.372, abs=5e-4)
    assert spectral_loss(short, mu, omega, order="first") == pytest.approx(0.574, abs=5e-4)
    omega = np.eye(3) / np.sqrt(10)
    mu = np.eye(3) * 3.0785
    assert spectral_loss(demo_task(), mu, omega) == pytest.approx(0.8247, abs=5e-5)
    assert spectral_loss(demo_task(), mu, omega, order="first") == pytest.approx(1.034, abs=5e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("task", [overlapping_task(), block_task((2, 3), 700, unread=2, noise_std=0.3)])
def test_gradient_matches_differences(task, order):
    mu, omega = random_point(task)
    step = 1e-5
    for which, gradient in enumerate(spectral_gradient(task, mu, omega, order=order)):
        shifts = step * np.eye(gradient.size).reshape(-1, *gradient.shape)
        ahead, behind = ([mu, omega], [mu, omega])
        ahead[which], behind[which] = ahead[which] + shifts, behind[which] - shifts
        difference = (spectral_loss(task, *ahead, order=order) - spectral_loss(task, *behind, order=order)) / (2 * step)
        np.testing.assert_allclose(gradient.reshape(-1), difference, atol=1e-8)


def test_first_order_gradient_matches_autograd_of_full_matrices():
    task = overlapping_task()
    mu, omega = random_point(task, seed=1)
    kq, ov = diagonal_weights(task, mu, omega)
    kq.requires_grad_()
    ov.requires_grad_()
    asymptotic_loss(task, kq, ov).backward()
    by_mu, by_omega = spectral_gradient(task, mu, omega, order="first")
    of_diagonal = diagonal(kq.grad, ov.grad, task)
    np.testing.assert_allclose(of_diagonal.mu, by_mu, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(of_diagonal.omega, by_omega, rtol=1e-10, atol=1e-12)


def test_diagonal_formula_is_the_full_one_on_diagonal_weights():
    task = overlapping_task(noisy_target=True)
    mu, omega = random_point(task, heads=4, seed=2)
    kq, ov = diagonal_weights(task, mu, omega)
    first = spectral_loss(task, mu, omega, order="first")
    assert float(asymptotic_loss(task, kq, ov)) == pytest.approx(float(first), rel=1e-12)
    # At leading order the two differ in exp tr(W_hᵀW_g) against det(G)^−½ alone.
    determinant = np.prod(1 - 2 * omega[:, None] * omega[None], -1) ** -0.5
    exponential = np.exp(omega @ omega.T)
    per_task = np.asarray(task.signal) * np.asarray(task.support).sum(1) + task.noise_std**2
    pairs = np.einsum("i,hi,gi->hg", per_task, mu, mu)
    difference = (pairs * (determinant - exponential)).sum() / task.context_length
    leading = spectral_loss(task, mu, omega)
    full = float(asymptotic_loss(task, kq, ov, order="leading"))
    assert full - float(leading) == pytest.approx(difference, rel=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_per_task_omega_is_per_covariate_omega_that_agrees(order):
    task = block_task((2, 4, 1), 800, unread=2, noise_std=0.2, signal=[1.0, 0.5, 2.0])
    rng = np.random.default_rng(3)
    mu, omega = rng.normal(size=(5, 2, 3)), 0.3 * rng.uniform(-1, 1, size=(5, 2, 3))
    spread = omega @ np.asarray(task.support, float)
    one_by_one = [spectral_loss(task, m, w, order=order) for m, w in zip(mu, spread, strict=True)]
    batched = spectral_loss(task, mu, omega, order=order)
    assert batched.shape == (5,)
    np.testing.assert_allclose(batched, one_by_one, rtol=1e-12)
    together = spectral_gradient(task, mu, omega, order=order)[1]
    each = spectral_gradient(task, mu, spread, order=order)[1]
    np.testing.assert_allclose(together, each @ np.asarray(task.support, float).T, rtol=1e-10)


def test_leading_dimensions_broadcast():
    task = overlapping_task()
    rng = np.random.default_rng(4)
    mu, omega = rng.normal(size=(3, 1, 2, 2)), 0.2 * rng.normal(size=(4, 2, 7))
    loss = spectral_loss(task, torch.as_tensor(mu), omega, order="first")
    assert loss.shape == (3, 4)
    assert loss.dtype == np.float64
    assert loss[2, 1] == pytest.approx(float(spectral_loss(task, mu[2, 0], omega[1], order="first")), rel=1e-13)


def test_noisy_target_adds_label_noise():
    mu, omega = random_point(overlapping_task())
    kq, ov = diagonal_weights(overlapping_task(), mu, omega)
    quiet, noisy = overlapping_task(), overlapping_task(noisy_target=True)
    assert spectral_loss(noisy, mu, omega) - spectral_loss(quiet, mu, omega) == pytest.approx(2 * 0.4**2)
    assert float(asymptotic_loss(noisy, kq, ov) - asymptotic_loss(quiet, kq, ov)) == pytest.approx(2 * 0.4**2)


def simulated_finite_context_loss(task, kq, ov, prompts, seed):
    """What a finite context adds to the loss, (mean, standard error); coefficients and label noise integrated out.

    Two parts of each prompt's loss with known mean are left out, which is what makes the rest measurable: the loss with
    an infinite context, a_h = r_h = Σ W_h x_q, and what is linear in the average (1/L) Σ_l w_lh (x_l − r_h), of mean 0,
    where w_lh = exp(x_l·W_h x_q − E ..) are the attention weights before normalisation, of mean 1.
    """
    generator = torch.Generator().manual_seed(seed)
    d, factor = task.dim_x, task.covariance_factor
    factor = torch.eye(task.dim_x, dtype=torch.float64) if factor is None else factor
    u, w = ov[:, :, d:], kq[:, :d, :d]
    own = torch.eye(task.n_tasks, dtype=torch.float64)
    strength = task.signal[:, None] * task.support.double()  # λ_j on S_j, (J, C)

    contexts = torch.randn(prompts, task.context_length, d, generator=generator, dtype=torch.float64) @ factor.T
    queries = torch.randn(prompts, d, generator=generator, dtype=torch.float64) @ factor.T
    keys = torch.einsum("hbc,nc->nhb", w, queries)
    limit = keys @ factor @ factor.T  # r (N, H, d)
    moments, overlaps = prompt_moments(contexts, queries, w)
    unnormalised = torch.exp(keys @ contexts.transpose(1, 2) - (keys * limit).sum(-1, keepdim=True) / 2)
    linear = unnormalised @ contexts - unnormalised.sum(-1, keepdim=True) * limit
    linear = linear / task.context_length

    at_limit = own[:, :, None] * queries[:, None, None, :] - torch.einsum("hij,nhc->nijc", u, limit)
    change = -torch.einsum("hij,nhc->nijc", u, moments - limit)
    linear_change = -torch.einsum("hij,nhc->nijc", u, linear)
    added = 2 * at_limit * (change - linear_change) + change**2
    losses = torch.einsum("jc,nijc->n", strength, added)
    losses = losses + task.noise_std**2 * torch.einsum("hij,gij,nhg->n", u, u, overlaps)
    return float(losses.mean()), float(losses.std() / prompts**0.5)


@pytest.mark.parametrize("correlated", [False, True])
def test_full_matrices_against_simulation(correlated):
    rng = np.random.default_rng(5)
    covariance = None
    if correlated:
        root = rng.normal(size=(4, 4)) * 0.4 + np.eye(4)
        covariance = torch.as_tensor(root @ root.T)
    support = torch.tensor([[True, True, True, False], [False, False, True, True]])
    task = MultiTaskRegression(4, 2, 1000, support=support, signal=[0.6, 1.5], noise_std=0.7, covariance=covariance)
    kq, ov = torch.zeros(3, 6, 6, dtype=torch.float64), torch.zeros(3, 2, 6, dtype=torch.float64)
    kq[:, :4, :4] = torch.as_tensor(rng.normal(size=(3, 4, 4)) * (0.07 if correlated else 0.11))
    ov[:, :, 4:] = torch.as_tensor(rng.normal(size=(3, 2, 2)))
    runs = np.array([simulated_finite_context_loss(task, kq[:, :4, :4], ov, 1500, seed) for seed in range(3)])
    mean, error = runs[:, 0].mean(), np.sqrt((runs[:, 1] ** 2).sum()) / len(runs)
    # Contexts of 10¹² leave the loss without its 1/L terms.
    limit = float(asymptotic_loss(task.replace(context_length=10**12), kq, ov))
    first = float(asymptotic_loss(task, kq, ov)) - limit
    leading = float(asymptotic_loss(task, kq, ov, order="leading")) - limit
    assert abs(first - leading) > 3 * error  # the simulation resolves the first-order terms
    assert abs(first - mean) < 4 * error + 0.01 * abs(first)  # and they are right, but for the next order in 1/L


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("correlated", [False, True])
def test_asymptotic_loss_gradcheck(order, correlated):
    rng = np.random.default_rng(6)
    root = np.eye(3) + 0.2 * rng.normal(size=(3, 3))
    support = torch.tensor([[True, True, False], [False, True, True]])
    covariance = torch.as_tensor(root @ root.T) if correlated else None
    task = MultiTaskRegression(3, 2, 500, support=support, noise_std=0.3, covariance=covariance)

    def loss(w, u):
        kq = torch.nn.functional.pad(w, (0, 2, 0, 2))
        return asymptotic_loss(task, kq, torch.nn.functional.pad(u, (3, 0)), order=order)

    w = torch.as_tensor(0.12 * rng.normal(size=(2, 3, 3))).requires_grad_()
    u = torch.as_tensor(rng.normal(size=(2, 2, 2))).requires_grad_()
    assert torch.autograd.gradcheck(loss, (w, u))
    assert torch.autograd.gradgradcheck(loss, (w, u))


def test_rotations_inside_supports_change_nothing():
    rng = np.random.default_rng(7)
    task = block_task((3, 2), 600, noise_std=0.4, signal=[1.0, 2.0])
    rotation = torch.eye(7, dtype=torch.float64)
    for block in (slice(0, 3), slice(3, 5)):
        size = block.stop - block.start
        rotation[block, block] = torch.as_tensor(np.linalg.qr(rng.normal(size=(size, size)))[0])
    mu, omega = random_point(task)
    kq, ov = diagonal_weights(task, mu, omega)
    turned = rotation.T @ kq @ rotation
    assert float(asymptotic_loss(task, turned, ov)) == pytest.approx(float(asymptotic_loss(task, kq, ov)), rel=1e-12)


def correlated_case(support):
    """A task with a random covariance and random weights on five covariates and two labels."""
    rng = np.random.default_rng(8)
    root = np.diag([1.4, 0.5, 1.1, 0.7, 0.9]) + 0.3 * rng.normal(size=(5, 5))
    covariance = torch.as_tensor(root @ root.T)
    task = MultiTaskRegression(5, 2, 500, support=support, signal=[0.6, 1.5], noise_std=0.7, covariance=covariance)
    kq, ov = torch.zeros(3, 7, 7, dtype=torch.float64), torch.zeros(3, 2, 7, dtype=torch.float64)
    kq[:, :5, :5] = torch.as_tensor(0.07 * rng.normal(size=(3, 5, 5)))
    ov[:, :, 5:] = torch.as_tensor(rng.normal(size=(3, 2, 2)))
    return task, kq, ov


@pytest.mark.parametrize("order", ORDERS)
def test_rotating_covariates_with_their_covariance_changes_nothing(order):
    task, kq, ov = correlated_case(support=None)
    rotation = torch.linalg.qr(torch.as_tensor(np.random.default_rng(9).normal(size=(5, 5))))[0]
    rotated = task.replace(covariance=rotation @ task.covariance @ rotation.T)
    turned = kq.clone()
    turned[:, :5, :5] = rotation @ kq[:, :5, :5] @ rotation.T
    expected = float(asymptotic_loss(task, kq, ov, order=order))
    assert float(asymptotic_loss(rotated, turned, ov, order=order)) == pytest.approx(expected, rel=1e-12)


def test_infinite_context_attends_to_covariance_times_key():
    """a_h → Σ W_h x_q: the loss without 1/L terms is Σ_ij λ_j E ‖S_j (δ_ij x_q − Σ_h U_h[i,j] Σ W_h x_q)‖²."""
    support = torch.tensor([[True, True, True, False, False], [False, False, True, True, False]])
    task, kq, ov = correlated_case(support)
    covariance, w, u = task.covariance.numpy(), kq[:, :5, :5].numpy(), ov[:, :, 5:].numpy()
    expected = 0.0
    for i, j in np.ndindex(2, 2):
        residual = (i == j) * np.eye(5) - np.einsum("h,hab->ab", u[:, i, j], covariance @ w)
        selected = residual[support[j].numpy()]
        expected += float(task.signal[j]) * np.trace(selected @ covariance @ selected.T)
    without = float(asymptotic_loss(task.replace(context_length=10**13), kq, ov))
    assert without == pytest.approx(expected, rel=1e-10)


def test_where_the_average_does_not_exist_there_is_an_error():
    task = block_task((2, 2), 500)
    omega = np.eye(2) / np.sqrt(2)  # 1/√d at d = 2: exactly the edge
    kq, ov = diagonal_weights(task, np.eye(2), omega @ np.asarray(task.support, float))
    for call in (spectral_loss, spectral_gradient):
        with pytest.raises(ValueError, match="does not exist"):
            call(task, np.eye(2), 1.0001 * omega, order="first")
    for order in ORDERS:
        with pytest.raises(ValueError, match="does not exist"):
            asymptotic_loss(task, 1.0001 * kq, ov, order=order)
    assert np.isfinite(spectral_loss(task, np.eye(2), omega))
    assert np.isfinite(spectral_loss(task, np.eye(2), 0.999 * omega, order="first"))
    with pytest.raises(ValueError, match="overflows"):
        spectral_loss(task, np.eye(2), 100 * omega)


def test_first_order_warns_for_short_contexts_only():
    task = block_task((5,), 399)
    values = (np.ones((1, 1)), np.full((1, 1), 0.1))
    kq, ov = diagonal_weights(task, values[0], np.full((1, 5), 0.1))
    with pytest.warns(ShortContextWarning, match="L = 399"):
        spectral_loss(task, *values, order="first")
    with pytest.warns(ShortContextWarning):
        asymptotic_loss(task, kq, ov)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectral_loss(task, *values)
        spectral_loss(task.replace(context_length=400), *values, order="first")


def test_bad_inputs_are_named():
    task = overlapping_task()
    mu, omega = random_point(task)
    kq, ov = diagonal_weights(task, mu, omega)
    wrong = [
        ((mu[:, :1], omega), "mu must be .* 2 tasks"),
        ((mu, omega[:2]), "mu has 3 heads, omega has 2"),
        ((mu, omega[:, :5]), r"omega must be .* got shape \[3, 5\]"),
        ((mu, mu), "supports overlap"),
        ((mu * np.nan, omega), "mu must be finite, got 6 NaN"),
        ((np.zeros((5, 3, 2)), np.zeros((4, 3, 7))), "do not broadcast"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            spectral_loss(task, *arguments)
    with pytest.raises(ValueError, match="order must be one of"):
        spectral_loss(task, mu, omega, order="second")
    with pytest.raises(TypeError, match="real numbers"):
        spectral_loss(task, mu * 1j, omega)
    correlated = overlapping_task(covariance=torch.eye(7, dtype=torch.float64) + 0.1)
    with pytest.raises(ValueError, match="identity covariance"):
        spectral_loss(correlated, mu, omega)
    identity = overlapping_task(covariance=torch.eye(7, dtype=torch.float64))
    assert spectral_loss(identity, mu, omega) == spectral_loss(task, mu, omega)

    reads_labels = kq.clone()
    reads_labels[1, 8, 0] = 1e-9
    reads_covariates = ov.clone()
    reads_covariates[0, 1, 3] = 1e-9
    never_matters = kq.clone()
    never_matters[:, :, 7:] = 3.0
    assert asymptotic_loss(task, never_matters, ov) == asymptotic_loss(task, kq, ov)
    for arguments, message in [
        ((reads_labels, ov), r"kq\[:, 7:, :7\] must be 0"),
        ((kq, reads_covariates), r"ov\[:, :, :7\] must be 0"),
        ((kq[0], ov), "kq must be"),
        ((kq, ov[:2]), "ov must be"),
        ((kq, ov.float()), "must agree"),
    ]:
        with pytest.raises(ValueError, match=message):
            asymptotic_loss(task, *arguments)
    with pytest.raises(TypeError, match="floating-point"):
        asymptotic_loss(task, kq.long(), ov)


def test_atoms_partition_the_covariates():
    partition = atoms(overlapping_task())
    assert partition.class_of.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert partition.count.tolist() == [2, 2, 2, 1]
    assert partition.reads.astype(int).tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]
    scattered = atoms(np.array([[0, 1, 0, 1], [1, 0, 1, 0]]))
    assert scattered.class_of.tolist() == [0, 1, 0, 1]
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    np.testing.assert_array_equal(partition.compress(partition.expand(values)), values)
    with pytest.raises(ValueError, match="support must be"):
        atoms(np.ones(3))


def test_diagonal_and_its_residual():
    task = overlapping_task()
    mu, omega = random_point(task)
    kq, ov = diagonal_weights(task, mu, omega)
    kq[:, :, 7:] = 5.0  # meets the zeros of the query token
    values = diagonal(kq, ov.numpy(), task)
    np.testing.assert_array_equal(values.mu, mu)
    np.testing.assert_array_equal(values.omega, omega)
    assert values.residual == 0
    off = kq.clone()
    off[0, 2, 3] = np.linalg.norm(omega)
    assert diagonal(off, ov, task).residual == pytest.approx(0.5**0.5)
    assert diagonal(0 * kq, 0 * ov, task).residual == 0
    with pytest.raises(ValueError, match="kq must be"):
        diagonal(kq[:, :8], ov, task)
    with pytest.raises(ValueError, match="ov must be"):
        diagonal(kq, ov[:, :, 1:], task)
