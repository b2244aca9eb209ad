"""Noise of gradient estimates: against closed forms, against brute force, and prompts chosen by it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mhicl_fast.cli import main
from mhicl_fast.presets import preset
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import (
    Combined,
    ConfigError,
    LossAndGradients,
    Objective,
    RunConfig,
    initial_parameters,
    pull_back,
)
from mhicl_fast.train.precision import (
    GradientNoise,
    Noise,
    _noise,
    choose_prompts,
    gradient_error_summary,
    gradient_noise,
    prompts_for_error,
)

SMALL = RunConfig(
    dim_x=4, n_tasks=2, context_length=20, support="blocks", n_heads=2, start="small", start_size=0.3, steps=3,
    eval_prompts=4096, record_every=1, checkpoint_every=1, noise_std=0.3, dtype="float64",
)  # fmt: skip


def uniform_attention(dim_x: int, label: float) -> Combined:
    """One head and one task: KQ = 0, the label block `label`."""
    ov = torch.zeros(1, 1, dim_x + 1, dtype=torch.float64)
    ov[:, :, -1] = label
    return Combined(torch.zeros(1, dim_x + 1, dim_x + 1, dtype=torch.float64), ov)


def squared_errors(objective: Objective, weights: Combined, count: int) -> tuple[float, float]:
    """E|ĝ − g|² of an objective's gradient in KQ and OV together, and |g|², from `count` of its steps."""
    kq, ov = weights.to_combined()
    draws = torch.stack([torch.cat([x.flatten() for x in objective(kq, ov, step)[1:]]) for step in range(count)])
    variance = float(draws.var(0).sum())
    return variance, float(draws.mean(0).square().sum()) - variance / count


