"""How the processes that torchrun starts share a sweep: its leader tells a plan, then each claims run after run.

A claim is one addition to a counter in the store of torch.distributed, so that no run is claimed twice and none is
left, however long the runs take.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store

from ..processes import ALONE, DistributedError, Processes, in_short
from ..train.config import RunConfig
from ..train.settings import ConfigError
from .folder import definition, run_path
from .pool import Work

_COUNTER = "claims"
_FILE_SYSTEM_S = 10.0  # in which what one machine has written is seen by the others
_LOOK_EVERY = 0.1


@dataclass(frozen=True)
class Plan:
    """What all processes of a sweep know alike.

    path: of the sweep's folder, absolute. stamp: the time at which its list of runs was written, which tells this
    folder from another of the same name on another machine. order: the numbers of the runs to be done, as they are to
    be claimed. name: keeps what these processes store apart from what they store for another sweep.
    """

    path: Path
    stamp: int
    order: tuple[int, ...]
    name: str

    @classmethod
    def of(cls, path: Path, work: Sequence[Work]) -> Plan:
        """The plan to do this work in this order."""
        path = path.absolute()
        return cls(path, definition(path).stat().st_mtime_ns, tuple(item.number for item in work), uuid.uuid4().hex)

    def word(self) -> dict[str, Any]:
        """What the leader tells."""
        return {"sweep": str(self.path), "stamp": self.stamp, "work": self.order, "name": self.name}

    @classmethod
    def from_word(cls, word: dict[str, Any]) -> Plan:
        """The plan that was told."""
        return cls(Path(word["sweep"]), word["stamp"], tuple(word["work"]), word["name"])

    def is_seen(self) -> bool:
        """Whether this process sees the leader's folder, for which it waits a little."""
        deadline = time.monotonic() + _FILE_SYSTEM_S
        while not (seen := self._has_stamp()) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
        return seen

    def _has_stamp(self) -> bool:
        try:
            return definition(self.path).stat().st_mtime_ns == self.stamp
        except OSError:
            return False

    def store(self, processes: Processes) -> Store:
        """Where the processes keep what belongs to this sweep."""
        assert processes.store is not None
        return PrefixStore(self.name, processes.store)


def claims(work: Sequence[Work], store: Store) -> Iterator[Work]:
    """Runs that no other process has claimed, each claimed when it is asked for; all must give the same list.

    Raises DistributedError where the store is gone.
    """
    while True:
        with store_errors():
            number = store.add(_COUNTER, 1) - 1
        if number >= len(work):
            return
        yield work[number]


def to_do(configs: Sequence[RunConfig], path: Path, numbers: Iterable[int], processes: Processes = ALONE) -> list[Work]:
    """The runs with these numbers, of the sweep in `path`. Of several GPUs each process on a machine has one."""
    gpu = processes.local_rank if processes.local_size > 1 else None
    return [Work(number, configs[number], run_path(path, number), gpu) for number in numbers]


def cores_for(jobs: int | None, processes: Processes = ALONE) -> int:
    """How many cores this process uses: `jobs`, or where that is None its part of the machine's.

    Raises ConfigError unless `jobs` is None or a positive integer.
    """
    if jobs is None:
        return max(1, len(os.sched_getaffinity(0)) // processes.local_size)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"jobs must be a positive integer, got {jobs!r}")
    return jobs


def places(runs: int, cores: int, processes: Processes) -> int:
    """How many runs this process may do at a time: no more than its part of them, or with fewer runs than cores those
    who claim first would leave the others idle."""
    first, end = (runs * rank // processes.size for rank in (processes.rank, processes.rank + 1))
    return min(cores, end - first)


@contextmanager
def store_errors() -> Iterator[None]:
    """What fails within is the store, which torchrun keeps."""
    try:
        yield
    except RuntimeError as error:  # all that torch.distributed raises is one
        raise DistributedError(f"the processes of the sweep have lost each other: {in_short(error)}") from error
