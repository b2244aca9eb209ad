"""Runs that several processes share: the results of one process, one folder, and what happens when some are stopped.

`GroupServer` forks processes within milliseconds; a few tests have torchrun itself start them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from launched import Launch, torchrun, two_machines
from run_groups import GroupServer
from runs_children import deterministic_files

from mhicl_fast.cli import main
from mhicl_fast.train import load_run

SETTINGS = (
    "dim_x=6", "context_length=24", "n_prompts=300", "steps=60", "record_every=5", "checkpoint_every=20",
    "eval_prompts=64", "order=leading", "dtype=float64",
)  # fmt: skip
TREE = ("run", "demo", "--set", *SETTINGS, "reduction=tree", "--out")
PLAIN = ("run", "demo", "--set", *SETTINGS, "--out")
LONG = (*TREE[:-1], "n_prompts=64", "steps=6000", "record_every=30", "checkpoint_every=1200", "--out")  # of 200 rows
LONGER = (*LONG[:-1], "steps=20000", "record_every=100", "checkpoint_every=4000", "--out")
MODULE = ("-m", "mhicl_fast")


@pytest.fixture(scope="module")
def groups() -> Iterator[GroupServer]:
    with GroupServer() as server:
        yield server


@pytest.fixture(scope="module")
def unbroken(groups: GroupServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of TREE by one process."""
    path = tmp_path_factory.mktemp("unbroken") / "run"
    assert groups.start(1, [*TREE, path]).statuses() == [0]
    return path


