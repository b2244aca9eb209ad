"""Sweeps: their folders, plain runs' results to the bit, what fails, what is killed, and going on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs_children import deterministic_files

from mhicl_fast.sweep import LoadedSweep, SweepBar, load_sweep, resume_sweep, run_sweep, sweep_table
from mhicl_fast.sweep.folder import SweepFolder, run_path
from mhicl_fast.train import ConfigError, RunConfig, load_run, run
from mhicl_fast.train.folder import FolderError

ROOT = Path(__file__).resolve().parent.parent
TINY = RunConfig(
    dim_x=4, n_tasks=2, context_length=6, n_heads=2, support="blocks", scale=1.0, start="small", start_size=0.3,
    n_prompts=8, learning_rate=0.02, step_cap=0.02, steps=40, record_every=4, checkpoint_every=10, eval_prompts=16,
    order="leading", noise_std=0.5, noisy_target=True,
)  # fmt: skip
DIVERGING = replace(TINY, step_cap=None, learning_rate=1e6)
RUNS = [
    TINY,
    replace(TINY, n_heads=1, seed=3),
    DIVERGING,
    replace(TINY, dim_x=6, n_tasks=3, n_heads=3, context_length=9, steps=60),
    replace(TINY, start="random", estimator="sampled", optimizer="adam", step_cap=None, steps=15, dtype="float64"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> LoadedSweep:
    return run_sweep(RUNS, tmp_path_factory.mktemp("sweep") / "a", jobs=2)


def files(path: Path) -> dict[str, Any]:
    """A run's deterministic files without figures, which a sweep's runs don't draw."""
    return {name: data for name, data in deterministic_files(path).items() if not name.startswith("figures")}


