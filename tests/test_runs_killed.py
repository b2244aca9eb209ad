"""Runs that are killed, interrupted or out of disk: they resume, and end as an unbroken run does, to the bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs_children import Children, deterministic_files

from mhicl_fast.presets import preset
from mhicl_fast.train import RunConfig, load_run

CONFIG = RunConfig(
    dim_x=3, n_tasks=1, context_length=6, n_heads=2, scale=1.0, start="small", start_size=0.3, n_prompts=8,
    learning_rate=0.02, step_cap=0.02, steps=24, record_every=3, checkpoint_every=7, eval_prompts=16, order="leading",
).to_dict()  # fmt: skip
ADAM = CONFIG | {
    "optimizer": "adam",
    "step_cap": None,
    "steps": 11,
    "checkpoint_every": 4,
    "start": "random",
    "estimator": "sampled",
}
SGD = CONFIG | {"optimizer": "sgd", "step_cap": None, "momentum": 0.9, "parameters": "combined", "dtype": "float64"}
LONG = {  # of 200 records
    "random start, Adam": preset("demystified").with_settings(
        ["n_prompts=16", "steps=20000", "record_every=100", "checkpoint_every=330", "eval_prompts=16"]
    ).to_dict(),
    "gradient flow": preset("demo").with_settings(
        ["dim_x=6", "context_length=30", "n_prompts=16", "steps=20000", "record_every=100", "checkpoint_every=400",
         "eval_prompts=16", "order=leading"]
    ).to_dict(),
}  # fmt: skip


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as server:
        yield server


@pytest.fixture(scope="module")
def unbroken(children: Children, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of an unbroken run, and how often it makes each call."""
    path = tmp_path_factory.mktemp("unbroken") / "run"
    assert children("run", path, CONFIG) == 0
    return deterministic_files(path)


