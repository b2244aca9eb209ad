"""A worker process: it does what its standard input says, one run at a time.

Requests are JSON objects, one a line: {"run": number, "path": folder, "study": its name, "config": {…}, "gpu": number
of the one that a device without a number means, or null}, and at any time {"threads": how many to use from now on}. The
end of the input, as when the parent is gone, stops a run as Ctrl-C does.
Answers: {"run", "step"} now and then, {"run", "finished": true} or {"run", "failed": reason}, and {"warning": text}.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..train.checkpoints import CheckpointError
from ..train.folder import FolderError
from ..train.stepping import TrainingError
from ..train.storage import StorageError, write_fully
from .kinds import do

_REPORT_EVERY = 0.2  # seconds between answers about steps
_EXPECTED = (TrainingError, FolderError, CheckpointError, StorageError)  # their messages need no name of a type


def serve() -> None:
    """Work until the input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever prints does not disturb the answers
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = _Worker(answers)
    warnings.showwarning = lambda message, *_, **__: worker.answer(warning=str(message))
    try:
        threading.Thread(target=worker.listen, daemon=True).start()
        worker.work()
    except KeyboardInterrupt:
        pass


class _Worker:
    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._threads = torch.get_num_threads()
        self._answered = 0.0

    def listen(self) -> None:
        """Take requests until the input ends, then interrupt the main thread, whatever it does."""
        for line in sys.stdin:
            request = json.loads(line)
            if "threads" in request:
                self._threads = request["threads"]
            else:
                self._requests.put(request)
        self._requests.put(None)
        os.kill(os.getpid(), signal.SIGINT)

    def work(self) -> None:
        while (request := self._requests.get()) is not None:
            number = request["run"]
            try:
                _choose_gpu(request["gpu"])
                self._do(number, request["study"], request["config"], Path(request["path"]))
            except Exception as error:  # one run's failure, of whatever kind, is not the sweep's
                traceback.print_exc()
                name = "" if isinstance(error, _EXPECTED) else f"{type(error).__name__}: "
                self.answer(run=number, failed=f"{name}{error}")
            else:
                self.answer(run=number, finished=True)

    def _do(self, number: int, study: str, config: dict[str, Any], path: Path) -> None:
        self._answered = 0.0

        def tell(step: int) -> None:
            self._set_threads()
            now = time.monotonic()
            if now - self._answered >= _REPORT_EVERY or step == config.get("steps"):
                self._answered = now
                self.answer(run=number, step=step)

        do(study, config, path, tell)

    def _set_threads(self) -> None:
        """In the main thread, as the number is that of the calling thread's pool."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def answer(self, **content: Any) -> None:
        with suppress(BrokenPipeError):  # where the parent is gone the input ends, and the run is about to stop
            write_fully(self._answers, (json.dumps(content) + "\n").encode())


def _choose_gpu(number: int | None) -> None:
    if number is not None and torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
