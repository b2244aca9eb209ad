"""What the leader of a sweep hears from its followers: how their runs go, and that they are there.

Messages go through a queue in the store of torch.distributed, several events in one. Each is a JSON object {"rank",
"events": [[name of a listener's method, its arguments …]]}, the last one of a follower with "done", or with "lost" if
it cannot work: the reason why.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.distributed import QueueEmptyError
from torch.distributed.distributed_c10d import Store

from ..processes import DistributedError, Processes
from .claims import store_errors
from .pool import Listener

_QUEUE = "events"
_REPORT_EVERY = 0.25  # seconds at least between two messages of a follower
_ALIVE_EVERY = 10.0  # seconds at most, if the leader's patience is not shorter
_LISTEN_EVERY = 0.1
_LONGEST_PAUSE = 1.0  # a leader that was away for longer has not listened, so its followers were not silent


class Reports:
    """A follower's side: a listener that passes on what it hears."""

    def __init__(self, processes: Processes, store: Store) -> None:
        self._rank, self._store = processes.rank, store
        self._alive_every = min(_ALIVE_EVERY, processes.timeout / 4)
        self._events: list[tuple[Any, ...]] = []
        self._sent = time.monotonic()

    def step(self, number: int, step: int) -> None:
        self._events.append(("step", number, step))

    def end(self, number: int, failure: str | None) -> None:
        self._events.append(("end", number, failure))

    def warn(self, text: str) -> None:
        self._events.append(("warn", text))

    def attend(self) -> None:
        """To be called often: sends what there is to tell, or from time to time that this process is there."""
        if time.monotonic() - self._sent >= (_REPORT_EVERY if self._events else self._alive_every):
            self.send()

    def send(self, **more: Any) -> None:
        """Send what there is to tell now; raises DistributedError where the store is gone."""
        events, self._events = self._events, []
        with store_errors():
            self._store.queue_push(_QUEUE, json.dumps({"rank": self._rank, "events": events, **more}))
        self._sent = time.monotonic()


class Followers:
    """The leader's side: passes what followers tell to its listener, and misses those that say nothing."""

    def __init__(self, processes: Processes, store: Store, path: Path, listener: Listener) -> None:
        self._timeout, self._store, self._path, self._listener = processes.timeout, store, path, listener
        self._silent = dict.fromkeys(range(1, processes.size), 0.0)  # for how many seconds, those that are at work
        self._attended = time.monotonic()

    def attend(self) -> None:
        """To be called often: listen to what has come.

        Raises DistributedError where a follower cannot work, or has not been heard of for too long.
        """
        now = time.monotonic()
        pause, self._attended = min(now - self._attended, _LONGEST_PAUSE), now
        for rank in self._silent:
            self._silent[rank] += pause
        for message in self._messages():
            self._take(message)
        for rank, silent in self._silent.items():
            if silent > self._timeout:
                raise DistributedError(
                    f"process {rank} of the sweep has not been heard of for {self._timeout:g} s; go on with: mhicl "
                    f"resume {self._path}"
                )

    def wait(self) -> None:
        """Listen until all followers are done."""
        while self._silent:
            self.attend()
            time.sleep(_LISTEN_EVERY)

    def _take(self, message: dict[str, Any]) -> None:
        rank = message["rank"]
        self._silent[rank] = 0.0
        for name, *arguments in message["events"]:
            getattr(self._listener, name)(*arguments)
        if message.get("done"):
            del self._silent[rank]
        if "lost" in message:
            raise DistributedError(f"process {rank} of the sweep {message['lost']}")

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            with store_errors():
                try:
                    message = self._store.queue_pop(_QUEUE, False)
                except QueueEmptyError:
                    return
            yield json.loads(message)
