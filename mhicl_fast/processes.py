"""The processes that share one run or one sweep: those that `torchrun` starts, or this one alone.

They talk through torch.distributed alone. Its process group adds up gradients (gloo between CPUs, NCCL between GPUs),
its key-value store carries the few words that processes say to each other besides. One of them, of rank 0, leads: it
has the folder, the progress bar and the standard output.

The `mhicl` command joins them by itself; a script that torchrun starts does so as

    with mhicl_fast.processes.launched() as processes:
        if processes.leads:
            mhicl_fast.train.run(config, "runs/shared", processes=processes)
        else:
            mhicl_fast.train.follow(processes)
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from .meeting import meet

TIMEOUT = 300.0  # seconds without an answer after which a process counts as lost
_LISTEN_EVERY = 0.05  # seconds between two looks for a word, so that a process which waits for one hears signals too


class DistributedError(RuntimeError):
    """The processes of a run or a sweep have lost each other."""


@dataclass(frozen=True)
class Processes:
    """What a process knows of its group.

    `rank` of `size` processes, `local_rank` of `local_size` on its machine. `group` is the name of the process group,
    empty for a process that is alone. `restarts` is how often `torchrun` has started them again. `timeout`, in seconds,
    is how long one that does not answer is waited for.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: str = ""
    restarts: int = 0
    timeout: float = TIMEOUT
    store: Store | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)  # of the leader's words

    @property
    def leads(self) -> bool:
        """Whether this process has the folder and speaks to the user."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """How a message to the user calls this process."""
        return f"process {self.rank} of {self.size} (numbered from 0)"

    def tell(self, word: Mapping[str, Any]) -> None:
        """Say a JSON-able word to all others, who `hear` words in the order in which they are told; nobody waits."""
        if self.store is not None:
            self.store.set(f"word {next(self._numbers)}", json.dumps(word))

    def dismiss(self, reason: str) -> None:
        """Tell those who listen that there is nothing for them to do."""
        self.tell({"go home": reason})

    def hear(self) -> dict[str, Any]:
        """The leader's next word, whenever it comes: torchrun ends those who wait for a leader that has died.

        The word of a leader that has left without another one is {"go home": reason}. DistributedError where there is
        no store any more to hear it from.
        """
        assert self.store is not None
        key = f"word {next(self._numbers)}"
        try:
            while not self.store.check([key]):
                time.sleep(_LISTEN_EVERY)
            word: dict[str, Any] = json.loads(self.store.get(key))
        except RuntimeError as error:
            raise DistributedError(f"{self.name} waited for its leader, which is gone: {in_short(error)}") from error
        return word


ALONE = Processes()


@contextmanager
def launched(timeout: float = TIMEOUT) -> Iterator[Processes]:
    """The processes that torchrun has started, this one among them; ALONE where it has not.

    Those who still wait for a word of a leader that leaves, for whatever reason, are told to go home.

    Raises DistributedError where they do not find each other within `timeout` seconds, ValueError where that is not
    positive.
    """
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
    if not dist.is_torchelastic_launched():
        _warn_of_another_launcher()
        yield ALONE
        return
    processes = _join(timeout)
    try:
        yield processes
    except DistributedError:
        _give_up()
        raise
    finally:
        if processes.leads:
            with suppress(RuntimeError):  # where the store is gone, so are those who listened
                processes.dismiss("the leader has left")
        dist.destroy_process_group()


def launched_size() -> int:
    """How many processes torchrun has started, this one among them; 1 where it has not."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def in_short(reason: object) -> str:
    """The first sentence of what torch.distributed says of a failure, without the place in its source."""
    first = str(reason).strip().partition("\n")[0]
    return re.split(r"\.(?: |$)", re.sub(r"\[\S*\.(cc|cpp|h|hpp):\d+\] ", "", first))[0]


def _warn_of_another_launcher() -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        warnings.warn(
            f"WORLD_SIZE={size} is set, but not by torchrun, which alone is recognised: this process works alone",
            RuntimeWarning,
            stacklevel=4,
        )


def _give_up() -> None:
    """Cut the connections of a group that has lost members, so that nothing waits for them at its end."""
    if dist.group.WORLD is not None:
        dist.group.WORLD.abort()


def _join(timeout: float) -> Processes:
    wait = timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        shared, rank, size = next(rendezvous("env://", timeout=wait))
        shared = PrefixStore("mhicl_fast", shared)
        shared.set_timeout(wait)
        store, restarts = meet(shared, rank, size, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)), timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
    except (RuntimeError, TimeoutError) as error:  # all that torch.distributed raises is a RuntimeError
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise DistributedError(
            f"the {os.environ.get('WORLD_SIZE')} processes did not meet at {address} within {timeout:g} s: "
            f"{in_short(error)}"
        ) from error
    return Processes(
        rank,
        size,
        int(os.environ["LOCAL_RANK"]),
        int(os.environ["LOCAL_WORLD_SIZE"]),
        dist.group.WORLD.group_name if dist.group.WORLD is not None and size > 1 else "",
        restarts,
        timeout,
        PrefixStore("words", store),
    )
