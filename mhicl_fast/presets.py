"""The settings of public studies, by name. All draw fresh prompts at every step.

Each writes one or two thousand rows of metrics, the short `demo` fewer, and a checkpoint every few seconds of native
steps on two cores, so that storing costs next to nothing and little is lost when a run is killed.
"""

from __future__ import annotations

from dataclasses import replace

from .train.config import RunConfig
from .train.settings import chosen

_DEMYSTIFIED = RunConfig(
    preset="demystified",
    dim_x=5,
    n_tasks=1,
    context_length=40,
    signal="1/d",
    noise_std=0.1**0.5,
    noisy_target=True,
    n_heads=2,
    start="random",
    estimator="sampled",
    n_prompts=256,
    optimizer="adam",
    learning_rate=1e-3,
    steps=500_001,
    record_every=250,
    checkpoint_every=50_000,
    eval_prompts=65_536,
)

PRESETS = {
    config.preset: config
    for config in (
        RunConfig(
            preset="demo",
            dim_x=30,
            n_tasks=3,
            context_length=400,
            support="blocks",
            noise_std=0.1,
            noisy_target=True,
            n_heads=3,
            parameters="factored",
            scale=1.0,
            start="small",
            start_size=0.01,
            estimator="conditional",
            n_prompts=1024,
            optimizer="flow",
            learning_rate=0.04,
            step_cap=0.04,
            steps=1400,
            record_every=5,
            checkpoint_every=250,
            eval_prompts=131_072,
        ),
        RunConfig(
            preset="multi-task",
            dim_x=50,
            n_tasks=3,
            context_length=100,
            support="blocks",
            n_heads=3,
            start="decomposable",
            estimator="conditional",
            n_prompts=1000,
            optimizer="sgd",
            learning_rate=0.01,
            steps=100_000,
            record_every=100,
            checkpoint_every=2000,
        ),
        RunConfig(
            preset="single-task",
            dim_x=50,
            n_tasks=1,
            context_length=100,
            n_heads=8,
            start="decomposable",
            estimator="sampled",
            n_prompts=10_000,
            optimizer="sgd",
            learning_rate=0.01,
            steps=100_000,
            record_every=100,
            checkpoint_every=200,
        ),
        _DEMYSTIFIED,
        replace(
            _DEMYSTIFIED,
            preset="superposition",
            dim_x=6,
            n_tasks=2,
            context_length=48,
            support="0:4,2:6",
            n_heads=3,
        ),
    )
}


def preset(name: str) -> RunConfig:
    """The preset called `name`; ConfigError naming the nearest one where there is none."""
    return chosen(PRESETS, name)
