"""Sweeps that several processes share: results, how they claim runs, what is killed, stopped, interrupted or hung."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from launched import command, environment, torchrun
from test_sweep import DIVERGING, TINY, assert_plain, files
from torch.distributed import TCPStore

from mhicl_fast.processes import DistributedError, Processes
from mhicl_fast.sweep import LoadedSweep, events, follow_sweep, kinds, load_sweep, run_sweep
from mhicl_fast.sweep.claims import Plan, claims, cores_for, places, to_do
from mhicl_fast.sweep.events import Followers, Reports
from mhicl_fast.sweep.folder import SweepFolder, run_path
from mhicl_fast.sweep.pool import Work, _environment, longest_first
from mhicl_fast.train import ConfigError, RunConfig, load_run
from mhicl_fast.train.folder import FolderError, lock_folder

SCRIPT = Path(__file__).with_name("sweep_processes.py")
LONG = replace(TINY, steps=60_000, record_every=1000, checkpoint_every=10_000)  # some seconds
RUNS = [DIVERGING, *(replace(TINY, n_heads=heads, seed=heads) for heads in (1, 2, 3)), replace(TINY, dtype="float64"),
        replace(TINY, start="random", estimator="sampled", optimizer="adam", step_cap=None, steps=15)]  # fmt: skip


def order(path: Path, runs: list[RunConfig], **more: Any) -> str:
    """What a process of `SCRIPT` is told."""
    return json.dumps({"path": str(path), "runs": [run.to_dict() for run in runs], "jobs": 1, **more})


def stable(sweep: LoadedSweep) -> list[dict[str, Any]]:
    """The table without times, and with reasons of failures that name no folder."""
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in sweep.rows]


class TestLaunched:
    """What needs processes."""

    def test_two_processes_have_the_results_of_one(self, tmp_path: Path) -> None:
        """To the bit; a run that fails is a row of the table, and both processes do runs."""
        done = torchrun(2, SCRIPT, order(tmp_path / "two", RUNS))
        assert done.returncode == 0, done.stderr
        reports = [json.loads(line) for line in done.stdout.splitlines()]
        assert sorted(number for report in reports for number in report["runs"]) == list(range(6))
        assert all(report["runs"] for report in reports)
        one, two = run_sweep(RUNS, tmp_path / "one", jobs=2), load_sweep(tmp_path / "two")
        assert list(two.failures) == [0]
        assert stable(one) == stable(two)
        for number in range(1, 6):
            assert files(run_path(two.path, number)) == files(run_path(one.path, number))
        summaries = [json.loads((sweep.path / "summary.json").read_text()) | {"wall_s": None} for sweep in (one, two)]
        assert summaries[0] == summaries[1]
        assert (two.path / "table.csv").read_text().count("finished") == 5

    def test_the_command_speaks_once(self, tmp_path: Path) -> None:
        """One table and one message of what failed; a folder that is taken is one message and hangs nobody."""
        path = tmp_path / "sweep"
        small = ["n_prompts=8", "context_length=9", "dim_x=4", "n_tasks=2", "eval_prompts=16", "order=leading"]
        sweep = ["-m", "mhicl_fast", "sweep", "demo", "--vary", "step_cap/learning_rate=0.04/0.04,none/1e6"]
        sweep += ["--set", *small, "steps=30", "--jobs", "1", "--timeout", "60", "--out", str(path)]
        done = torchrun(2, *sweep)
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert [line.split()[:1] for line in lines[:3]] == [["run"], ["0000"], ["0001"]]
        assert lines[-1] == f"table and figures: {path}/table.csv, {path}/figures"
        assert sum(line.startswith("run ") for line in lines) == 1
        assert complaints(done.stderr) == [f"1 of 2 runs failed; try them again with: mhicl resume {path}"]
        started = time.monotonic()
        done = torchrun(2, *sweep)
        assert done.returncode == 1
        assert done.stdout == ""
        assert complaints(done.stderr) == [f"{path} holds this very sweep already; go on with it: mhicl resume {path}"]
        assert time.monotonic() - started < 50  # no process has waited for its timeout

    @pytest.mark.slow
    def test_uneven_runs_are_shared(self, tmp_path: Path) -> None:
        """Who has the long run leaves the others to the other, so that both end within the time of the longest."""
        runs = [*(replace(TINY, seed=seed) for seed in range(1, 9)), LONG]
        done = torchrun(2, SCRIPT, order(tmp_path / "sweep", runs))
        assert done.returncode == 0, done.stderr
        reports = sorted(
            (json.loads(line) for line in done.stdout.splitlines()), key=lambda report: len(report["runs"])
        )
        assert 8 in reports[0]["runs"]
        assert len(reports[0]["runs"]) <= 3
        sweep = load_sweep(tmp_path / "sweep")
        longest = max(row["wall_s"] for row in sweep.rows)
        assert abs(reports[0]["ended"][0] - reports[1]["ended"][0]) < longest + 1

    @pytest.mark.slow
    def test_a_killed_process_is_started_again_and_the_sweep_goes_on(self, tmp_path: Path) -> None:
        runs = [LONG, replace(LONG, seed=1), TINY, replace(TINY, seed=1)]
        path = tmp_path / "sweep"
        done = torchrun(2, SCRIPT, order(path, runs, fault="kill"), restarts=3)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("exitcode: -9") == 1
        sweep = load_sweep(path)
        assert [row["status"] for row in sweep.rows] == ["finished"] * 4
        for number in range(4):
            assert_plain(sweep, number, tmp_path)

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_runs_have_a_checkpoint_and_one_process_goes_on(self, tmp_path: Path, number: int) -> None:
        path = tmp_path / "sweep"
        config = replace(LONG, checkpoint_every=LONG.steps)
        settings = [f"{key}={value}" for key, value in config.to_dict().items() if key not in ("preset", "seed")]
        sweep = ["-m", "mhicl_fast", "sweep", "demo", "--set", *settings, "--vary", "seed=0:2", "--jobs", "1"]
        process = subprocess.Popen(
            command(2, [*sweep, "--out", path]), env=environment(), stderr=subprocess.PIPE, text=True
        )
        metrics = [run_path(path, run) / "metrics.csv" for run in (0, 1)]
        while process.poll() is None and not all(file.exists() and file.stat().st_size > 1000 for file in metrics):
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert complaints(errors) == [f"interrupted; go on with: mhicl resume {path}"]
        last = [max(int(file.stem[5:]) for file in (run_path(path, run) / "checkpoints").iterdir()) for run in (0, 1)]
        assert all(step > 0 for step in last)  # where the last step has the only regular one
        resumed = subprocess.run(
            [sys.executable, "-m", "mhicl_fast", "resume", path], env=environment(), capture_output=True, check=False
        )
        assert resumed.returncode == 0, resumed.stderr
        for run in (0, 1):
            assert_plain(load_sweep(path), run, tmp_path)

    @pytest.mark.slow
    def test_a_process_that_hangs_is_missed(self, tmp_path: Path) -> None:
        path = tmp_path / "sweep"
        done = torchrun(2, SCRIPT, order(path, [LONG, replace(LONG, seed=1)], fault="stop", timeout=4.0))
        assert done.returncode == 1
        assert f"process 1 of the sweep has not been heard of for 4 s; go on with: mhicl resume {path}" in done.stderr
        assert len((path / "table.csv").read_text().splitlines()) == 3


def complaints(errors: str) -> list[str]:
    """What the command has said on its standard error, among what torchrun says."""
    return re.findall(r"^mhicl: (.*)$", errors, re.MULTILINE)


class Heard:
    """A listener, or an observer, that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def begin(self, unfinished: list[int]) -> None:
        self.events.append(("begin", unfinished))

    def step(self, number: int, step: int) -> None:
        self.events.append(("step", number, step))

    def end(self, number: int, failure: str | None) -> None:
        self.events.append(("end", number, failure))

    def warn(self, text: str) -> None:
        self.events.append(("warn", text))


