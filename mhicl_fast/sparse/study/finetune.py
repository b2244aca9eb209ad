"""The brief training that follows pruning: a run of its own, which `begin` starts from the pruned weights."""

from __future__ import annotations

from dataclasses import replace

from ..config import SparseConfig

LEARNING_RATE_SHARE = 0.5  # of the run's learning rate
TUNING_SEEDS = 1 << 32  # beyond the seed of a run is that of its brief training


def pruned_run(config: SparseConfig, steps: int) -> SparseConfig:
    """The settings of that run for one that kept all heads of its first layer and one of each other: fewer steps,
    smaller ones, a warm-up of a tenth of them, and prompts that no other run has."""
    return replace(
        config,
        steps=steps,
        learning_rate=config.learning_rate * LEARNING_RATE_SHARE,
        warmup_steps=steps // 10,
        later_heads=1,
        head_dim=config.layers()[0].head_dim,
        seed=config.seed + TUNING_SEEDS,
    )