@pytest.fixture(scope="module")
def long(groups: GroupServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of LONG by one process, with real figures as torchrun's processes draw them."""
    path = tmp_path_factory.mktemp("long") / "run"
    assert main([*LONG, str(path)]) == 0
    return path


def _rows(path: Path) -> int:
    """Of metrics.csv so far."""
    file = path / "metrics.csv"
    return file.read_bytes().count(b"\n") - 1 if file.exists() else -1


def _await(reached: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _of_rank(launches: list[Launch], rank: int) -> int:
    """The id of the process of this rank, whichever launch has it: torchrun gives out ranks as machines come."""
    for launch in launches:
        with suppress(TimeoutError):
            return launch.worker(rank, patience=1)
    raise TimeoutError(f"no process of rank {rank}")


def ends_as(unbroken: Path, path: Path) -> bool:
    return deterministic_files(path) == deterministic_files(unbroken)


class TestTogether:
    def test_torchrun_makes_one_folder_and_one_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """All that one process says and stores, real figures too, to the bit, but times."""
        shared = torchrun(2, *MODULE, *TREE, tmp_path / "shared")
        assert shared.returncode == 0, shared.stderr
        assert shared.stderr == ""
        assert main([*TREE, str(tmp_path / "alone")]) == 0

        def told(text: str) -> list[str]:
            return [line for line in text.replace("/shared/", "/alone/").splitlines() if not line.startswith("time ")]

        assert told(shared.stdout) == told(capsys.readouterr().out)
        assert ends_as(tmp_path / "alone", tmp_path / "shared")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["alone", "shared"]

    @pytest.mark.parametrize("size", [2, 3])
    def test_to_the_bit_with_a_tree(self, groups: GroupServer, unbroken: Path, tmp_path: Path, size: int) -> None:
        group = groups.start(size, [*TREE, tmp_path / "run"])
        assert group.statuses() == [0] * size
        assert ends_as(unbroken, tmp_path / "run")
        assert [group.out(rank) for rank in range(1, size)] == [""] * (size - 1)
        assert [group.errors(rank) for rank in range(size)] == [""] * size
        facts = json.loads((tmp_path / "run" / "timing.json").read_text())["machine"]
        assert facts["processes"].startswith(f"{size}, ")

    def test_to_rounding_without(self, groups: GroupServer, unbroken: Path, tmp_path: Path) -> None:
        assert groups.start(2, [*PLAIN, tmp_path / "run"]).statuses() == [0, 0]
        shared, alone = load_run(tmp_path / "run"), load_run(unbroken)
        for name, values in alone.metrics.items():
            np.testing.assert_allclose(shared.metrics[name], values, rtol=1e-9, atol=1e-12, err_msg=name)

    def test_chosen_prompts_are_told_to_all(self, groups: GroupServer, tmp_path: Path) -> None:
        options = ("--gradient-error", "0.3")
        settings = [word for word in PLAIN[:-1] if not word.startswith("n_prompts")]
        group = groups.start(2, [*settings, "start_size=0.3", *options, "--out", tmp_path / "run"])
        assert group.statuses() == [0, 0], group.errors(0)
        assert "prompts per step: measured at the start" in group.out(0)
        assert group.out(1) == ""

    def test_what_has_no_prompts_is_left_to_one(self, groups: GroupServer, tmp_path: Path) -> None:
        settings = ("estimator=asymptotic", "steps=20")
        group = groups.start(2, [*PLAIN[:-1], *settings, "--out", tmp_path / "run"])
        assert group.statuses() == [0, 0]
        assert "estimator=asymptotic has no prompts to share: one of the 2 processes trains alone" in group.errors(0)
        assert "processes" not in json.loads((tmp_path / "run" / "timing.json").read_text())["machine"]

    def test_a_finished_run_is_told_of_once(self, groups: GroupServer, unbroken: Path) -> None:
        before = (unbroken / "timing.json").read_bytes()
        group = groups.start(2, ["resume", unbroken])
        assert group.statuses() == [0, 0]
        assert group.out(0).startswith(f"the run in {unbroken} is finished already:\n")
        assert group.out(1) == ""
        assert (unbroken / "timing.json").read_bytes() == before


class TestErrors:
    """The leader's are told once, and nobody waits."""

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            (("run", "dmo", "--out", "{}/new"), 2, "unknown preset 'dmo'"),
            (("run", "demo", "--set", "n_heads=none", "--out", "{}/new"), 2, "n_heads must be an integer"),
            (("run", "demo", "--set", "device=cuda", "reduction=tree", "--out", "{}/new"), 2, "tree is for CPUs"),
            (("run", "demo", "--out", "{}"), 2, "is not empty and not a run folder"),
            (("resume", "{}"), 2, "is not a run folder"),
            (("resume", "{}/broken"), 1, "no usable checkpoint is left"),
        ],
    )  # fmt: skip
    def test_before_the_start(
        self, groups: GroupServer, unbroken: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
    ) -> None:
        shutil.copytree(unbroken, tmp_path / "broken")
        (tmp_path / "broken" / "timing.json").unlink()
        for file in (tmp_path / "broken" / "checkpoints").iterdir():
            file.write_bytes(b"")
        group = groups.start(3, [word.format(tmp_path) for word in arguments])
        assert group.statuses() == [status, 0, 0]
        assert message in group.errors(0)
        assert group.errors(0).count("\n") == 1
        assert [group.errors(1), group.errors(2)] == ["", ""]
        assert not (tmp_path / "new").exists()

    def test_divergence(self, groups: GroupServer, tmp_path: Path) -> None:
        settings = ("learning_rate=1e6", "step_cap=none")
        group = groups.start(2, [*PLAIN[:-1], *settings, "--out", tmp_path / "run"])
        assert group.statuses() == [1, 1]
        assert "stopped being finite at step" in group.errors(0)
        assert group.errors(1) == ""

    @pytest.mark.parametrize("rank", [0, 1])
    def test_one_that_never_comes(self, groups: GroupServer, tmp_path: Path, rank: int) -> None:
        start = time.monotonic()
        group = groups.start(2, [*PLAIN, tmp_path / "run", "--timeout", "2"], ranks=[rank])
        assert group.statuses() == [1]
        assert time.monotonic() - start < 20
        assert "the 2 processes did not meet at 127.0.0.1:" in group.errors(0)
        assert " within 2 s: " in group.errors(0)
        assert not (tmp_path / "run").exists()


