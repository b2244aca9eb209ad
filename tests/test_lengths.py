"""Losses at other context lengths: closed forms, both orders, and measurement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spectral_tasks import block_task, demo_task, diagonal_weights, overlapping_task

from mhicl_fast.spectral import ShortContextWarning, asymptotic_loss, spectral_loss
from mhicl_fast.spectral.lengths import length_generalisation, length_generalisation_of_weights
from mhicl_fast.spectral.optima.states import one_head_per_task, one_head_per_task_first_order
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import evaluate, lengths, objective
from mhicl_fast.train.lengths import measure_lengths

LENGTHS = [1, 7, 400, 500, 4000, 10**6]


@pytest.mark.parametrize("task", [demo_task(), block_task((4, 10, 30), 700, noise_std=0.5, signal=[1.0, 2.0, 0.1])])
def test_one_head_per_task_has_the_closed_form(task):
    result = length_generalisation(task, *one_head_per_task(task).values, LENGTHS)
    power = np.asarray(task.signal * task.support_sizes)
    r = np.e * np.asarray(task.noise_factor * task.support_sizes) / task.context_length
    noise = task.noise_std**2 * task.n_tasks if task.noisy_target else 0.0
    for length, loss in zip(LENGTHS, result.loss, strict=True):
        expected = (power * (r**2 + r * task.context_length / length) / (1 + r) ** 2).sum() + noise
        assert loss == pytest.approx(expected, rel=1e-9)
    assert result.floor == pytest.approx((power * r**2 / (1 + r) ** 2).sum() + noise, rel=1e-9)
    assert result.slope == pytest.approx(task.context_length * (power * r / (1 + r) ** 2).sum(), rel=1e-9)
    at_training = length_generalisation(task, *one_head_per_task(task).values, [task.context_length])
    assert at_training.loss[0] == pytest.approx(one_head_per_task(task).loss)


@pytest.mark.filterwarnings("ignore::mhicl_fast.spectral.ShortContextWarning")
@pytest.mark.parametrize("order", ["leading", "first"])
def test_it_is_the_loss_of_the_same_values_at_the_other_length(order):
    task = overlapping_task(noisy_target=True)
    rng = np.random.default_rng(0)
    mu, omega = rng.normal(size=(3, 2)), 0.2 * rng.normal(size=(3, 7))
    kq, ov = diagonal_weights(task, mu, omega)
    values = length_generalisation(task, mu, omega, LENGTHS, order=order)
    full = length_generalisation_of_weights(task, kq, ov, LENGTHS, order=order)
    for k, length in enumerate(LENGTHS):
        other = task.replace(context_length=length)
        assert values.loss[k] == pytest.approx(float(spectral_loss(other, mu, omega, order=order)), rel=1e-9)
        assert full.loss[k] == pytest.approx(float(asymptotic_loss(other, kq, ov, order=order)), rel=1e-9)


def test_short_contexts_warn_at_first_order():
    task = demo_task()
    values = one_head_per_task(task).values
    with pytest.warns(ShortContextWarning, match="L = 7") as caught:
        length_generalisation(task, *values, [4000, 7], order="first")
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_predicted_curve_is_measured():
    """The first order within its neglected terms of the sampled loss, from a quarter to eight times the length."""
    task = block_task((4, 6), 800, noise_std=0.3, noisy_target=True)
    state = one_head_per_task_first_order(task)
    kq, ov = diagonal_weights(task, *state.values)
    tested = [800, 3200, 6400]
    curve = measure_lengths(task, kq, ov, tested, n_prompts=2000, seed=11)
    predicted = length_generalisation(task, *state.values, tested, order="first")
    np.testing.assert_array_equal(curve.lengths, tested)
    gap = np.abs(curve.loss - predicted.loss)
    np.testing.assert_array_less(gap, 4 * curve.standard_error + 0.1 * (predicted.loss - predicted.floor))


def test_measurement_is_evaluation_at_that_length(monkeypatch):
    task = overlapping_task(60, noisy_target=True)
    rng = np.random.default_rng(1)
    kq, ov = torch.as_tensor(0.3 * rng.normal(size=(2, 9, 9))), torch.as_tensor(rng.normal(size=(2, 2, 9)))
    curve = measure_lengths(task, kq, ov, [5, 60, 33], n_prompts=700, seed=4)
    for k, length in enumerate((5, 60, 33)):
        # A shorter context is a prefix of a longer one, so that these are the same prompts.
        alone = evaluate(task.replace(context_length=length), kq, ov, 700, seed=4)
        assert curve.loss[k] == pytest.approx(alone.mean, rel=1e-12)
        assert curve.standard_error[k] == pytest.approx(alone.standard_error, rel=1e-9)
    monkeypatch.setattr(objective, "CHUNK_BYTES", 8 * 60 * task.dim * 256)
    chunked = measure_lengths(task, kq, ov, [5, 60, 33], n_prompts=700, seed=4)
    np.testing.assert_allclose(chunked.loss, curve.loss, rtol=1e-12)
    np.testing.assert_allclose(chunked.standard_error, curve.standard_error, rtol=1e-12)


def test_measurement_holds_a_chunk_at_a_time(monkeypatch):
    task = MultiTaskRegression(3, 1, 10)
    asked = []
    monkeypatch.setattr(
        lengths, "ops", type("Ops", (), {"prompt_attention": lambda c, q, k, o: asked.append(len(c)) or q[:, :1]})
    )
    monkeypatch.setattr(objective, "CHUNK_BYTES", 4 * 500 * 4 * 10)
    measure_lengths(task, torch.zeros(1, 4, 4), torch.zeros(1, 1, 4), [2, 500], n_prompts=25)
    assert asked == [10, 10, 10, 10, 5, 5]


def test_bad_input():
    task = block_task((2,), 500)
    kq, ov = torch.zeros(1, 3, 3), torch.zeros(1, 1, 3)
    for bad in ([], [0], [2.5], [[3]], 7):
        with pytest.raises(ValueError, match="lengths must be a sequence of whole numbers from 1 on"):
            measure_lengths(task, kq, ov, bad)
        with pytest.raises(ValueError, match="lengths must be a sequence of whole numbers from 1 on"):
            length_generalisation(task, np.ones((1, 1)), np.ones((1, 1)), bad)
    with pytest.raises(ValueError, match="lengths must be finite"):
        length_generalisation_of_weights(task, kq, ov, [np.nan])
    with pytest.raises(ValueError, match="n_prompts must be 2 or more"):
        measure_lengths(task, kq, ov, [3], n_prompts=1)
    with pytest.raises(ValueError, match=r"kq must be \(heads, 3, 3\)"):
        measure_lengths(task, kq[:, :2], ov, [3])
    with pytest.raises(ValueError, match="order must be one of"):
        length_generalisation(task, np.ones((1, 1)), np.ones((1, 1)), [3], order="second")
