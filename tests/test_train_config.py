"""Configurations: presets, settings from text, and what a wrong one is answered with."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from mhicl_fast.presets import PRESETS, preset
from mhicl_fast.train import AdamW, ConfigError, RunConfig
from mhicl_fast.train.taskspec import parse_covariance, parse_signal, parse_support


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_json_keeps_a_configuration(config: RunConfig) -> None:
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_are_the_known_settings() -> None:
    """d, I, L, H, N, estimator, parameters, start, optimizer, learning rate, steps of the published studies."""
    expected = {
        "multi-task": (50, 3, 100, 3, 1000, "conditional", "factored", "decomposable", "sgd", 1e-2, 100_000),
        "single-task": (50, 1, 100, 8, 10_000, "sampled", "factored", "decomposable", "sgd", 1e-2, 100_000),
        "demystified": (5, 1, 40, 2, 256, "sampled", "factored", "random", "adam", 1e-3, 500_001),
        "superposition": (6, 2, 48, 3, 256, "sampled", "factored", "random", "adam", 1e-3, 500_001),
    }
    for name, values in expected.items():
        c = preset(name)
        got = (c.dim_x, c.n_tasks, c.context_length, c.n_heads, c.n_prompts, c.estimator, c.parameters, c.start)
        assert (*got, c.optimizer, c.learning_rate, c.steps) == values
        assert c.scale is None
        assert c.momentum == 0
    demo = preset("demo")
    assert (demo.dim_x, demo.n_tasks, demo.context_length, demo.n_heads) == (30, 3, 400, 3)
    assert (demo.estimator, demo.parameters, demo.scale, demo.start, demo.optimizer) == (
        "conditional",
        "factored",
        1.0,
        "small",
        "flow",
    )


def test_preset_tasks() -> None:
    def blocks(name: str) -> list[list[int]]:
        return [row.nonzero().flatten().tolist() for row in preset(name).task().support]

    assert blocks("demo") == [list(range(10)), list(range(10, 20)), list(range(20, 30))]
    assert blocks("multi-task") == [list(range(16)), list(range(16, 33)), list(range(33, 50))]
    assert blocks("superposition") == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert blocks("single-task") == [list(range(50))]
    for name, signal, noise_std, noisy_target in (
        ("demo", [1.0] * 3, 0.1, True),
        ("multi-task", [1.0] * 3, 0.0, False),
        ("demystified", [0.2], math.sqrt(0.1), True),
        ("superposition", [0.25] * 2, math.sqrt(0.1), True),
    ):
        task = preset(name).task()
        assert task.signal.tolist() == pytest.approx(signal)
        assert task.noise_std == pytest.approx(noise_std)
        assert task.noisy_target is noisy_target


def test_presets_write_rows_and_checkpoints_in_measure() -> None:
    for config in PRESETS.values():
        assert 250 < config.steps / config.record_every < 2100
        assert config.checkpoint_every % config.record_every == 0  # so that spans of steps are cut once, not twice
        assert 5 < config.steps / config.checkpoint_every <= 500


def test_settings_are_read_by_type() -> None:
    config = preset("demo").with_settings(
        ["n_heads=4", "steps=2e3", "learning_rate=1e-2", "step_cap=none", "noisy_target=no", "dtype=float64",
         "estimator=sampled", "signal=1,0.5,2", "optimizer=sgd", "momentum=0.5", "covariance=ar:0.5", "seed=7"]
    )  # fmt: skip
    assert (config.n_heads, config.steps, config.learning_rate, config.step_cap) == (4, 2000, 0.01, None)
    assert type(config.steps) is int
    assert config.noisy_target is False
    assert config.torch_dtype() is torch.float64
    assert config.task().signal.tolist() == [1, 0.5, 2]
    assert config.task().covariance[0, 2] == 0.25
    assert config.preset == "demo"
    assert preset("demo").n_heads == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("n_head=4", r"unknown key 'n_head'; the nearest valid one is 'n_heads'"),
        ("lr=0.1", r"unknown key 'lr'"),
        ("contextlength=9", r"the nearest valid one is 'context_length'"),
        ("learning-rate=9", r"the nearest valid one is 'learning_rate'"),
        ("preset=demo", r"preset names the preset that a run starts from and cannot be set"),
        ("n_heads", r"expected key=value, got 'n_heads'"),
        ("n_heads=0", r"n_heads must be at least 1, got 0; the nearest valid value is 1"),
        ("n_heads=2.6", r"n_heads must be an integer, got 2.6; the nearest valid value is 3"),
        ("n_heads=many", r"n_heads must be an integer, got 'many'"),
        ("n_prompts=inf", r"n_prompts must be finite, got inf"),
        ("learning_rate=fast", r"learning_rate must be a number, such as 0.01, got 'fast'"),
        ("learning_rate=0", r"learning_rate must be greater than 0, got 0"),
        ("learning_rate=nan", r"learning_rate must be finite, got nan"),
        ("momentum=1", r"momentum must be less than 1, got 1"),
        ("seed=-1", r"seed must be at least 0, got -1; the nearest valid value is 0"),
        ("seed=5e18", r"seed must be at most 4611686018427387903"),
        ("estimator=conditionel", r"one of sampled, conditional, subspace, asymptotic, .* nearest .* is conditional"),
        ("optimizer=gradient", r"must be one of flow, sgd, adam, adamw, got 'gradient'; the nearest valid value is"),
        ("parameters=combine", r"the nearest valid value is combined"),
        ("dtype=double", r"dtype must be one of float32, float64, got 'double'"),
        ("dtype=float16", r"dtype must be one of float32, float64"),
        ("noisy_target=maybe", r"noisy_target must be true or false, got 'maybe'"),
        ("optimizer=adam", r"step_cap limits optimizer=flow, got optimizer=adam; use step_cap=none"),
        ("momentum=0.5", r"momentum belongs to optimizer=sgd"),
        ("weight_decay=0.1", r"weight_decay belongs to optimizer=adamw, got optimizer=flow; use weight_decay=none"),
        ("weight_decay=-1", r"weight_decay must be at least 0, got -1"),
        ("start=random", r"which estimator=conditional cannot take; use estimator=sampled"),
        ("support=0:4", r"support must be all, blocks or 3 ranges"),
        ("support=0:4,4:8,8:99", r"first:end with 0 ≤ first < end ≤ 30, got '8:99'"),
        ("signal=1,2", r"signal must be 1 or 3 numbers, got 2"),
        ("signal=big", r"signal must be a number, numbers separated by commas, or 1/d, got 'big'"),
        ("signal=-1", r"signal"),
        ("covariance=ar:2", r"needs −1 < ρ < 1, got '2'"),
        ("covariance=[[1,2],[2,1]]", r"covariance"),
        ("covariance=toeplitz", r"covariance must be identity, ar:ρ or a JSON matrix"),
        ("dim_x=2", r"support=blocks needs dim_x ≥ n_tasks, got 2 and 3"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_answered_with_what_is_valid(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preset("demo").with_settings([setting])


def test_weight_decay() -> None:
    for setting, expected in (("none", 0.01), ("0", 0.0), ("0.3", 0.3)):
        config = preset("demystified").with_settings(["optimizer=adamw", f"weight_decay={setting}"])
        optimizer = config.make_optimizer()
        assert isinstance(optimizer, AdamW)
        assert optimizer.weight_decay == expected
        assert not config.follows_flow
    assert preset("demo").follows_flow


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'multitask'; the nearest one is 'multi-task'"):
        preset("multitask")


def test_stored_configurations_are_checked() -> None:
    values = preset("demo").to_dict()
    with pytest.raises(ConfigError, match="the configuration lacks steps"):
        RunConfig.from_dict({key: value for key, value in values.items() if key != "steps"})
    with pytest.raises(ConfigError, match="unknown key 'heads'"):
        RunConfig.from_dict(values | {"heads": 3})
    with pytest.raises(ConfigError, match="n_heads must be of type int, got '3'"):
        RunConfig.from_dict(values | {"n_heads": "3"})
    with pytest.raises(ConfigError, match="noisy_target must be of type bool, got 1"):
        RunConfig.from_dict(values | {"noisy_target": 1})


def test_every_key_is_described() -> None:
    described = dict(RunConfig.describe())
    assert set(described) == {field.name for field in dataclasses.fields(RunConfig)} - {"preset"}
    assert all(described.values())


def test_task_texts() -> None:
    assert parse_support("all", 3, 2).all()
    assert parse_support("0:1+2:3,1:3", 3, 2).tolist() == [[True, False, True], [False, True, True]]
    assert parse_signal("1/d", parse_support("0:1,0:4", 4, 2)).tolist() == [1.0, 0.25]
    assert parse_covariance("identity", 3) is None
    given = parse_covariance("[[2, 0.5], [0.5, 1]]", 2)
    assert given is not None
    assert given.tolist() == [[2, 0.5], [0.5, 1]]


def test_evaluation_prompts_are_fresh() -> None:
    config = preset("demo")
    assert config.evaluation_seed != config.seed
    assert dataclasses.replace(config, seed=2**62 - 1).evaluation_seed < 2**63


def test_the_reduction_does_not_tell_one_run_from_another() -> None:
    tree = preset("demo").with_settings(["reduction=tree"])
    assert tree == preset("demo")
    assert RunConfig.from_dict(json.loads(tree.to_json())).reduction == "tree"
    old = {key: value for key, value in tree.to_dict().items() if key != "reduction"}
    assert RunConfig.from_dict(old).reduction == "all-reduce"
    with pytest.raises(ConfigError, match="reduction must be one of all-reduce, tree"):
        preset("demo").with_settings(["reduction=ring"])
    with pytest.raises(ConfigError, match="reduction=tree is for CPUs, got device=cuda; use reduction=all-reduce"):
        tree.with_settings(["device=cuda"])