class TestStopped:
    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_all_stop_after_the_same_step(
        self, groups: GroupServer, unbroken: Path, tmp_path: Path, number: int, rank: int
    ) -> None:
        """Whoever was asked: a checkpoint, with which any number of processes goes on."""
        path = tmp_path / "run"
        group = groups.start(2, [*TREE, path], faults={rank: (33, number)})
        assert group.statuses() == [130, 130]
        assert group.errors(0) == f"mhicl: interrupted; go on with: mhicl resume {path}\n"
        assert group.errors(1) == ""
        reached = max(int(file.stem.partition("_")[2]) for file in (path / "checkpoints").iterdir())
        assert 33 < reached < 40
        size = 3 if rank else 1
        assert groups.start(size, ["resume", path]).statuses() == [0] * size
        assert ends_as(unbroken, path)

    def test_alone_sigterm_is_ctrl_c(self, groups: GroupServer, unbroken: Path, tmp_path: Path) -> None:
        group = groups.start(1, [*TREE, tmp_path], faults={0: (33, signal.SIGTERM)})
        assert group.statuses() == [130]
        assert groups.start(2, ["resume", tmp_path]).statuses() == [0, 0]
        assert ends_as(unbroken, tmp_path)


class TestLost:
    def test_a_dead_follower(self, groups: GroupServer, unbroken: Path, tmp_path: Path) -> None:
        """Everybody says so, and the leader has a checkpoint of the very step."""
        group = groups.start(3, [*TREE, tmp_path], faults={1: (33, signal.SIGKILL)})
        assert group.statuses() == [1, -signal.SIGKILL, 1]
        assert group.errors(0).startswith("mhicl: lost another process at step 33: ")
        assert "A checkpoint of step 33 is stored; unless torchrun starts the run again, go on" in group.errors(0)
        assert "process 2 of 3 (numbered from 0) lost the others at step 33: " in group.errors(2)
        assert (tmp_path / "checkpoints" / "step_000000033.ckpt").exists()
        assert groups.start(1, ["resume", tmp_path]).statuses() == [0]
        assert ends_as(unbroken, tmp_path)

    def test_a_dead_leader(self, groups: GroupServer, unbroken: Path, tmp_path: Path) -> None:
        group = groups.start(2, [*TREE, tmp_path], faults={0: (33, signal.SIGKILL)})
        assert group.statuses() == [-signal.SIGKILL, 1]
        assert "process 1 of 2 (numbered from 0) lost the others at step 33: " in group.errors(1)
        assert groups.start(2, [*TREE, tmp_path], restarts=group).statuses() == [0, 0]
        assert ends_as(unbroken, tmp_path)

    def test_a_follower_that_hangs(self, groups: GroupServer, unbroken: Path, tmp_path: Path) -> None:
        start = time.monotonic()
        group = groups.start(2, [*TREE, tmp_path, "--timeout", "3"], faults={1: (33, signal.SIGSTOP)})
        _await(lambda: "lost another process" in group.errors(0))
        assert time.monotonic() - start < 20
        os.kill(group.pids[1], signal.SIGCONT)
        assert group.statuses() == [1, 1]
        assert "lost another process at step 33: " in group.errors(0)
        assert "(--timeout 3)" in group.errors(0)
        assert "process 1 of 2 (numbered from 0) lost the others at step " in group.errors(1)
        assert groups.start(2, ["resume", tmp_path]).statuses() == [0, 0]
        assert ends_as(unbroken, tmp_path)


