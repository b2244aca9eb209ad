"""Axes of sweeps: what their texts stand for, what is refused, and what a list of runs is seen to vary."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mhicl_fast.presets import preset
from mhicl_fast.sweep import expand, parse_axis
from mhicl_fast.sweep.dimensions import Dimension, Group, dimensions, exponent, groups, lines, varied_keys
from mhicl_fast.train import ConfigError

DEMO = preset("demo")


@pytest.mark.parametrize(
    ("text", "keys", "values"),
    [
        ("n_heads=1,2,8", "n_heads", [1, 2, 8]),
        ("seed=0:3", "seed", [0, 1, 2]),
        ("context_length=100:400:100", "context_length", [100, 200, 300]),
        ("seed=7,0:2,1e2", "seed", [7, 0, 1, 100]),
        ("start_size=0.1,1e-3", "start_size", [0.1, 0.001]),
        ("step_cap=none,0.1", "step_cap", [None, 0.1]),
        ("noisy_target=true,no", "noisy_target", [True, False]),
        ("estimator=sampled,conditional", "estimator", ["sampled", "conditional"]),
        ("support=all;0:4,2:6", "support", ["all", "0:4,2:6"]),
        ("signal=1,2,0.5", "signal", ["1,2,0.5"]),
        ("signal=1/d;2", "signal", ["1/d", "2"]),
        ("covariance=identity;[[1,0],[0,1]]", "covariance", ["identity", "[[1,0],[0,1]]"]),
        ("n_tasks/dim_x=1/10,2/20", "n_tasks/dim_x", [(1, 10), (2, 20)]),
    ],
)
def test_values(text: str, keys: str, values: list[Any]) -> None:
    axis = parse_axis(text)
    assert axis.keys == tuple(keys.split("/"))
    assert axis.values == tuple(value if isinstance(value, tuple) else (value,) for value in values)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["n_head=1,2"], "unknown key 'n_head'; the nearest valid one is 'n_heads'"),
        (["n_heads/dimx=1/2"], "unknown key 'dimx'; the nearest valid one is 'dim_x'"),
        (["estimator=sampled,condtional"], "the nearest valid value is conditional"),
        (["n_heads"], "an axis must be key=value,value,…, got 'n_heads'"),
        (["n_heads=1,,2"], "n_heads must be an integer, got ''"),
        (["n_heads=1,x"], "n_heads must be an integer, got 'x'"),
        (["preset=demo"], "cannot be set"),
        (["seed=5:5"], "first < end"),
        (["seed=0:5:0"], "positive step"),
        (["seed=0:x"], "a range of seed must be first:end"),
        (["seed=0:1:2:3"], "a range of seed must be first:end"),
        (["start_size=0:1"], "start_size must be a number"),
        (["seed=1,0:3"], "seed has the value 1 twice"),
        (["n_heads=1,2", "n_heads=3"], "n_heads is varied twice"),
        (["n_prompts=8,16"], "n_prompts is both set and varied"),
        (["n_tasks/dim_x=1/10,2"], "n_tasks/dim_x needs 2 values joined by /, got '2'"),
        (["n_tasks/signal=1/1,2/1"], "signal cannot vary together with other keys"),
        (["seed=0:20000"], "at most 10000 runs"),
        (["seed=0:200", "n_heads=1:100"], "these axes have 19800 combinations"),
        (["dim_x=2,30", "n_heads=1,2"], "the run with dim_x=2, n_heads=1: support=blocks needs dim_x ≥ n_tasks"),
        (["signal=1,2,3,4"], "several values of signal are separated by ;"),
        (["gradient_error=0.1,0.2"], "only `mhicl run` chooses n_prompts by gradient_error"),
        (["start=small,random"], "the run with start=random: start=random has logits that read labels"),
    ],
)  # fmt: skip
def test_bad_axes(axes: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        expand(DEMO, axes, ["n_prompts=64"])
    assert message in str(error.value)


def test_every_combination_once_and_the_last_axis_fastest() -> None:
    runs = expand(DEMO, ["n_heads=1,2", "n_tasks/dim_x=1/10,2/20", "seed=0:3"], ["n_prompts=64"])
    assert [(run.n_heads, run.n_tasks, run.dim_x, run.seed) for run in runs] == [
        (heads, tasks, 10 * tasks, seed) for heads in (1, 2) for tasks in (1, 2) for seed in (0, 1, 2)
    ]
    assert {replace(run, n_heads=3, n_tasks=3, dim_x=30, seed=0) for run in runs} == {replace(DEMO, n_prompts=64)}
    assert expand(DEMO, []) == [DEMO]


def test_settings_need_not_be_valid_without_the_axes() -> None:
    assert [run.n_tasks for run in expand(DEMO, ["n_tasks=1,2"], ["dim_x=2"])] == [1, 2]


def test_what_varies() -> None:
    runs = expand(DEMO, ["seed=0:2", "n_heads=1,2", "n_tasks/dim_x=1/10,2/20"])
    assert varied_keys(runs) == ["dim_x", "n_tasks", "n_heads", "seed"]
    assert dimensions(runs) == [Dimension("n_heads", ()), Dimension("n_tasks", ("dim_x",)), Dimension("seed", ())]
    # a seed of its own for each run does not hide what else varies
    assert dimensions([replace(DEMO, n_heads=heads, seed=10 + heads) for heads in (1, 2, 3)]) == [
        Dimension("n_heads", ("seed",))
    ]
    assert dimensions([DEMO]) == []


def test_groups_are_over_the_seeds_of_finished_runs() -> None:
    rows = [
        {"status": status, "n_heads": heads, "eval_loss": loss, "eval_loss_se": 0.5, "half_learnt": half}
        for status, heads, loss, half in [
            ("finished", 2, 1.0, None), ("finished", 1, 5.0, 7.0), ("finished", 2, 4.0, 3.0), ("failed", 1, None, None),
        ]
    ]  # fmt: skip
    two, one = groups(rows, ["n_heads"])
    assert (two.values, one.values) == ({"n_heads": 2}, {"n_heads": 1})
    assert two.mean("eval_loss") == pytest.approx((2.5, 1.5))  # |4 − 1| / √2 / √2
    assert (len(one.rows), one.mean("eval_loss")) == (1, (5.0, 0.5))  # the failed one is left out
    assert two.mean("half_learnt") == pytest.approx((3.0, math.nan), nan_ok=True)
    assert Group({}, [rows[0]]).mean("half_learnt") is None
    ((common, line),) = lines([two, one], "n_heads")
    assert common == {}
    assert [group.values["n_heads"] for group in line] == [1, 2]


def test_exponents() -> None:
    lengths = np.array([100, 300, 1000])
    assert exponent(lengths.tolist(), (7 * lengths**-0.9).tolist()) == pytest.approx(-0.9)
    assert exponent([100], [1.0]) is None
    assert exponent([100, 200], [1.0, -1.0]) is None
