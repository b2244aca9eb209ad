"""Gradients averaged over the symmetries of a task: what is left, that nothing else is lost, and who is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mhicl_fast.presets import preset
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import ConfigError, Objective
from mhicl_fast.train.stepping import make_stepper

TASK = MultiTaskRegression(
    6, 2, 30, support=[[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]], noise_std=0.3, noisy_target=True
)  # atoms {0, 1}, {2}, {3, 4} and the unread {5}
ATOMS = [[0, 1], [2], [3, 4], [5]]


def symmetric_weights(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kq, ov = torch.zeros(3, 8, 8, dtype=torch.float64), torch.zeros(3, 2, 8, dtype=torch.float64)
    for h in range(3):
        for atom in ATOMS:
            kq[h, atom, atom] = torch.randn((), generator=generator, dtype=torch.float64)
        ov[h, [0, 1], [6, 7]] = torch.randn(2, generator=generator, dtype=torch.float64)
    return kq, ov


@pytest.mark.parametrize("estimator", ["sampled", "conditional", "subspace"])
def test_it_is_the_average_of_the_plain_gradient(estimator: str) -> None:
    kq, ov = symmetric_weights(1)
    loss, plain_kq, plain_ov = Objective(TASK, estimator, 100, 3)(kq, ov, 2)
    averaged = Objective(TASK, estimator, 100, 3, symmetric=True)(kq, ov, 2)
    expected_kq, expected_ov = torch.zeros_like(kq), torch.zeros_like(ov)
    for atom in ATOMS:
        expected_kq[:, atom, atom] = plain_kq[:, atom, atom].mean(-1, keepdim=True)
    expected_ov[:, [0, 1], [6, 7]] = plain_ov[:, [0, 1], [6, 7]]
    assert averaged.loss == loss
    torch.testing.assert_close(averaged.grad_kq, expected_kq, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(averaged.grad_ov, expected_ov, rtol=0, atol=0)


def test_the_population_gradient_is_left_alone() -> None:
    """Averaging removes what is noise: over independent batches the difference is 0 within errors."""
    kq, ov = symmetric_weights(2)
    differences = []
    for seed in range(80):
        plain = Objective(TASK, "conditional", 256, seed)(kq, ov, 0)
        averaged = Objective(TASK, "conditional", 256, seed, symmetric=True)(kq, ov, 0)
        differences.append(torch.cat([(a - b).flatten() for a, b in zip(plain[1:], averaged[1:], strict=True)]))
    values = torch.stack(differences)
    error = values.std(0) / len(values) ** 0.5
    z = (values.mean(0) / error)[error > 1e-12]
    assert len(z) > 60
    assert float(z.abs().max()) < 4.5
    assert 0.6 < float(z.square().mean()) < 1.5


@pytest.mark.parametrize("name", ["demo", "multi-task", "single-task"])
def test_runs_stay_symmetric(name: str) -> None:
    config = preset(name).with_settings(["symmetric=true", "estimator=conditional", "n_prompts=64"])
    parameters = config.start_parameters()
    stepper = make_stepper(config.objective(), parameters, config.make_optimizer())
    assert stepper.advance(0, 20, 0.0, float("inf")).steps == 20
    assert stepper.advance(20, 5, 0.0, float("inf")).steps == 5  # the weights are checked again
    d = config.dim_x
    kq, _ = parameters.to_combined()
    block = kq[:, :d, :d]
    assert not (block - torch.diag_embed(block.diagonal(dim1=1, dim2=2))).any()


def test_other_weights_are_refused() -> None:
    kq, ov = symmetric_weights(3)
    objective = Objective(TASK, "conditional", 100, 3, symmetric=True)
    for part, at in ((kq, (1, 0, 0)), (kq, (0, 3, 2)), (ov, (2, 0, 7)), (ov, (0, 1, 2))):
        changed = part.clone()
        changed[at] += 0.1
        weights = (changed, ov) if part is kq else (kq, changed)
        with pytest.raises(ValueError, match="needs weights that these leave alone"):
            objective(*weights, 0)


def test_bad_configurations() -> None:
    with pytest.raises(ConfigError, match="got start=random"):
        preset("demystified").with_settings(["symmetric=true"])
    with pytest.raises(ConfigError, match="got correlated ones"):
        preset("demo").with_settings(["symmetric=true", "covariance=ar:0.5"])
    with pytest.raises(ConfigError, match="got estimator='asymptotic'"):
        preset("demo").with_settings(["symmetric=true", "estimator=asymptotic"])
