"""The analysis of any weights: against planted values, for what does not apply, and for bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mhicl_fast import spectral
from mhicl_fast.report import Analysis, analyse
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import evaluate, initial_parameters
from mhicl_fast.train.wording import uncertain

TASK = MultiTaskRegression(8, 2, 100, support=np.eye(2).repeat(4, 1), noise_std=0.2, noisy_target=True)


def planted(mu: list[list[float]], omega: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Decomposable weights kq (H, D, D), ov (H, I, D) of TASK with one ω per task."""
    kq, ov = torch.zeros(len(mu), 10, 10, dtype=torch.float64), torch.zeros(len(mu), 2, 10, dtype=torch.float64)
    kq[:, :8, :8] = torch.diag_embed(torch.tensor(omega, dtype=torch.float64).repeat_interleave(4, 1))
    ov[:, :, 8:] = torch.diag_embed(torch.tensor(mu, dtype=torch.float64))
    return kq, ov


def test_analysis_of_planted_weights() -> None:
    mu, omega = [[2.0, 0.1], [-2.0, 0.0], [0.05, 1.5]], [[0.3, 0.02], [-0.3, 0.0], [0.0, 0.5]]
    kq, ov = planted(mu, omega)
    found = analyse(TASK, kq, ov, n_prompts=2048, seed=3, lengths=[50, 100, 400])
    assert isinstance(found, Analysis)
    assert found.loss == evaluate(TASK, kq, ov, 2048, seed=3)
    np.testing.assert_allclose(found.decomposition.mu, mu, atol=1e-12)
    np.testing.assert_allclose(found.decomposition.omega, np.repeat(omega, 4, 1), atol=1e-12)
    assert max(found.departures.values()) < 1e-12
    assert found.roles is not None
    assert found.roles.pairs == [(0, 1)]
    assert found.attention is not None
    gaps = (found.examples.mean - found.attention.examples) / found.attention.examples
    assert np.abs(gaps).max() < 0.15
    np.testing.assert_array_equal(found.lengths.lengths, [50, 100, 400])
    leading = found.predicted_lengths["leading"]
    assert leading.loss[1] == pytest.approx(float(spectral.spectral_loss(TASK, mu, omega)))
    assert found.notes == {}
    printed = str(found)
    for words in ("heads 0 and 1", "theory: one head per task, leading order", uncertain(*found.loss), "Bayes risk"):
        assert words in printed


