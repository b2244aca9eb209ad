"""Predicted against measured numbers of attended examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spectral_tasks import block_task, demo_task, diagonal_weights, overlapping_task, small_start

from mhicl_fast import ops
from mhicl_fast.spectral import solve
from mhicl_fast.spectral.attention import effective_examples, effective_examples_of_weights
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train.records import EffectiveExamples


def measured(task, kq, prompts, seed=0):
    """Mean of 1/Σ p² over prompts, and its standard error, each (H,)."""
    drawn = task.sample(prompts, seed=seed, dtype=kq.dtype)
    _, overlaps = ops.prompt_moments(drawn.context, drawn.query, kq)
    values = (1 / overlaps.diagonal(dim1=1, dim2=2)).numpy()
    return values.mean(0), values.std(0) / prompts**0.5


def heads_of(task, attention):
    """Weights with one ω for all covariates and Σ d ω² = each of the given values."""
    omega = np.sqrt(np.asarray(attention) / task.dim_x)[:, None] * np.ones(task.dim_x)
    return diagonal_weights(task, np.zeros((len(omega), task.n_tasks)), omega)[0], omega


@pytest.mark.parametrize(
    ("dim", "length", "prompts", "within"),
    [  # within: the relative error that the documentation states, at v = 0.1, 0.5, 1 and 2
        (10, 40, 4000, (0.01, 0.06, 0.18, 0.5)),
        (5, 400, 3000, (0.01, 0.015, 0.05, 0.15)),
        (30, 400, 2000, (0.01, 0.015, 0.06, 0.25)),
        (10, 4000, 400, (0.01, 0.015, 0.04, 0.1)),
    ],
)
def test_predicted_examples_are_those_attended_to(dim, length, prompts, within):
    task = block_task((dim,), length)
    kq, omega = heads_of(task, [0.1, 0.5, 1.0, 2.0])
    spread = effective_examples(task, omega)
    mean, error = measured(task, kq, prompts)
    np.testing.assert_allclose(spread.attention, [0.1, 0.5, 1.0, 2.0])
    np.testing.assert_array_less(np.abs(spread.examples - mean), np.array(within) * mean + 3 * error)
    np.testing.assert_allclose(spread.leading, length * np.exp(-spread.attention))
    assert (spread.leading < spread.examples).all()
    if length == 4000:  # e^−v misses by more than the errors; the average over queries does not
        assert mean[2] - spread.leading[2] > 4 * error[2]


def test_beyond_the_covering_regime_the_prediction_is_low():
    task = block_task((10,), 400)
    kq, omega = heads_of(task, [2.9, 3.1, 6.0, 11.9, 12.1])
    spread = effective_examples(task, omega)
    assert spread.regime.tolist() == ["covers", "between", "between", "between", "condenses"]
    mean, error = measured(task, kq, 1000)
    assert (spread.examples < mean + 3 * error).all()
    assert mean[-1] < 0.03 * 400  # few examples hold the weight
    assert effective_examples(task, np.full((1, 10), 50.0)).examples.tolist() == [1]


def test_full_matrices_and_covariances():
    rng = np.random.default_rng(0)
    root = np.eye(6) + 0.3 * rng.normal(size=(6, 6))
    plain = MultiTaskRegression(6, 2, 2000)
    correlated = plain.replace(covariance=torch.as_tensor(root @ root.T))
    kq = torch.zeros(3, 8, 8, dtype=torch.float64)
    kq[:, :6, :6] = torch.as_tensor(0.12 * rng.normal(size=(3, 6, 6)))
    for task in (plain, correlated):
        spread = effective_examples_of_weights(task, kq)
        mean, error = measured(task, kq, 1500)
        np.testing.assert_array_less(np.abs(spread.examples - mean), 0.03 * mean + 4 * error)
    inner = kq[:, :6, :6].numpy()
    np.testing.assert_allclose(effective_examples_of_weights(plain, kq).attention, np.square(inner).sum((1, 2)))
    # Rotations on both sides change nothing, and diagonal weights are their values.
    turn = torch.as_tensor(np.linalg.qr(rng.normal(size=(6, 6)))[0])
    turned = kq.clone()
    turned[:, :6, :6] = turn @ kq[:, :6, :6]
    np.testing.assert_allclose(
        effective_examples_of_weights(plain, turned).examples, effective_examples_of_weights(plain, kq).examples
    )
    overlapping, omega = overlapping_task(), 0.3 * rng.normal(size=(2, 7))
    diagonal = diagonal_weights(overlapping, np.zeros((2, 2)), omega)[0]
    one, other = effective_examples(overlapping, omega), effective_examples_of_weights(overlapping, diagonal)
    for left, right in zip(one[:3], other[:3], strict=True):
        np.testing.assert_allclose(left, right)


def test_along_a_trajectory():
    """The balanced flow goes from attending to all examples to L (1 + 2/d)^−d/2 of them, about L/e."""
    task = demo_task().replace(context_length=400)
    trajectory = solve(task, *small_start(0), t_end=500.0)
    spread = effective_examples(task, trajectory.omega)
    assert spread.examples.shape == (len(trajectory.t), 3)
    np.testing.assert_allclose(spread.examples[0], 400, rtol=1e-2)
    np.testing.assert_allclose(spread.examples[-1], 400 * 1.2**-5, rtol=1e-2)
    np.testing.assert_allclose(spread.leading[-1], 400 / np.e, rtol=1e-2)
    probe = EffectiveExamples(task, 0, torch.float64)
    support = np.asarray(task.support, float)
    for k in np.linspace(0, len(trajectory.t) - 1, 12).astype(int):
        kq, _ = diagonal_weights(task, trajectory.mu[k], trajectory.omega[k] @ support)
        # 32 prompts whose N_eff differ by 40 % have a standard error of 7 %.
        np.testing.assert_allclose(spread.examples[k], probe(kq), rtol=0.2)
        mean, error = measured(task, kq, 500, seed=1)
        np.testing.assert_array_less(np.abs(spread.examples[k] - mean), 0.06 * mean + 4 * error)


def test_bad_input():
    task = block_task((3,), 100)
    kq = torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match=r"kq must be \(..., heads, 4, 4\), got shape \[4, 4\]"):
        effective_examples_of_weights(task, kq[0])
    kq[0, 3, 0] = 0.5
    with pytest.raises(ValueError, match=r"KQ\[:, 3:, :3\] = 0, got an entry of size 0.5"):
        effective_examples_of_weights(task, kq)
    with pytest.raises(ValueError, match="omega must be"):
        effective_examples(task, np.ones((2, 4)))
    with pytest.raises(ValueError, match="identity covariance"):
        effective_examples(task.replace(covariance=2 * torch.eye(3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="at least 1 example, got 0"):
        effective_examples(task.replace(context_length=0), np.ones((1, 3)))