class TestRestarted:
    def test_a_restart_goes_on_with_its_own_run_alone(
        self, groups: GroupServer, unbroken: Path, tmp_path: Path
    ) -> None:
        """A finished run too; another run's folder is refused as ever."""
        assert groups.start(2, [*TREE, tmp_path / "run"], faults={0: (33, signal.SIGTERM)}).statuses() == [130, 130]
        first = groups.start(2, [*TREE, tmp_path / "run"])
        assert first.statuses() == [2, 0]
        assert "holds this very run already" in first.errors(0)
        group = first
        for _ in range(2):
            group = groups.start(2, [*TREE, tmp_path / "run"], restarts=group)
            assert group.statuses() == [0, 0]
            assert ends_as(unbroken, tmp_path / "run")
        other = groups.start(2, [*TREE[:-1], "seed=5", "--out", tmp_path / "run"], restarts=group)
        assert other.statuses() == [2, 0]
        assert "holds another run" in other.errors(0)

    def test_nodes_count_restarts_by_themselves(self, groups: GroupServer, unbroken: Path, tmp_path: Path) -> None:
        """torchrun counts one only on the node that has lost a process, here not the leader's."""
        killed = groups.start(2, [*TREE, tmp_path], faults={1: (33, signal.SIGKILL)})
        assert killed.statuses() == [1, -signal.SIGKILL]
        again = groups.start(2, [*TREE, tmp_path, "--timeout", "10"], restarts=killed, counts={0: 0})
        assert again.statuses() == [0, 0], again.errors(0)
        assert ends_as(unbroken, tmp_path)

    @pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
    def test_torchrun_restarts_after_a_kill(self, groups: GroupServer, long: Path, tmp_path: Path, rank: int) -> None:
        launch = Launch(tmp_path, 2, [*LONG, tmp_path / "run"], restarts=1)
        _await(lambda: _rows(tmp_path / "run") > 20)
        os.kill(launch.worker(rank), signal.SIGKILL)
        assert launch.wait() == 0, launch.errors
        assert launch.printed.count("final loss") == 1
        assert ends_as(long, tmp_path / "run")

    @pytest.mark.slow
    @pytest.mark.parametrize("rank", [0, 1])
    def test_two_machines_restart_after_a_kill_on_one(self, long: Path, tmp_path: Path, rank: int) -> None:
        path, meeting, launches = tmp_path / "run", two_machines(), []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            launches.append(Launch(tmp_path / name, 1, [*LONG, path], restarts=3, meeting=meeting))
        _await(lambda: _rows(path) > 20)
        os.kill(_of_rank(launches, rank), signal.SIGKILL)
        assert [launch.wait() for launch in launches] == [0, 0], [launch.errors for launch in launches]
        assert ends_as(long, path)

    @pytest.mark.slow
    def test_killed_ten_times_in_a_row(self, tmp_path: Path) -> None:
        """Any process, at random moments: of its start, of training, of storing."""
        assert main([*LONGER, str(tmp_path / "unbroken")]) == 0
        rng, path = random.Random(0), tmp_path / "run"
        launch = Launch(tmp_path, 2, [*LONGER, path], restarts=30)
        for _ in range(10):
            rows = _rows(path) if path.exists() else 0
            further = rng.choice([0, rng.randrange(1, 15)])
            _await(lambda rows=rows, further=further: _rows(path) >= rows + further)
            time.sleep(rng.uniform(0, 0.05))
            os.kill(launch.worker(rng.randrange(2)), signal.SIGKILL)
            time.sleep(1)
        assert launch.wait() == 0, launch.errors
        assert ends_as(tmp_path / "unbroken", path)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_torchrun_passes_on_what_it_gets(groups: GroupServer, long: Path, tmp_path: Path, number: int) -> None:
    path = tmp_path / "run"
    launch = Launch(tmp_path, 2, [*LONG, path])
    _await(lambda: _rows(path) > 20)
    launch.process.send_signal(number)
    assert launch.wait() != 0
    assert f"mhicl: interrupted; go on with: mhicl resume {path}\n" in launch.errors
    assert launch.errors.count("mhicl: ") == 1
    assert _rows(path) < 200
    assert groups.start(1, ["resume", path]).statuses() == [0]
    assert (path / "metrics.csv").read_bytes() == (long / "metrics.csv").read_bytes()
