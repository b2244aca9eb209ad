"""The hand-derived gradient of the closed-form loss against automatic differentiation, and the exponential loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spectral_tasks import block_task, diagonal_weights, overlapping_task

from mhicl_fast.spectral import asymptotic_loss, spectral_loss
from mhicl_fast.spectral.asymptotic import DomainError, exponential_loss
from mhicl_fast.spectral.asymptotic_gradient import AsymptoticGradient
from mhicl_fast.tasks import MultiTaskRegression

ORDERS = ("leading", "first")


def covariance(d, seed=0):
    root = np.eye(d) + 0.3 * np.random.default_rng(seed).normal(size=(d, d))
    return torch.as_tensor(root @ root.T / np.linalg.norm(root, 2) ** 2)


CASES = {
    "blocks": (block_task((3, 2), 500, noise_std=0.3, signal=[1.0, 0.5]), 3),
    "overlapping": (overlapping_task(), 2),
    "correlated": (overlapping_task(covariance=covariance(7)), 3),
    "unread": (block_task((2, 2), 500, unread=2, noise_std=0.1, noisy_target=True), 4),
    "one head": (block_task((4, 3), 500), 1),
    "smallest": (MultiTaskRegression(1, 1, 500, noise_std=0.2, covariance=[[0.6]]), 1),
}


def random_weights(task, heads, seed=0, size=0.12):
    rng = np.random.default_rng(seed)
    d = task.dim_x
    kq = torch.zeros(heads, task.dim, task.dim, dtype=torch.float64)
    ov = torch.zeros(heads, task.n_tasks, task.dim, dtype=torch.float64)
    kq[:, :d, :d] = torch.as_tensor(size * rng.normal(size=(heads, d, d)))
    ov[:, :, d:] = torch.as_tensor(rng.normal(size=(heads, task.n_tasks, task.n_tasks)))
    return kq, ov


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_automatic_one(case, order):
    task, heads = CASES[case]
    kq, ov = (weights.requires_grad_() for weights in random_weights(task, heads))
    by_kq, by_ov = torch.autograd.grad(asymptotic_loss(task, kq, ov, order=order), (kq, ov))
    d = task.dim_x
    by_w, by_u = AsymptoticGradient(task, order)(kq.detach()[:, :d, :d], ov.detach()[:, :, d:])
    torch.testing.assert_close(by_w, by_kq[:, :d, :d], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(by_u, by_ov[:, :, d:], rtol=1e-11, atol=1e-12)
    assert not by_kq[:, d:].any()
    assert not by_ov[:, :, :d].any()


def test_outside_the_domain_there_is_no_gradient():
    task = block_task((2, 2), 500)
    kq, ov = diagonal_weights(task, np.eye(2), np.full((2, 4), 0.71))
    with pytest.raises(DomainError, match="does not exist"):
        AsymptoticGradient(task, "first")(kq[:, :4, :4], ov[:, :, 4:])
    assert issubclass(DomainError, ValueError)


@pytest.mark.parametrize("case", ["blocks", "overlapping", "unread", "one head"])
def test_exponential_loss_is_the_spectral_one_on_diagonal_weights(case):
    task, heads = CASES[case]
    rng = np.random.default_rng(1)
    mu, omega = rng.normal(size=(heads, task.n_tasks)), 0.6 * rng.normal(size=(heads, task.dim_x))
    kq, ov = diagonal_weights(task, mu, omega)
    expected = float(spectral_loss(task, mu, omega))
    assert float(exponential_loss(task, kq, ov)) == pytest.approx(expected, rel=1e-12)


def test_exponential_loss_is_the_limit_of_leading_order_for_many_covariates():
    """At ω = 1/√d the two differ by a factor 1 + O(1/d) in the variance."""
    gaps = []
    for d in (20, 80):
        task = block_task((d,), 500, noise_std=0.3)
        kq, ov = diagonal_weights(task, np.ones((1, 1)), np.full((1, d), d**-0.5))
        gaps.append(float(asymptotic_loss(task, kq, ov, order="leading") / exponential_loss(task, kq, ov)) - 1)
    assert gaps[0] > 3.5 * gaps[1] > 0


def test_exponential_loss_with_covariance_turns_with_the_covariates():
    task, heads = CASES["correlated"]
    task = task.replace(support=None)
    kq, ov = (weights.requires_grad_() for weights in random_weights(task, heads))
    rotation = torch.linalg.qr(torch.as_tensor(np.random.default_rng(2).normal(size=(7, 7))))[0]
    turned = kq.clone()
    turned[:, :7, :7] = rotation @ kq[:, :7, :7] @ rotation.T
    rotated = task.replace(covariance=rotation @ task.covariance @ rotation.T)
    torch.testing.assert_close(exponential_loss(rotated, turned, ov), exponential_loss(task, kq, ov))
    w, u = kq.detach()[:, :7, :7].requires_grad_(), ov.detach()[:, :, 7:].requires_grad_()
    pad = torch.nn.functional.pad
    assert torch.autograd.gradcheck(lambda w, u: exponential_loss(task, pad(w, (0, 2, 0, 2)), pad(u, (7, 0))), (w, u))
