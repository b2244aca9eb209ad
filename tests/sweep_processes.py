"""A process of a sweep as torchrun starts it, run as a script with a JSON object of arguments, whose end it reports.

{"path", "runs": [configurations], "jobs", "timeout", "fault"}. A fault happens to the follower at its first start, when
one of its runs has made steps: "kill" or "stop". Each process prints the numbers of the runs that it did, and at which
second it had none left and a place free.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from mhicl_fast.processes import launched
from mhicl_fast.sweep import follow, follow_sweep, loop, run_sweep
from mhicl_fast.sweep.claims import claims
from mhicl_fast.sweep.events import Reports
from mhicl_fast.sweep.pool import Work
from mhicl_fast.train import RunConfig

FAULTS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def main() -> None:
    order = json.loads(sys.argv[1])
    done: list[int] = []
    ended: list[float] = []

    def recorded(*arguments: Any) -> Iterator[Work]:
        for work in claims(*arguments):
            done.append(work.number)
            yield work
        ended.append(time.time())

    loop.claims = follow.claims = recorded  # type: ignore[attr-defined]
    if order.get("fault") and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        _break(FAULTS[order["fault"]])
    with launched(order.get("timeout", 60.0)) as processes:
        if processes.leads:
            configs = [RunConfig.from_dict(run) for run in order["runs"]]
            run_sweep(configs, order["path"], jobs=order["jobs"], processes=processes)
        else:
            follow_sweep(processes, jobs=order["jobs"])
    print(json.dumps({"rank": processes.rank, "runs": done, "ended": ended}), flush=True)


def _break(number: signal.Signals) -> None:
    """Send this process a signal when one of its runs, in its first start, has made steps."""
    step = Reports.step

    def broken(self: Reports, run: int, reached: int) -> None:
        step(self, run, reached)
        if reached > 0:
            os.kill(os.getpid(), number)

    Reports.step = broken  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