def test_examples_are_measured_on_the_drawn_prompts() -> None:
    kq = torch.randn(2, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
    ov = torch.zeros(2, 2, 10, dtype=torch.float64)
    found = analyse(TASK, kq, ov, n_prompts=2, length_prompts=2, seed=4).examples
    prompts = TASK.sample(found.n_prompts, seed=4, dtype=torch.float64)
    weights = torch.einsum("nld,hde,ne->nhl", prompts.context, kq, prompts.query).softmax(-1)
    each = 1 / weights.square().sum(-1)
    np.testing.assert_allclose(found.mean, each.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, each.std(0) / found.n_prompts**0.5, rtol=1e-9)


def test_analysis_says_what_does_not_apply() -> None:
    task = TASK.replace(covariance=0.5 * np.eye(8) + 0.5)
    kq, ov = planted([[2.0, 0.1]], [[0.3, 0.9]])
    found = analyse(task, kq, ov, n_prompts=64, length_prompts=16)
    assert found.roles is None
    assert found.predicted_lengths == {}  # 2 ‖W‖² > 1
    assert set(found.notes) == {"roles", "predicted_lengths, leading order", "predicted_lengths, first order"}
    assert found.notes["roles"] == "known for covariates whose covariance is the identity only"
    assert "left out: roles" in str(found)
    plain = analyse(TASK, kq, ov, n_prompts=64, length_prompts=16)  # 2 ω² > 1: the first order does not exist
    assert set(plain.predicted_lengths) == {"leading"}
    assert "first-order loss does not exist" in plain.notes["predicted_lengths, first order"]


def test_predictions_for_correlated_covariates() -> None:
    task = TASK.replace(covariance=0.3 * np.eye(8) + 0.1, context_length=400)
    kq, ov = planted([[1.5, 0.1], [0.0, 1.5]], [[0.4, 0.0], [0.0, 0.4]])
    expected = spectral.asymptotic_loss(task, kq, ov, order="leading")
    kq[:, 8:, :8], ov[:, :, :8] = 1e-3, 1e-3  # left out
    found = analyse(task, kq, ov, n_prompts=64, lengths=[400], length_prompts=4096)
    assert found.predicted_lengths["leading"].loss[0] == pytest.approx(float(expected))
    np.testing.assert_allclose(found.lengths.loss, found.predicted_lengths["first"].loss, rtol=0.05)
    assert found.attention is not None
    np.testing.assert_allclose(found.attention.examples, found.examples.mean, rtol=0.05)
    assert set(found.remarks) == {"attention", "predicted_lengths"}
    assert "covariate block" in found.length_source


@pytest.mark.parametrize("heads", [1, 3])
def test_analysis_of_a_random_start_and_single_values(heads: int) -> None:
    task = MultiTaskRegression(1, 1, 10, noise_std=0.1)
    kq, ov = initial_parameters(task, heads, start="random", seed=1, dtype=torch.float32).to_combined()
    found = analyse(task, kq, ov, n_prompts=64, length_prompts=16)
    assert found.decomposition.omega.shape == (heads, 1)
    assert found.lengths.lengths.tolist() == [2, 5, 10, 20, 40]
    assert len(str(found).splitlines()) > 10


def test_a_loss_that_was_measured_is_not_measured_again() -> None:
    kq, ov = planted([[2.0, 0.1]], [[0.3, 0.1]])
    done = evaluate(TASK, kq, ov, 64, seed=1)
    assert analyse(TASK, kq, ov, n_prompts=64, length_prompts=16, loss=done).loss is done


def test_bad_weights() -> None:
    kq, ov = planted([[2.0, 0.1]], [[0.3, 0.1]])
    with pytest.raises(ValueError, match="kq must be"):
        analyse(TASK, kq[:, :9], ov)
    with pytest.raises(TypeError, match="must both be float32 or both float64"):
        analyse(TASK, kq, ov.float())
    with pytest.raises(ValueError, match="whole numbers from 1 on"):
        analyse(TASK, kq, ov, n_prompts=8, lengths=[0])
    with pytest.raises(ValueError, match="must be finite"):
        analyse(TASK, kq * float("nan"), ov, n_prompts=8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"task": "demo"}, TypeError, "task must be a MultiTaskRegression"),
        ({"kq": np.zeros((1, 5, 5))}, TypeError, "kq must be a torch tensor, got ndarray"),
        ({"n_prompts": 1.5}, TypeError, "n_prompts must be an integer"),
        ({"n_prompts": 1}, ValueError, "n_prompts must be 2 or more"),
    ],
)
def test_analyse_names_bad_arguments(change, error, message):
    task = MultiTaskRegression(4, 1, 20)
    arguments = {"task": task, "kq": torch.zeros(1, 5, 5), "ov": torch.zeros(1, 1, 5)} | change
    with pytest.raises(error, match=message):
        analyse(**arguments)


def test_far_from_decomposable_weights_come_with_a_caution():
    torch.manual_seed(0)
    task = MultiTaskRegression(4, 1, 50)
    random = str(analyse(task, 0.1 * torch.randn(2, 5, 5), 0.1 * torch.randn(2, 1, 5), n_prompts=64, length_prompts=8))
    assert "those of the nearest decomposable weights" in random
    assert "first order" not in "".join(line for line in random.splitlines() if line.startswith("loss at"))