def test_known_noise_is_found_with_its_standard_error() -> None:
    """Gaussian gradients of known mean and covariance: ρ within its error bars, which are as wide as ρ scatters."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.1, 3, 30, dtype=torch.float64)
    mean = torch.randn(30, generator=generator, dtype=torch.float64)
    size, repeats = 50, 400
    expected = float(spread.norm() / mean.norm())
    found = [
        _noise(mean + spread * torch.randn(64, 30, generator=generator, dtype=torch.float64) / math.sqrt(size), size)
        for _ in range(repeats)
    ]
    relative, errors = (np.array([getattr(noise, key) for noise in found]) for key in ("relative", "standard_error"))
    scatter = relative.std()
    assert abs(relative.mean() - expected) < 4 * scatter / math.sqrt(repeats) + 0.005 * expected
    assert errors.mean() == pytest.approx(scatter, rel=0.15)
    assert np.mean([noise.absolute for noise in found]) == pytest.approx(float(spread.norm()), rel=0.01)
    assert np.mean([noise.gradient_norm for noise in found]) == pytest.approx(float(mean.norm()), rel=0.01)


def test_noise_of_uniform_attention_is_that_of_the_closed_form() -> None:
    """KQ = 0, one task of d covariates, label block μ, σ = 0: with x̄ and C the context's mean and covariance

    ∂U = 2λ (μ|x̄|² − x_q·x̄),    ∂KQ = C (2λ (μ² x̄ − μ x_q)) x_qᵀ,    L C ~ Wishart(L − 1), independent of x̄.
    """
    d, length, mu, signal = 5, 12, 1.7, 0.8
    task = MultiTaskRegression(d, 1, length, signal=signal)
    noise = gradient_noise(task, uniform_attention(d, mu), n_prompts=1 << 16, seed=3)
    ov_square = 2 / d + length / (mu**2 * d)
    freedom = length - 1
    second = 4 * signal**2 * (mu**4 * d * d / length + mu**2 * d * (d + 2)) * freedom * (freedom + d + 1) / length**2
    mean = 4 * signal**2 * mu**2 * (freedom / length) ** 2 * d
    for measured, expected in ((noise.ov, ov_square), (noise.kq, second / mean - 1)):
        assert abs(measured.relative - math.sqrt(expected)) < 4 * measured.standard_error
        assert measured.standard_error < 0.12 * measured.relative
    assert noise.kq.gradient_norm == pytest.approx(math.sqrt(mean), rel=0.05)
    # All trained tensors: both blocks' noise over both blocks' gradient.
    assert noise.trained.absolute**2 == pytest.approx(noise.kq.absolute**2 + noise.ov.absolute**2, rel=1e-9)
    assert noise.n_prompts == 1 << 16


@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_error_falls_like_one_over_the_root_of_the_prompts(estimator: str) -> None:
    task, weights = SMALL.task(), Combined(*SMALL.start_parameters().to_combined())
    noise = gradient_noise(task, weights, estimator=estimator, n_prompts=1 << 15).trained
    for n_prompts in (64, 256):
        variance, _ = squared_errors(Objective(task, estimator, n_prompts, seed=9), weights, 200)
        assert math.sqrt(variance) == pytest.approx(noise.absolute / math.sqrt(n_prompts), rel=0.12)
        assert noise.error(n_prompts) == noise.relative / math.sqrt(n_prompts)


def test_chosen_prompts_give_the_requested_error_in_the_trained_tensors() -> None:
    task, start = SMALL.task(), SMALL.start_parameters()
    chosen, noise = prompts_for_error(task, start, 0.2, estimator="conditional")
    assert chosen % 16 == 0
    assert noise.trained.error(chosen) <= 0.2 < noise.trained.error(chosen - 16)
    assert noise.trained.standard_error <= 0.1 * noise.trained.relative
    kq, ov = start.to_combined()

    def gradient(step: int) -> Tensor:
        _, *gradients = Objective(task, "conditional", chosen, seed=17)(kq, ov, step)
        return torch.cat([x.flatten() for x in pull_back(start, *gradients).values()])

    draws = torch.stack([gradient(step) for step in range(300)])
    error = float(draws.var(0).sum().sqrt() / draws.mean(0).norm())
    assert error == pytest.approx(0.2, rel=0.04 + 3 * noise.trained.standard_error / noise.trained.relative)


def test_smaller_errors_take_their_square_more_prompts() -> None:
    start = SMALL.start_parameters()
    few, many = (prompts_for_error(SMALL.task(), start, e, estimator="conditional").n_prompts for e in (0.2, 0.02))
    assert many / few == pytest.approx(100, rel=0.2)


def test_a_gradient_that_is_not_resolved_has_no_relative_error() -> None:
    """Weights 0: the gradient's mean is 0, and its noise in OV is not."""
    noise = gradient_noise(MultiTaskRegression(3, 1, 8), uniform_attention(3, 0.0), estimator="sampled", n_prompts=2048)
    assert noise.ov.relative > 10  # chance leaves a mean of the size of noise, or none
    assert noise.ov.standard_error > 0.1 * noise.ov.relative or noise.ov.relative == math.inf
    assert noise.ov.absolute > 0
    assert noise.kq == Noise(math.inf, math.inf, 0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative_error": 0.0}, "must be a positive number, got 0.0"),
        ({"relative_error": math.nan}, "must be a positive number, got nan"),
        ({"relative_error": math.inf}, "must be a positive number, got inf"),
        ({"estimator": "asymptotic"}, "asymptotic loss takes no prompts"),
        ({"relative_error": 1e-4}, "takes more prompts per step than 1048576 with estimator=conditional"),
        ({"estimator": "exact"}, "estimator must be one of"),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"relative_error": 0.1, "estimator": "conditional"} | changes
    task = MultiTaskRegression(4, 2, 6, support=[[1, 1, 0, 0], [0, 0, 1, 1]])
    start = initial_parameters(task, 2, start="small", size=0.1, seed=0)
    if changes.get("relative_error") == 1e-4:  # |g| is at most a few times the noise of 2²⁰ prompts
        start = uniform_attention(4, 0.05)
        task = MultiTaskRegression(4, 1, 6)
    with pytest.raises(ValueError, match=message):
        prompts_for_error(task, start, **arguments)


def test_too_few_prompts_to_measure_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 128, got 127"):
        gradient_noise(SMALL.task(), SMALL.start_parameters(), n_prompts=127)


