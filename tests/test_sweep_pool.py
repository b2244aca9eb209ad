"""How a sweep's runs are given to workers and cores to runs, with workers that are not processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mhicl_fast.presets import preset
from mhicl_fast.sweep import pool
from mhicl_fast.sweep.pool import Work, execute, longest_first
from mhicl_fast.sweep.pool import _Worker as Process

DEMO = preset("demo")


class FakeWorker:
    """Answers as it is told, when it is told to."""

    made: ClassVar[list[FakeWorker]] = []

    def __init__(self) -> None:
        self.number: int | None = None
        self.gone = False
        self.threads = 1
        self.runs: list[int] = []
        self.dismissed = self.waited = False
        self._queue: list[dict[str, Any]] = []
        reading, self._writing = os.pipe()
        self.answers = os.fdopen(reading, "rb", buffering=0)
        self.made.append(self)

    def start(self, work: Work) -> None:
        self.number = work.number
        self.runs.append(work.number)

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def say(self, **answer: Any) -> None:
        self._queue.append(answer)
        os.write(self._writing, b"!")

    def die(self) -> None:
        os.close(self._writing)

    def receive(self) -> list[dict[str, Any]]:
        self.gone = not os.read(self.answers.fileno(), 4096)
        answers, self._queue = self._queue, []
        return answers

    def dismiss(self) -> None:
        self.dismissed = True

    def kill(self) -> None:
        raise AssertionError("no worker is to be killed here")

    def wait(self) -> str:
        self.waited = True
        self.answers.close()
        return "died"


class Script:
    """Hears the pool and lets the next worker answer; checks how the cores are shared as it goes."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.heard: list[tuple[Any, ...]] = []
        self.sharing: list[dict[int, int]] = []

    def busy(self) -> list[FakeWorker]:
        return [worker for worker in FakeWorker.made if worker.number is not None and not worker.waited]

    def share(self) -> None:
        self.sharing.append({worker.number: worker.threads for worker in self.busy() if worker.number is not None})

    def step(self, number: int, step: int) -> None:
        self.heard.append(("step", number, step))

    def end(self, number: int, failure: str | None) -> None:
        self.heard.append(("end", number, failure))

    def warn(self, text: str) -> None:
        self.heard.append(("warn", text))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeWorker.made = []
    monkeypatch.setattr(pool, "_Worker", FakeWorker)


def work(*steps: int) -> list[Work]:
    return [Work(number, replace(DEMO, steps=n), Path(str(number))) for number, n in enumerate(steps)]


def drive(monkeypatch: pytest.MonkeyPatch, script: Script, answers: list[Any]) -> None:
    """Before each wait of the pool the next of `answers` is given: (run, answer) or the run whose worker dies."""
    original = pool.selectors.DefaultSelector.select

    def select(selector: Any, timeout: float | None = None) -> Any:
        script.share()
        answer = answers.pop(0)
        number = answer if isinstance(answer, int) else answer[0]
        (worker,) = [worker for worker in script.busy() if worker.number == number]
        if isinstance(answer, int):
            worker.die()
        else:
            worker.say(**answer[1])
        return original(selector, timeout)

    monkeypatch.setattr(pool.selectors.DefaultSelector, "select", select)


def test_the_longest_first_and_all_cores_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(3)
    done = [(2, {"run": 2, "step": 7}), *((n, {"run": n, "finished": True}) for n in (2, 4, 1, 0, 3))]
    drive(monkeypatch, script, done)
    execute(longest_first(work(10, 20, 50, 5, 40)), 3, script)
    assert script.sharing == [
        {2: 1, 4: 1, 1: 1}, {2: 1, 4: 1, 1: 1}, {0: 1, 4: 1, 1: 1}, {0: 1, 3: 1, 1: 1}, {0: 1, 3: 2}, {3: 3},
    ]  # fmt: skip
    assert script.heard == [("step", 2, 7), *(("end", n, None) for n in (2, 4, 1, 0, 3))]
    assert len(FakeWorker.made) == 3
    assert all(worker.dismissed and worker.waited for worker in FakeWorker.made)


def test_fewer_runs_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(5)
    drive(monkeypatch, script, [(0, {"run": 0, "failed": "diverged"}), (1, {"run": 1, "finished": True})])
    execute(work(10, 20), 5, script)
    assert [sorted(sharing.values()) for sharing in script.sharing] == [[2, 3], [5]]
    assert script.heard == [("end", 0, "diverged"), ("end", 1, None)]


def test_a_worker_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(1)
    drive(monkeypatch, script, [0, (1, {"warning": "hm"}), (1, {"run": 1, "finished": True}), 2])
    execute(work(10, 9, 8), 1, script)
    assert script.heard == [("end", 0, "died"), ("warn", "hm"), ("end", 1, None), ("end", 2, "died")]
    assert [worker.runs for worker in FakeWorker.made] == [[0], [1, 2]]


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_Worker", Process)
    monkeypatch.setattr(pool, "_COMMAND", "raise SystemExit('first\\nno such library')")
    script = Script(2)
    execute(work(10, 9), 2, script)
    cause = "its process ended with status 1: no such library"
    assert sorted(script.heard) == [("end", 0, cause), ("end", 1, cause)]


def test_nothing_to_do() -> None:
    execute([], 2, Script(2))
    assert not FakeWorker.made


def test_workers_are_let_go_when_hearing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(2)
    drive(monkeypatch, script, [(1, {"run": 1, "step": 3})])

    def fail(number: int, step: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "step", fail)
    with pytest.raises(KeyboardInterrupt):
        execute(work(10, 20), 2, script)
    assert all(worker.dismissed and worker.waited for worker in FakeWorker.made)
