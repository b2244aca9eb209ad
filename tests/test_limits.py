"""Where native runs of the presets end: the loss there, by every estimate, against plain NumPy on prompts of the
sampler's definition."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from mhicl_fast import sampling
from mhicl_fast.presets import preset
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Objective, RunConfig
from mhicl_fast.train.stepping import make_stepper

# Enough of each preset to come near its limit in some seconds; with less noise where that is cheap.
SHORT = {
    "demo": ["estimator=subspace", "n_prompts=64"],
    "multi-task": ["estimator=subspace", "symmetric=true", "n_prompts=16", "learning_rate=0.1", "steps=10000"],
    "single-task": ["estimator=subspace", "symmetric=true", "n_prompts=16", "learning_rate=0.1", "steps=4000"],
    "demystified": ["steps=30000"],
    "superposition": ["steps=30000"],
}


def squared_errors(task: MultiTaskRegression, kq: Tensor, ov: Tensor, n_prompts: int, seed: int) -> np.ndarray:
    """‖ŷ − y_q‖² of each prompt by the definitions, in NumPy."""
    scale = task.signal.sqrt().numpy()[:, None] * task.support.numpy()
    weights, outputs = kq.double().numpy(), ov.double().numpy()
    errors = np.empty(n_prompts)
    for prompt in range(n_prompts):
        context, query, target = sampling.multi_task_prompt(
            scale, task.context_length, seed=seed, step=0, prompt=prompt, noise_std=task.noise_std,
            noisy_target=task.noisy_target,
        )  # fmt: skip
        logits = context @ (weights @ query).T
        probabilities = np.exp(logits - logits.max(0))
        probabilities /= probabilities.sum(0)
        errors[prompt] = np.square(np.einsum("hid,lh,ld->i", outputs, probabilities, context) - target).sum()
    return errors


def trained(config: RunConfig) -> tuple[Tensor, Tensor]:
    parameters = config.start_parameters()
    stepper = make_stepper(config.objective(), parameters, config.make_optimizer())
    span = stepper.advance(0, config.steps, 0.0, float("inf"))
    assert span.steps == config.steps
    kq, ov = parameters.to_combined()
    return kq, ov


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_every_estimate_agrees_with_the_definition(name: str) -> None:
    config = preset(name).with_settings(SHORT[name])
    task = config.task()
    kq, ov = trained(config)
    errors = squared_errors(task, kq, ov, 3000, seed=12345)
    mean, error = errors.mean(), errors.std() / len(errors) ** 0.5
    estimates = ["sampled"] if config.start == "random" else ["sampled", "conditional", "subspace"]
    for estimator in estimates:
        batches = [Objective(task, estimator, 4000, seed)(kq, ov, 0).loss for seed in range(20)]
        own_error = np.std(batches) / len(batches) ** 0.5
        assert abs(np.mean(batches) - mean) < 3 * np.hypot(error, own_error), estimator