def pass_second(followers: Followers, times: int = 1) -> None:
    """As if the leader had listened a second ago."""
    for _ in range(times):
        followers._attended -= 1.0
        followers.attend()


class TestAlone:
    """What can be seen in one process, with a store of its own."""

    @pytest.fixture
    def pair(self) -> list[Processes]:
        """Two processes of one machine, as they know themselves."""
        server = TCPStore("localhost", 0, 1, is_master=True, timeout=timedelta(seconds=20))
        client = TCPStore("localhost", server.port, 1, is_master=False, timeout=timedelta(seconds=20))
        return [Processes(rank, 2, rank, 2, timeout=8.0, store=store) for rank, store in enumerate((server, client))]

    def test_no_run_is_claimed_twice_and_none_is_left(self, pair: list[Processes], tmp_path: Path) -> None:
        work = [Work(number, TINY, tmp_path) for number in (3, 1, 4)]
        (tmp_path / "sweep.json").touch()
        plans = [Plan.of(tmp_path, work), Plan.of(tmp_path, work)]
        first, second = (claims(work, plans[0].store(process)) for process in pair)
        assert [next(first).number, next(second).number, next(second).number] == [3, 1, 4]
        assert not [*first, *second]
        assert [item.number for item in claims(work, plans[1].store(pair[0]))] == [3, 1, 4]  # of another sweep

    def test_a_plan_is_for_the_folder_of_the_leader(
        self, tmp_path: Path, pair: list[Processes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mhicl_fast.sweep.claims._FILE_SYSTEM_S", 0.0)
        monkeypatch.chdir(tmp_path)
        with SweepFolder.create(Path("sweep"), RUNS) as folder:
            work = longest_first(to_do(folder.configs, folder.path, range(6), pair[1]))
        pair[0].tell(Plan.of(Path("sweep"), work).word())
        plan = Plan.from_word(pair[1].hear())
        assert plan.path == tmp_path / "sweep"
        assert sorted(plan.order) == list(range(6))
        assert plan.order[-1] == 5  # the shortest
        assert {item.gpu for item in work} == {1}
        assert plan.is_seen()
        os.utime(tmp_path / "sweep" / "sweep.json", ns=(1, 1))  # as on another machine
        assert not plan.is_seen()
        (tmp_path / "sweep" / "sweep.json").unlink()
        assert not plan.is_seen()

    def test_shares(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a machine's cores, and of runs where there are fewer of them."""
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)))
        group = [Processes(rank, 3, rank, 3) for rank in range(3)]
        assert [cores_for(None, process) for process in group] == [2, 2, 2]
        assert cores_for(None, Processes(0, 9, 0, 9)) == 1
        assert cores_for(5, group[0]) == 5
        with pytest.raises(ConfigError, match="jobs must be a positive integer"):
            cores_for(0, group[0])
        for runs in range(20):
            shares = [places(runs, 100, process) for process in group]
            assert sum(shares) == runs
            assert max(shares) - min(shares) <= 1
        assert places(20, 2, group[0]) == 2

    def test_events_reach_the_leader_together(self, pair: list[Processes], tmp_path: Path) -> None:
        heard, store = Heard(), pair[0].store
        assert store is not None
        followers, reports = Followers(pair[0], store, tmp_path, heard), Reports(pair[1], store)
        reports.step(3, 0)
        reports.step(3, 7)
        reports.warn("hm")
        reports.attend()
        assert store.queue_len(events._QUEUE) == 0  # too early
        reports._sent -= events._REPORT_EVERY
        reports.attend()
        reports.attend()
        assert store.queue_len(events._QUEUE) == 1
        reports.end(3, "diverged")
        reports.send(done=True)
        followers.wait()
        assert heard.events == [("step", 3, 0), ("step", 3, 7), ("warn", "hm"), ("end", 3, "diverged")]

    def test_followers_are_heard_while_they_work(self, pair: list[Processes], tmp_path: Path) -> None:
        """And are not missed, though their runs start more slowly than the leader is patient."""
        runs, heard = [replace(LONG, steps=150_000, seed=seed) for seed in (0, 1)], Heard()
        leader, follower = (replace(process, timeout=1.5) for process in pair)
        with ThreadPoolExecutor() as threads:
            following = threads.submit(follow_sweep, follower, jobs=1)
            sweep = run_sweep(runs, tmp_path / "sweep", jobs=1, observer=heard, processes=leader)
            following.result()
        assert not sweep.failures
        assert heard.events[0] == ("begin", [0, 1])
        for number in (0, 1):
            told = [event for event in heard.events if event[1] == number]
            assert told[0] == ("step", number, 0)
            assert len({step for name, _, step in told if name == "step"}) > 3
            assert told[-1] == ("end", number, None)

    def test_followers_of_a_leader_without_work_go_home(self, pair: list[Processes]) -> None:
        pair[0].tell({"go home": "the folder is taken"})
        follow_sweep(pair[1])

    def test_a_run_waits_for_its_last_owner(self, tmp_path: Path) -> None:
        """As for a worker whose parent was killed; without patience a folder that is taken is an error at once."""
        descriptor = lock_folder(tmp_path)
        with pytest.raises(FolderError, match="another process is running"):
            lock_folder(tmp_path)
        threading.Timer(0.3, os.close, [descriptor]).start()
        kinds.do(TINY.study, TINY.to_dict(), tmp_path, lambda step: None)
        assert load_run(tmp_path).summary is not None

    def test_silence(self, pair: list[Processes], tmp_path: Path) -> None:
        """A follower that says nothing is missed, one that is there says so, and a leader that was away waits anew."""
        store = pair[0].store
        assert store is not None
        followers, reports = Followers(pair[0], store, tmp_path, Heard()), Reports(pair[1], store)
        for _ in range(20):
            reports._sent -= 1.0
            reports.attend()
            pass_second(followers)
        followers._attended -= 1000.0
        followers.attend()
        pass_second(followers, 6)
        with pytest.raises(DistributedError, match=f"process 1 .* for 8 s; go on with: mhicl resume {tmp_path}"):
            pass_second(followers, 3)

    def test_a_follower_that_cannot_work_says_why(self, pair: list[Processes], tmp_path: Path) -> None:
        store = pair[0].store
        assert store is not None
        followers = Followers(pair[0], store, tmp_path, Heard())
        Reports(pair[1], store).send(lost="does not see it")
        with pytest.raises(DistributedError, match="process 1 of the sweep does not see it"):
            followers.wait()

    def test_a_store_that_is_gone(self, tmp_path: Path) -> None:
        server = TCPStore("localhost", 0, 1, is_master=True, timeout=timedelta(seconds=2))
        client = TCPStore("localhost", server.port, 1, is_master=False, timeout=timedelta(seconds=2))
        del server
        with pytest.raises(DistributedError, match="the processes of the sweep have lost each other"):
            next(claims([Work(0, TINY, tmp_path)], client))

    def test_workers_do_not_know_torchrun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        theirs = ("RANK", "LOCAL_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
        for name in (*theirs, "LOCAL_SCRATCH"):
            monkeypatch.setenv(name, "1")
        left = _environment()
        assert not left.keys() & set(theirs)
        assert left["LOCAL_SCRATCH"] == left["OMP_NUM_THREADS"] == "1"