def test_measurements_are_repeatable_and_apart_from_training(monkeypatch: pytest.MonkeyPatch) -> None:
    task, start = SMALL.task(), SMALL.start_parameters()
    first, again = (gradient_noise(task, start, n_prompts=256, seed=4) for _ in range(2))
    assert isinstance(first, GradientNoise)
    assert first == again
    assert first != gradient_noise(task, start, n_prompts=256, seed=5)
    seen: list[int] = []
    call = Objective.__call__

    def recorded(objective: Objective, kq: Tensor, ov: Tensor, step: int) -> LossAndGradients:
        seen.append(step)
        return call(objective, kq, ov, step)

    monkeypatch.setattr(Objective, "__call__", recorded)
    gradient_noise(task, start, n_prompts=128)
    assert min(seen) >= 1 << 31


def test_a_configuration_takes_the_prompts_of_its_gradient_error() -> None:
    config, noise = choose_prompts(SMALL.with_settings(["gradient_error=0.1"]))
    assert config.n_prompts != SMALL.n_prompts
    assert config.gradient_error == 0.1
    assert noise.trained.error(config.n_prompts) <= 0.1
    assert RunConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="gradient_error=none"):
        choose_prompts(SMALL)
    with pytest.raises(ConfigError, match="takes more prompts per step"):
        choose_prompts(SMALL.with_settings(["gradient_error=0.0001"]))
    with pytest.raises(ConfigError, match="takes no prompts"):
        SMALL.with_settings(["gradient_error=0.1", "estimator=asymptotic"])


def test_summary_of_the_errors() -> None:
    config, noise = choose_prompts(SMALL.with_settings(["gradient_error=0.1"]))
    start = config.start_parameters()
    summary = gradient_error_summary(config, start)
    assert summary is not None
    assert summary["requested"] == 0.1
    assert summary["n_prompts"] == config.n_prompts
    assert summary["measured_at_start"] == summary["measured_at_end"]
    measured = summary["measured_at_start"]
    assert abs(measured["relative_error"] - 0.1) < 4 * math.hypot(
        measured["standard_error"], noise.trained.standard_error / math.sqrt(config.n_prompts)
    )
    assert measured["noise_over_start"] == pytest.approx(measured["relative_error"])
    still = Combined(torch.zeros(2, 6, 6, dtype=torch.float64), torch.zeros(2, 2, 6, dtype=torch.float64))
    unresolved = gradient_error_summary(config, still)
    assert unresolved is not None
    assert unresolved["measured_at_end"]["relative_error"] is None
    json.dumps(unresolved, allow_nan=False)
    assert gradient_error_summary(SMALL.with_settings(["estimator=asymptotic"]), start) is None


def test_the_command_chooses_once_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["steps=2", "context_length=20", "eval_prompts=512", "record_every=1", "start_size=0.3"]
    folder = tmp_path / "run"
    command = ["run", "demo", "--set", *settings, "--gradient-error", "0.3", "--out", str(folder)]
    assert main(command) == 0
    stored = json.loads((folder / "config.json").read_text())["config"]
    assert stored["gradient_error"] == 0.3
    assert f"{stored['n_prompts']} prompts per step: measured at the start" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["gradient_error"]["n_prompts"] == stored["n_prompts"]
    assert summary["prompts_seen"] == 2 * stored["n_prompts"]
    assert main(["resume", str(folder)]) == 0
    assert "prompts per step: measured" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gradient-error", "0.1", "--set", "n_prompts=100"], "give one of the two"),
        (["--gradient-error", "-1"], "gradient_error must be greater than 0"),
        (["--gradient-error", "often"], "gradient_error"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "demo", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_symmetric_gradients_are_measured_as_they_are_used() -> None:
    config = preset("multi-task").with_settings(["estimator=subspace"])
    start = config.start_parameters()
    plain, symmetric = (
        gradient_noise(config.task(), start, estimator="subspace", n_prompts=512, symmetric=symmetric)
        for symmetric in (False, True)
    )
    assert symmetric.kq.relative < plain.kq.relative / 10