def finish(children: Children, path: Path, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    """Resume to the end, starting anew where nothing had been stored yet."""
    action = "resume" if (path / "config.json").exists() else "run"
    assert children(action, path, config) == 0
    return deterministic_files(path)


def test_an_unbroken_run_is_repeatable(children: Children, unbroken: dict[str, Any], tmp_path: Path) -> None:
    assert children("run", tmp_path / "again", CONFIG) == 0
    assert deterministic_files(tmp_path / "again") == unbroken
    assert sorted(unbroken) == [
        "checkpoints/step_000000021.ckpt", "checkpoints/step_000000024.ckpt", "config.json", "figures/loss.png",
        "metrics.csv", "summary.json", "trajectories.npz",
    ]  # fmt: skip
    steps = [int(line.split(b",")[0]) for line in unbroken["metrics.csv"].splitlines()[1:]]
    assert steps == [0, 3, 6, 9, 12, 15, 18, 21, 24]


@pytest.mark.parametrize(
    ("call", "kind"),
    [("replace", "before"), ("replace", "after"), ("write", "half"), ("write", "before"), ("fsync", "before"),
     ("unlink", "before"), ("ftruncate", "before")],
)  # fmt: skip
def test_killed_at_every_system_call_of_a_kind(children: Children, tmp_path: Path, call: str, kind: str) -> None:
    """The first run is killed at the n-th call, for n = 1, 2, … until it gets through."""
    assert children("run", tmp_path / "unbroken", ADAM) == 0
    unbroken = deterministic_files(tmp_path / "unbroken")
    for number in range(1, 100):
        path = tmp_path / str(number)
        status = children("run", path, ADAM, call=call, number=number, kind=kind)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert finish(children, path, ADAM) == unbroken, f"killed at {call} number {number}"
    assert status == 0
    assert number > {"ftruncate": 1, "unlink": 2}.get(call, 10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", [CONFIG, ADAM | {"steps": 24}, SGD], ids=["flow", "adam", "sgd"])
def test_killed_again_and_again(children: Children, tmp_path: Path, config: dict[str, Any], seed: int) -> None:
    """Every resumption is killed too, at a random write, rename, sync or instant."""
    assert children("run", tmp_path / "unbroken", config) == 0
    rng, path, kills = random.Random(seed), tmp_path / "killed", 0
    for _ in range(40):
        fault = rng.choice([
            {"call": "write", "number": rng.randrange(2, 9), "kind": "half"},
            {"call": "replace", "number": rng.randrange(1, 5), "kind": rng.choice(["before", "after"])},
            {"call": "fsync", "number": rng.randrange(2, 9), "kind": "before"},
            {"kill_after": rng.uniform(0, 0.04)},
        ])  # fmt: skip
        action = "resume" if (path / "config.json").exists() else "run"
        status = children(action, path, config, **fault)
        if status == 0:
            break
        kills += status == -signal.SIGKILL
    assert kills >= 3
    assert finish(children, path, config) == deterministic_files(tmp_path / "unbroken")


@pytest.mark.parametrize("name", LONG)
def test_killed_twenty_times_in_a_row(children: Children, tmp_path: Path, name: str) -> None:
    """Each resumption at a random instant: of its start, of spans of native steps, of records and of checkpoints."""
    config, rng = LONG[name], random.Random(name)
    assert children("run", tmp_path / "unbroken", config) == 0
    unbroken = deterministic_files(tmp_path / "unbroken")
    row, path = len(unbroken["metrics.csv"]) // 200, tmp_path / "killed"
    for _ in range(20):
        action = "resume" if (path / "config.json").exists() else "run"
        moment = {"bytes": rng.randrange(12 * row), "kill_after": rng.uniform(0, 0.005)}
        assert children(action, path, config, **moment) == -signal.SIGKILL
    reached = max(int(file.stem.partition("_")[2]) for file in (path / "checkpoints").iterdir())
    assert config["steps"] / 10 < reached < config["steps"]
    assert finish(children, path, config) == unbroken


@pytest.mark.parametrize("step", [1, 6, 7, 14, 24])
def test_interrupted(children: Children, unbroken: dict[str, Any], tmp_path: Path, step: int) -> None:
    """Ctrl-C stores a checkpoint of the step just finished; the folder can be read and resumed."""
    assert children("run", tmp_path, CONFIG, interrupt_at_step=step, span_seconds=0.0) == 130
    assert (tmp_path / "checkpoints" / f"step_{step:09d}.ckpt").exists()
    assert load_run(tmp_path).metrics["step"][-1] == (step - 1) // 3 * 3
    (tmp_path / "checkpoints" / f".step_{step + 1:09d}.ckpt.tmp").write_bytes(b"of a process killed while writing")
    assert finish(children, tmp_path) == unbroken


@pytest.mark.parametrize("number", [2, 5, 9, 14, 20])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_disk_full(children: Children, unbroken: dict[str, Any], tmp_path: Path, call: str, number: int) -> None:
    assert children("run", tmp_path, CONFIG, call=call, number=number, kind="full") == 1
    assert finish(children, tmp_path) == unbroken


def test_a_file_that_cannot_grow(children: Children, unbroken: dict[str, Any], tmp_path: Path) -> None:
    """The real thing, through the limit on a file's size: metrics.csv stops within a row."""
    assert children("run", tmp_path, CONFIG, largest_file=len(unbroken["metrics.csv"]) - 100) == 1
    assert finish(children, tmp_path) == unbroken


def test_a_corrupt_checkpoint_is_passed_over(children: Children, unbroken: dict[str, Any], tmp_path: Path) -> None:
    for number, damage in enumerate([_flip_a_bit, _cut_short, _empty]):
        path = tmp_path / str(number)
        assert children("run", path, CONFIG, interrupt_at_step=17, span_seconds=0.0) == 130
        damage(path / "checkpoints" / "step_000000017.ckpt")
        assert finish(children, path) == unbroken
        assert "step_000000017.ckpt cannot be used" in children.errors
        assert "going on from step_000000014.ckpt" in children.errors


def test_nothing_is_lost_when_no_checkpoint_is_usable(children: Children, tmp_path: Path) -> None:
    assert children("run", tmp_path, CONFIG, interrupt_at_step=17, span_seconds=0.0) == 130
    for file in (tmp_path / "checkpoints").iterdir():
        _flip_a_bit(file)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert children("resume", tmp_path) == 1
    assert "CheckpointError: no usable checkpoint is left" in children.errors
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    shutil.rmtree(tmp_path / "checkpoints")
    assert children("resume", tmp_path) == 1
    assert "no checkpoint is left" in children.errors
    assert (tmp_path / "metrics.csv").read_bytes() == before[tmp_path / "metrics.csv"]


def test_changed_metrics_are_noticed(children: Children, unbroken: dict[str, Any], tmp_path: Path) -> None:
    """Rows lost after the older checkpoint leave that one usable; a change before it leaves none."""
    assert children("run", tmp_path, CONFIG, interrupt_at_step=19, span_seconds=0.0) == 130
    metrics = tmp_path / "metrics.csv"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[:-3])
    assert finish(children, tmp_path) == unbroken
    assert "step_000000019.ckpt cannot be used: metrics.csv has" in children.errors

    other = tmp_path / "other"
    assert children("run", other, CONFIG, interrupt_at_step=19, span_seconds=0.0) == 130
    (other / "metrics.csv").write_bytes(whole.replace(b"step", b"stop", 1))
    assert children("resume", other) == 1
    assert "metrics.csv was changed" in children.errors


def test_resuming_a_finished_run_changes_nothing(children: Children, unbroken: dict[str, Any], tmp_path: Path) -> None:
    assert children("run", tmp_path, CONFIG) == 0
    times = json.loads((tmp_path / "timing.json").read_text())
    assert children("resume", tmp_path) == 0
    assert deterministic_files(tmp_path) == unbroken
    assert json.loads((tmp_path / "timing.json").read_text()) == times


def _flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def _empty(file: Path) -> None:
    file.write_bytes(b"")