def assert_plain(sweep: LoadedSweep, number: int, folder: Path) -> None:
    """The run has the files of a plain run of the same configuration, to the bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(sweep.configs[number], folder / str(number), figures=False)
    assert files(run_path(sweep.path, number)) == files(folder / str(number))


def test_runs_are_plain_runs_to_the_bit(finished: LoadedSweep, tmp_path: Path) -> None:
    for number in (0, 1, 3, 4):
        assert_plain(finished, number, tmp_path)


def test_the_table_has_a_row_for_each_run(finished: LoadedSweep) -> None:
    with (finished.path / "table.csv").open() as file:
        stored = list(csv.DictReader(file))
    assert [int(row["run"]) for row in stored] == [0, 1, 2, 3, 4]
    assert [row["status"] for row in stored] == ["finished", "finished", "failed", "finished", "finished"]
    for number, row in enumerate(stored):
        assert row["n_heads"] == str(RUNS[number].n_heads)
        assert "learning_rate" in row
        assert "record_every" not in row  # which does not vary
        if number == 2:
            assert row["eval_loss"] == row["wall_s"] == ""
            continue
        summary = finished.run(number).summary
        assert summary is not None
        for key in ("eval_loss", "eval_loss_se", "wall_s"):
            assert float(row[key]) == summary[key]
        assert float(row["excess"]) == pytest.approx(summary["eval_loss"] - RUNS[number].n_tasks * 0.25)
        theory = summary["theory"]
        assert float(row["bayes"]) == theory["bayes"]["loss"]
        limit = theory["single_head" if RUNS[number].n_heads == 1 else "one_head_per_task"]
        assert float(row["limit"]) == limit["loss"]
    assert float(stored[0]["predicted_time"]) == max(finished.run(0).summary["predicted_times"])  # type: ignore[index]
    assert stored[4]["predicted_time"] == ""  # Adam's are not predicted
    assert load_sweep(finished.path).rows == finished.rows


def test_a_diverging_run_is_a_row_and_stops_no_other(finished: LoadedSweep) -> None:
    assert list(finished.failures) == [2]
    assert "stopped being finite" in finished.failures[2]
    summary = json.loads((finished.path / "summary.json").read_text())
    assert (summary["runs"], summary["finished"]) == (5, 4)
    assert summary["failed"] == {"0002": finished.failures[2]}
    lines = sweep_table(finished).splitlines()
    assert lines.index("") == 6
    assert lines[-1] == "1 of 5 runs ended before every task was learnt: more steps may help"
    assert "evaluated loss" in lines[0]
    assert "failed: the loss or its gradient stopped being finite" in lines[3]
    assert list((finished.path / "figures").glob("*.png"))


def test_resuming_tries_what_failed_and_leaves_the_rest(finished: LoadedSweep, tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    shutil.copytree(finished.path, path)
    (path / ".summary.json.tmp").write_bytes(b"of a process killed while writing")
    shutil.rmtree(run_path(path, 1))  # as if it had not started
    other = run_path(path, 3)
    config = json.loads((other / "config.json").read_text())
    config["config"]["seed"] = 17
    (other / "config.json").write_text(json.dumps(config))
    (other / "timing.json").unlink()
    kept = {number: _contents(run_path(path, number)) for number in (0, 4)}
    heard = Heard()
    sweep = resume_sweep(path, jobs=1, observer=heard)
    assert heard.unfinished == [1, 2, 3]
    assert set(heard.ended) == {1, 2, 3}
    assert {number: _contents(run_path(path, number)) for number in (0, 4)} == kept
    assert {row["run"]: row["status"] for row in sweep.rows if row["status"] != "finished"} == {
        2: "failed",
        3: "failed",
    }
    assert sweep.failures[3] == f"{other} holds another run than it should"
    assert not (path / ".summary.json.tmp").exists()
    assert_plain(sweep, 1, tmp_path)


class Heard:
    """What an observer was told; `on_step` may act."""

    def __init__(self, on_step: Callable[[int, int], None] = lambda number, step: None) -> None:
        self.unfinished: list[int] = []
        self.steps: list[tuple[int, int]] = []
        self.ended: dict[int, str | None] = {}
        self._on_step = on_step

    def begin(self, unfinished: list[int]) -> None:
        self.unfinished = list(unfinished)

    def step(self, number: int, step: int) -> None:
        self.steps.append((number, step))
        self._on_step(number, step)

    def end(self, number: int, failure: str | None) -> None:
        self.ended[number] = failure


def _contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _children() -> list[int]:
    found: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        found += map(int, (thread / "children").read_text().split())
    return [pid for pid in found if b"mhicl_fast.sweep.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_killed_worker_costs_its_run_alone_and_leaves_it_to_be_resumed(tmp_path: Path) -> None:
    victims: list[int] = []

    def kill(number: int, step: int) -> None:
        if number == 0 and step > 0 and not victims:
            victims.extend(_children())
            os.kill(victims[0], signal.SIGKILL)

    long = replace(TINY, n_prompts=20_000, context_length=20, steps=60, checkpoint_every=10)  # about a second
    sweep = run_sweep([long, replace(TINY, seed=1)], tmp_path / "sweep", jobs=1, observer=Heard(kill))
    assert len(victims) == 1
    assert sweep.failures == {0: "its process was ended by SIGKILL, perhaps for want of memory"}
    assert sweep.rows[1]["status"] == "finished"
    stored = _last_checkpoint(run_path(sweep.path, 0))
    assert stored < long.steps
    heard = Heard()
    sweep = resume_sweep(tmp_path / "sweep", jobs=2, observer=heard)
    assert not sweep.failures
    assert heard.steps[0] == (0, stored)
    assert json.loads((run_path(sweep.path, 0) / "timing.json").read_text())["machine"]["threads"] == "2"
    assert_plain(sweep, 0, tmp_path)


def test_ctrl_c_stops_all_runs_with_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    process = _started(_endless(path), path)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert errors == f"mhicl: interrupted; go on with: mhicl resume {path}\n"
    assert _unlocked(path)
    assert all(_last_checkpoint(run_path(path, number)) > 0 for number in (0, 1))
    assert [row["status"] for row in load_sweep(path).rows] == ["not finished"] * 3
    assert (path / "table.csv").read_text().count("not finished") == 3


@pytest.mark.slow
def test_workers_stop_with_a_checkpoint_when_their_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    process = _started(_endless(path), path)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _unlocked(path):
        time.sleep(0.05)
    assert _unlocked(path)
    steps = [_last_checkpoint(run_path(path, number)) for number in (0, 1)]
    assert all(step % 1000 for step in steps)  # not the regular ones
    process = _started([sys.executable, "-m", "mhicl_fast", "resume", str(path)], path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert all(_last_checkpoint(run_path(path, number)) > step for number, step in enumerate(steps))


def _endless(path: Path) -> list[str]:
    """The command of a sweep that nobody waits for."""
    config = replace(TINY, steps=10**6, checkpoint_every=1000)
    settings = [f"{key}={value}" for key, value in config.to_dict().items() if key not in ("preset", "seed")]
    command = [sys.executable, "-m", "mhicl_fast", "sweep", "demo", "--set", *settings]
    return [*command, "--vary", "seed=0:3", "--jobs", "2", "--out", str(path)]


def _started(command: list[str], path: Path) -> subprocess.Popen[str]:
    """A process, once runs 0 and 1 have more lines of metrics than before."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = [run_path(path, number) / "metrics.csv" for number in (0, 1)]
    before = [_lines(file) for file in metrics]
    while process.poll() is None and not all(_lines(file) > n + 3 for file, n in zip(metrics, before)):
        time.sleep(0.02)
    assert process.poll() is None, process.stderr and process.stderr.read()
    return process


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _last_checkpoint(path: Path) -> int:
    return max(int(file.stem[5:]) for file in (path / "checkpoints").iterdir())


