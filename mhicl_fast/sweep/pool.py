"""Runs on worker processes, as many at a time as there are cores, each on one thread while there are runs enough.

Processes rather than threads: results of a run take seconds of Python, which one interpreter would do one after the
other; the number of PyTorch's threads and the handling of Ctrl-C belong to a process; and a run that is killed, as for
its memory, takes no other with it. A worker takes about two seconds to start and is used for many runs.
"""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol

from ..train.config import RunConfig
from ..train.interruptions import is_another_wish

# The parent's search path is the child's: the package may not be installed.
_COMMAND = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mhicl_fast.sweep.worker import serve; serve()"
_LAST_WORDS = 4096
# By which a process knows that torchrun has started it, and with which others: a worker was not, and has none.
_TORCHRUN = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|TORCH_NCCL_ASYNC_ERROR_HANDLING"
)
_ATTEND_EVERY = 0.1  # seconds


class Configuration(Protocol):
    """What says what is to be done, by the name of a study: see `kinds`."""

    study: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        ...


class Work(NamedTuple):
    """A run, or something else of a study, that is to be done: its number, configuration and folder, new or to be
    resumed; `gpu` is the number of the one that a device without a number means (None: the first)."""

    number: int
    config: Configuration
    path: Path
    gpu: int | None = None


class Listener(Protocol):
    """What hears how the runs go."""

    def step(self, number: int, step: int) -> None:
        """A run has reached a step; the first that is told is the one at which it starts or goes on."""

    def end(self, number: int, failure: str | None) -> None:
        """A run has ended, finished or with a reason why not."""

    def warn(self, text: str) -> None:
        """A run has warned."""


def longest_first(work: Iterable[Work]) -> list[Work]:
    """The runs of a sweep in the order that keeps cores busy to the end."""
    return sorted(work, key=lambda item: -_operations(item.config))


def execute(
    work: Iterable[Work],
    cores: int,
    listener: Listener,
    places: int | None = None,
    attend: Callable[[], None] | None = None,
) -> None:
    """Do all the work on so many cores, which is asked for one by one when there is a place free, of `places` (None:
    as many as cores). `attend` is called many times a second.

    KeyboardInterrupt stops every run with a checkpoint, a second one at once.
    """
    with Pool(cores, cores if places is None else places) as pool:
        pool.work(work, listener, attend)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM, with which torchrun and cluster schedulers end a process, is as Ctrl-C within; outside the main thread,
    where signals cannot be handled, it stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    since = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if is_another_wish(since):
            since = time.monotonic()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _operations(config: Configuration) -> float:
    """What a run costs, in proportion."""
    assert isinstance(config, RunConfig)
    prompts = 1 if config.estimator == "asymptotic" else config.n_prompts * config.context_length
    return float(config.steps) * prompts * config.n_heads * (config.dim_x + config.n_tasks)


class Pool:
    """Workers for one lot of work after the other. Use as a context manager, at whose end all workers are ended: those
    at work after a checkpoint, and on a second Ctrl-C at once.

    Args:
        cores: how many there are for all workers together.
        places: how many workers there are at most.
        threads: of each worker, for work whose results depend on their number, and workers stay when they have nothing
            to do. None: as they run out of work they go, and their cores are shared out.
    """

    def __init__(self, cores: int, places: int, threads: int | None = None) -> None:
        self._waiting: Iterator[Work] = iter(())
        self._cores, self._places, self._threads = cores, places, threads
        self._listener: Listener | None = None
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def work(self, work: Iterable[Work], listener: Listener, attend: Callable[[], None] | None = None) -> None:
        """Do all of it, which is asked for one by one when there is a place free; `attend` is called many times a
        second."""
        self._waiting, self._listener = iter(work), listener
        self._assign()
        while any(worker.number is not None for worker in self._workers):
            for key, _ in self._selector.select(None if attend is None else _ATTEND_EVERY):
                self._hear(key.data)
            self._assign()
            if attend is not None:
                attend()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for worker in self._workers:
                worker.dismiss()
            for worker in self._workers:
                worker.wait()
        except BaseException:
            for worker in self._workers:
                worker.kill()
            raise
        finally:
            self._selector.close()

    def _assign(self) -> None:
        """Give waiting runs to idle or new workers, and each its threads."""
        idle = [worker for worker in self._workers if worker.number is None]
        while idle or len(self._workers) < self._places:
            work = next(self._waiting, None)
            if work is None:
                break
            (idle.pop() if idle else self._add()).start(work)
        for worker in idle if self._threads is None else ():
            self._remove(worker)
        for place, worker in enumerate(self._workers):
            shared = (self._cores + place) // len(self._workers)  # in sum `cores`
            worker.set_threads(shared if self._threads is None else self._threads)

    def _hear(self, worker: _Worker) -> None:
        assert self._listener is not None
        for answer in worker.receive():
            if "warning" in answer:
                self._listener.warn(answer["warning"])
            elif "step" in answer:
                self._listener.step(answer["run"], answer["step"])
            else:
                worker.number = None
                self._listener.end(answer["run"], answer.get("failed"))
        if worker.gone:
            cause = self._remove(worker)
            if worker.number is not None:
                self._listener.end(worker.number, cause)

    def _add(self) -> _Worker:
        worker = _Worker()
        self._workers.append(worker)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        return worker

    def _remove(self, worker: _Worker) -> str:
        """Let go of a worker; returns why it ended, if it did so by itself."""
        self._selector.unregister(worker.answers)
        self._workers.remove(worker)
        worker.dismiss()
        return worker.wait()


def _environment() -> dict[str, str]:
    """A worker's: PyTorch's threads start at one, those of linear algebra stay there."""
    own = {name: value for name, value in os.environ.items() if not _TORCHRUN.fullmatch(name)}
    return own | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class _Worker:
    """A worker process seen from here. `number` is that of the run it is at, `gone` whether it has ended."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.gone = False
        self._threads = 1
        self._unread = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        # A session of its own: Ctrl-C on the terminal reaches the parent alone; workers hear of it, as of the parent's
        # death, by the end of their input.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self.answers = self._process.stdin, self._process.stdout

    def start(self, work: Work) -> None:
        self.number = work.number
        self._send(
            run=work.number,
            path=str(work.path.absolute()),
            study=work.config.study,
            config=work.config.to_dict(),
            gpu=work.gpu,
        )

    def set_threads(self, threads: int) -> None:
        if threads != self._threads:
            self._threads = threads
            self._send(threads=threads)

    def receive(self) -> list[dict[str, Any]]:
        """The answers that have come since."""
        data = os.read(self.answers.fileno(), 65536)
        self.gone = not data
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def dismiss(self) -> None:
        """Let it end, after a checkpoint if it is at work."""
        with suppress(BrokenPipeError):  # it may have ended already
            self._input.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self) -> str:
        """Wait for its end and return the cause, for one that should not have ended."""
        status = self._process.wait()
        self.answers.close()
        with self._errors:
            self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _LAST_WORDS))
            words = self._errors.read().decode(errors="replace").strip().splitlines()
        if status < 0:
            hint = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-status).name}{hint}"
        return f"its process ended with status {status}" + (f": {words[-1]}" if words else "")

    def _send(self, **content: Any) -> None:
        with suppress(BrokenPipeError):  # reading from it will tell that it is gone
            self._input.write((json.dumps(content) + "\n").encode())
            self._input.flush()
