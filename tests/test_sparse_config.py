"""Configurations of sparse linear regression: presets, settings, and what is made of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mhicl_fast.sparse import PRESETS, SparseConfig, preset
from mhicl_fast.sparse.stepping import context_length
from mhicl_fast.train import ConfigError

TINY = SparseConfig(
    dim_x=5, sparsity=2, context_length=9, shortest_context=4, n_layers=2, n_heads=2, width=12, n_prompts=8,
    n_queries=3, steps=40, warmup_steps=10, record_every=5, record_prompts=16, checkpoint_every=10, eval_prompts=64,
    device="cpu", seed=3,
)  # fmt: skip


@pytest.mark.parametrize("config", [*PRESETS.values(), TINY], ids=[*PRESETS, "tiny"])
def test_json_keeps_a_configuration(config: SparseConfig) -> None:
    assert SparseConfig.from_dict(json.loads(config.to_json())) == config


def test_presets() -> None:
    for name, config in PRESETS.items():
        assert preset(name).preset == name
        task = config.task()
        assert (task.dim_x, task.sparsity, task.context_length) == (16, 4, 40)
        assert task.noise_variance == (0.0, 0.1, 0.4, 0.8)
        assert 50 < config.steps / config.record_every < 2100
        assert config.checkpoint_every % config.record_every == 0
    assert preset("full").width == 256
    assert preset("demo").n_layers == preset("small").n_layers == 3
    for heads in (1, 2, 4, 8):
        model = replace(preset("full"), n_heads=heads).model()
        assert model.shapes == [(heads, 256 // heads)] * preset("full").n_layers
    with pytest.raises(ConfigError, match="unknown preset 'smal'; the nearest one is 'small'"):
        preset("smal")


def test_settings_are_read_by_type() -> None:
    config = preset("small").with_settings(
        ["n_heads=4", "steps=2e4", "noise_variance=0.25", "shortest_context=none", "clip_norm=none",
         "covariance=ar:0.5", "layer_norm=yes", "dtype=float64", "scale=0.5", "seed=7"]
    )  # fmt: skip
    assert (config.n_heads, config.steps, config.clip_norm, config.seed) == (4, 20_000, None, 7)
    assert config.task().noise_variance == (0.25,)
    assert config.task().covariance[0, 2] == 0.25
    assert config.context_lengths() == range(40, 41)
    assert config.model().scales == [0.5] * 3
    assert config.model().read_in.dtype == config.torch_dtype() == torch.float64


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("n_head=4", "unknown key 'n_head'; the nearest valid one is 'n_heads'"),
        ("activation=relu", "activation must be one of softmax, linear, got 'relu'; the nearest valid value is"),
        ("n_heads=3", "width must be a multiple of n_heads, got width=64, n_heads=3"),
        ("sparsity=17", "sparsity must be at most dim_x = 16, got 17"),
        ("shortest_context=41", "shortest_context must be at most context_length = 40, got 41"),
        ("noise_variance=high", "noise_variance must be a number or numbers separated by commas, got 'high'"),
        ("noise_variance=-1", "noise_variance"),
        ("noise_variance=nan", "noise_variance"),
        ("covariance=ar:2", "needs −1 < ρ < 1"),
        ("device=gpu", "device must be auto, cpu, cuda"),
        ("learning_rate=0", "learning_rate must be greater than 0"),
        ("final_learning_rate=1.5", "final_learning_rate must be at most 1"),
        ("beta2=1", "beta2 must be less than 1"),
        ("eval_prompts=1", "eval_prompts must be at least 2"),
        ("steps=0.5", "steps must be an integer"),
        ("preset=full", "cannot be set"),
    ],
)
def test_a_bad_setting_is_answered_with_what_is_valid(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preset("small").with_settings([setting])


def test_every_key_is_described() -> None:
    described = dict(SparseConfig.describe())
    assert set(described) == set(TINY.to_dict()) - {"preset"}
    assert all(described.values())


def test_the_step_size_rises_and_falls() -> None:
    config = replace(TINY, steps=110, learning_rate=0.5, final_learning_rate=0.1)
    rates = [config.learning_rate_at(step) for step in range(111)]
    np.testing.assert_allclose(rates[:10], 0.5 * np.arange(1, 11) / 10)
    assert rates[10] == 0.5
    assert rates[60] == pytest.approx(0.5 * (0.1 + 0.9 / 2))
    assert rates[110] == pytest.approx(0.05)
    assert (np.diff(rates[10:]) < 0).all()
    assert replace(config, warmup_steps=0).learning_rate_at(0) == 0.5
    late = replace(config, warmup_steps=500)
    assert late.learning_rate_at(110) == pytest.approx(0.5 * 111 / 500)


def test_starting_weights_are_a_pure_function_of_the_seed() -> None:
    torch.manual_seed(11)
    expected = torch.rand(5)
    torch.manual_seed(11)
    config = replace(preset("small"), mlp_width=32)
    weights = config.model().tensors()
    assert torch.rand(5).equal(expected)  # PyTorch's own generator is as it was
    again, other = config.model().tensors(), replace(config, seed=1).model().tensors()
    assert all(weights[name].equal(again[name]) for name in weights)
    assert not weights["layers.1.q"].equal(other["layers.1.q"])
    in_double = replace(config, dtype="float64").model().tensors()
    assert all(weights[name].double().equal(in_double[name]) for name in weights)
    spreads = {"read_in": 17, "layers.0.q": 64, "layers.2.v": 64, "layers.1.o": 64 * 3, "layers.0.mlp.2.weight": 32 * 3}
    for name, fan_in in spreads.items():
        size = weights[name].numel()
        variance = weights[name].square().mean() * fan_in
        assert abs(variance - 1) < 5 * math.sqrt(2 / size)
    assert not weights["read_out"].any()
    assert not weights["layers.0.mlp.0.bias"].any()


def test_lengths_are_uniform_over_their_range() -> None:
    lengths = [context_length(TINY, step) for step in range(6000)]
    assert lengths == [context_length(TINY, step) for step in range(6000)]
    counts = np.bincount(lengths, minlength=10)
    assert counts[:4].sum() == 0
    np.testing.assert_allclose(counts[4:], 1000, atol=5 * math.sqrt(1000))
    other = [context_length(replace(TINY, seed=4), step) for step in range(50)]
    assert other != lengths[:50]
    assert {context_length(replace(TINY, shortest_context=None), step) for step in range(50)} == {9}
