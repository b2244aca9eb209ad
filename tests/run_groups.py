"""Groups of processes that do one `mhicl` command together, as torchrun would start them, within milliseconds.

Run as a script, this is a server that forks the processes of a group, with the environment that torchrun would give
them; the test holds their store. A request is a JSON line, {"start": …} or {"wait": pids, "timeout": seconds}; the
answer is a line with the processes' ids or with their exit statuses, negative for a signal, null for one that hung.
Faults are made by replacing functions in the child, so the product knows nothing of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launched import environment
from line_server import LineServer
from runs_children import TINY, quicken
from torch.distributed import TCPStore

from mhicl_fast.cli import main

_PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True)
class Group:
    """Processes that were started, by rank, and the files of what they print."""

    server: GroupServer
    store: TCPStore
    attempt: int
    pids: list[int]
    printed: list[Path]
    complaints: list[Path]

    def statuses(self, timeout: float = 60) -> list[int | None]:
        """Exit statuses, once all have ended; None for one that had to be killed after `timeout` seconds."""
        statuses: list[int | None] = self.server.ask({"wait": self.pids, "timeout": timeout})
        return statuses

    def out(self, rank: int) -> str:
        """What a process wrote to its standard output."""
        return self.printed[rank].read_text()

    def errors(self, rank: int) -> str:
        """What a process wrote to its standard error."""
        return self.complaints[rank].read_text()


class GroupServer:
    """The server's side in a test. Use as a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="groups-")
        self._server = LineServer(__file__, environment())
        self.ask = self._server.ask

    def start(
        self,
        size: int,
        arguments: Sequence[str | Path],
        *,
        ranks: Iterable[int] | None = None,
        restarts: Group | None = None,
        counts: Mapping[int, int] | None = None,
        faults: Mapping[int, tuple[int, int]] | None = None,
    ) -> Group:
        """Start a command; of `ranks` alone where not all come.

        `restarts`: the group that this is another attempt of, which meets at the same store. `counts`: by rank, the
        restarts that torchrun tells it where its node has counted others. `faults`: by rank, (step, signal that it then
        gets); the processes make one step at a time then.
        """
        store = TCPStore("127.0.0.1", 0, None, True, _PATIENCE, False) if restarts is None else restarts.store
        attempt = 0 if restarts is None else restarts.attempt + 1
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        ranks = list(range(size) if ranks is None else ranks)
        common = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": "test",
        }
        processes = [
            {
                "environment": common
                | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                | {"TORCHELASTIC_RESTART_COUNT": str((counts or {}).get(rank, attempt))},
                "fault": None if faults is None else faults.get(rank, (sys.maxsize, 0)),
            }
            for rank in ranks
        ]
        files = [[folder / f"{rank}.{name}" for rank in ranks] for name in ("out", "err")]
        for process, out, err in zip(processes, *files):
            process |= {"out": str(out), "err": str(err)}
        pids = self.ask({"start": processes, "arguments": list(map(str, arguments))})
        return Group(self, store, attempt, pids, *files)

    def __enter__(self) -> GroupServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._folder.cleanup()


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    quicken()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        told, sys.stdout = sys.stdout, nowhere
        main(["run", "demo", "--set", *TINY, "--out", f"{folder}/run"])  # what is done once is done before the forks
        sys.stdout = told
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = [_fork(process, request["arguments"]) for process in request["start"]]
        else:
            answer = _wait(request["wait"], time.monotonic() + request["timeout"])
        print(json.dumps(answer), flush=True)


def _fork(process: Mapping[str, Any], arguments: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(process[name], os.O_WRONLY | os.O_CREAT, 0o666), descriptor)
    os.environ.update(process["environment"])
    status = 70
    try:
        if process["fault"] is not None:
            _install(*process["fault"])
        status = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _install(step: int, number: int) -> None:
    """One step at a time, and a signal to this process just before the one with this number, or of a later one."""
    from mhicl_fast.train import loop, steps

    make_stepper = loop.make_stepper
    steps.SPAN_SECONDS = 0.0

    def faulty(*arguments: Any) -> Any:
        stepper = make_stepper(*arguments)
        advance = stepper.advance

        def advance_or_stumble(now: int, *rest: Any) -> Any:
            nonlocal step
            if now >= step:
                step = sys.maxsize
                os.kill(os.getpid(), number)
            return advance(now, *rest)

        stepper.advance = advance_or_stumble
        return stepper

    loop.make_stepper = faulty


def _wait(pids: list[int], deadline: float) -> list[int | None]:
    statuses: dict[int, int | None] = {}
    while len(statuses) < len(pids):
        for pid in pids:
            if pid in statuses:
                continue
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                statuses[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                statuses[pid] = None
        time.sleep(0.005)
    return [statuses[pid] for pid in pids]


if __name__ == "__main__":
    _serve()
