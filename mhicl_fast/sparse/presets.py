"""The settings of the study's runs, by name. They are this project's own."""

from __future__ import annotations

from dataclasses import replace

from ..train.settings import chosen
from .config import SparseConfig

# Rows cost 2 % of the time of small models, each four times 256 prompts.
_SMALL = SparseConfig(preset="small", shortest_context=8, steps=30_000)

PRESETS = {
    config.preset: config
    for config in (
        replace(_SMALL, preset="demo", steps=12_000, eval_prompts=4096),
        _SMALL,
        SparseConfig(
            preset="full",
            shortest_context=8,
            n_layers=6,
            width=256,
            n_prompts=1024,
            learning_rate=1e-3,
            warmup_steps=1000,
            steps=100_000,
            record_prompts=1024,
            eval_prompts=65_536,
        ),
    )
}


def preset(name: str) -> SparseConfig:
    """The preset called `name`; ConfigError naming the nearest one where there is none."""
    return chosen(PRESETS, name)
