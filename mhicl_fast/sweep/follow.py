"""What the other processes of a sweep do while the leader has its folder: their part of the runs."""

from __future__ import annotations

import socket

from ..processes import Processes
from .claims import Plan, claims, cores_for, places, to_do
from .events import Reports
from .folder import read_sweep
from .pool import execute, interrupted_by_sigterm


def follow_sweep(processes: Processes, *, jobs: int | None = None) -> None:
    """Do runs of the sweep that the leader of these processes runs or resumes, until there are none left.

    `jobs`: how many of this machine's cores to use (None: this process's part of them). Results are files in the
    sweep's folder, of which the leader hears. Where the leader has no work, this ends at once.

    Raises DistributedError where the others are gone, KeyboardInterrupt on Ctrl-C and SIGTERM, after a checkpoint of
    each run.
    """
    word = processes.hear()
    if "sweep" not in word:
        return
    plan = Plan.from_word(word)
    store = plan.store(processes)
    reports = Reports(processes, store)
    if not plan.is_seen():
        reports.send(
            lost=f"on {socket.gethostname()} does not see {plan.path} as the leader does: all processes of a sweep "
            "need the same file system"
        )
        return
    configs, _ = read_sweep(plan.path)
    work = to_do(configs, plan.path, plan.order, processes)
    cores = cores_for(jobs, processes)
    with interrupted_by_sigterm():
        execute(claims(work, store), cores, reports, places(len(work), cores, processes), reports.attend)
    reports.send(done=True)