def _unlocked(path: Path) -> bool:
    """Whether nobody works in the sweep's folder or in its runs'."""
    from mhicl_fast.train.folder import lock_folder

    for place in (path, run_path(path, 0), run_path(path, 1)):
        try:
            os.close(lock_folder(place))
        except FolderError:
            return False
    return True


def test_folders_that_cannot_be_used(finished: LoadedSweep, tmp_path: Path) -> None:
    before = _contents(finished.path)
    with pytest.raises(FolderError, match="holds this very sweep already; go on with it: mhicl resume"):
        run_sweep(RUNS, finished.path)
    with pytest.raises(FolderError, match="holds another sweep"):
        run_sweep(RUNS[:2], finished.path)
    with SweepFolder.open(finished.path), pytest.raises(FolderError, match="another process is running"):
        resume_sweep(finished.path)
    assert _contents(finished.path) == before
    with pytest.raises(FolderError, match=r"is not empty and not a sweep's folder \(it has checkpoints"):
        run_sweep(RUNS, run_path(finished.path, 0))
    with pytest.raises(FolderError, match=r"is not a sweep's folder: it has no sweep\.json"):
        resume_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text('{"format": 1, "versions": {}, "runs": [{"dim_x": 0}]}')
    with pytest.raises(FolderError, match=r"sweep.json: the configuration lacks n_tasks"):
        load_sweep(tmp_path)


def test_lists_that_cannot_be_run(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(ConfigError, match="at least one run"):
        run_sweep([], path)
    with pytest.raises(ConfigError, match="runs 0 and 2 of the sweep are the same"):
        run_sweep([TINY, DIVERGING, replace(TINY)], path)
    with pytest.raises(TypeError, match="runs must be RunConfigs, number 1 is of type str"):
        run_sweep([TINY, "demo"], path)  # type: ignore[list-item]
    for jobs in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="jobs must be a positive integer"):
            run_sweep([TINY], path, jobs=jobs)  # type: ignore[arg-type]
    assert not path.exists()


def test_a_start_killed_before_it_stored_its_runs_can_be_made_again(tmp_path: Path) -> None:
    for name in ("runs", "figures"):
        (tmp_path / name).mkdir()
    (tmp_path / ".sweep.json.tmp").write_bytes(b"{")
    SweepFolder.create(tmp_path, RUNS).close()
    assert load_sweep(tmp_path).configs == RUNS


def test_other_versions_are_told(tmp_path: Path) -> None:
    SweepFolder.create(tmp_path, RUNS).close()
    content = json.loads((tmp_path / "sweep.json").read_text())
    content["versions"]["torch"] = "1.0"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.warns(RuntimeWarning, match=r"started with other versions \(torch 1.0 then"):
        SweepFolder.open(tmp_path).close()


def test_the_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet where there is no terminal; elsewhere runs done and failed, and the steps that were still to do."""

    def follow() -> str:
        with SweepBar([replace(TINY, seed=seed) for seed in range(3)]) as bar:
            bar.begin([1, 2])
            for number, step in ((1, 10), (2, 0), (1, 25)):
                bar.step(number, step)
            bar.end(1, None)
            bar.step(2, 30)
            bar.end(2, "diverged")
        return capsys.readouterr().err

    assert follow() == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    drawn = follow()
    assert "1/3 runs" in drawn
    assert "3/3 runs, 1 failed" in drawn
    assert "45.0/45.0" in drawn  # 40 − 10 left of run 1, of which 15 were told, and 30 of run 2, which failed there


def test_every_folder_of_a_run_can_be_loaded_and_drawn(finished: LoadedSweep) -> None:
    assert repr(finished).endswith("4 of 5 runs finished)")
    assert load_run(run_path(finished.path, 3)).config == RUNS[3]
    assert not list((run_path(finished.path, 3) / "figures").iterdir())


def test_a_device_that_cannot_be_had_is_told_before_there_is_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(ConfigError, match="or choose cpu"):
        run_sweep([replace(TINY, device="cuda:99")], path)
    assert not path.exists()
