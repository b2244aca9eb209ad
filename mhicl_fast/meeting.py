"""How processes that torchrun starts, and starts again, find those of their own attempt.

torchrun may keep one store for all attempts, with the words of processes that are gone; and the number of restarts that
it tells a process is that of its own node, where a restart counts only if a process of that very node has failed. So
neither tells one attempt from another. Here everybody but the leader shows up under a name that nobody had before, and
the leader answers names, left ones too, with the number of its attempt until all the others have come.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable

from torch.distributed.distributed_c10d import PrefixStore, Store

_LOOK_EVERY = 0.02
_MOST_LISTED = 8  # of the missing, in a message


def meet(shared: Store, rank: int, size: int, restarts: int, timeout: float) -> tuple[Store, int]:
    """What this attempt alone stores in, and how often its processes were started before.

    restarts: what torchrun says of them to this process. Raises TimeoutError, which names who is missing, where others
    do not come within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    if rank > 0:
        attempt = _attempt_of_leader(shared, rank, deadline)
        store = PrefixStore(f"attempt {attempt}", shared)
        store.set(f"restarts of {rank}", str(restarts))
        _await(lambda: store.check(["restarts"]), deadline, lambda: "process 0, the leader, left again")
        return store, int(store.get("restarts"))
    attempt = shared.add("attempts", 1)
    store = PrefixStore(f"attempt {attempt}", shared)
    counts = [restarts, attempt - 1, *_welcome(shared, store, attempt, size, deadline)]
    store.set("restarts", str(max(counts)))
    return store, max(counts)


def _attempt_of_leader(shared: Store, rank: int, deadline: float) -> int:
    name = uuid.uuid4().hex
    answer = f"attempt of {name}"
    shared.set(f"name of {rank}", name)
    _await(lambda: shared.check([answer]), deadline, lambda: "process 0, the leader, did not come")
    return int(shared.get(answer))


def _welcome(shared: Store, store: Store, attempt: int, size: int, deadline: float) -> list[int]:
    """Answers all others; returns what torchrun says of restarts to each."""
    missing = set(range(1, size))

    def all_came() -> bool:
        for rank in sorted(missing):
            if store.check([f"restarts of {rank}"]):
                missing.remove(rank)
            elif shared.check([f"name of {rank}"]):
                shared.set(f"attempt of {shared.get(f'name of {rank}').decode()}", str(attempt))
        return not missing

    _await(all_came, deadline, lambda: f"of {size} processes these did not come: {_listed(missing)}")
    return [int(store.get(f"restarts of {rank}")) for rank in range(1, size)]


def _listed(ranks: Iterable[int]) -> str:
    first, rest = sorted(ranks)[:_MOST_LISTED], len(set(ranks)) - _MOST_LISTED
    return ", ".join(map(str, first)) + (f" and {rest} more" if rest > 0 else "")


def _await(happened: Callable[[], bool], deadline: float, reason: Callable[[], str]) -> None:
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(reason())
        time.sleep(_LOOK_EVERY)
