"""Ctrl-C, and SIGTERM as a batch system sends it: heard at once, followed between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..processes import DistributedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_WISH_S = 1.0


def is_another_wish(since: float) -> bool:
    """Whether a signal is not the echo of one at the time `since`: what ends a whole job may send a process the same
    signal as torchrun, which passes on what it gets itself."""
    return time.monotonic() - since > _SAME_WISH_S


class Interruptions:
    """Ctrl-C and SIGTERM: a KeyboardInterrupt at once, or, where they are held back, the wish to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the first signal back, so that a step is never cut in two; a second one interrupts all the same."""
        self._held = True
        yield
        self._held = False  # not after an error, which has to be told first
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._held or (self.requested and is_another_wish(self._since)):
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = True, time.monotonic()


@contextmanager
def interruptions() -> Iterator[Interruptions]:
    """Handle both signals while the context lasts, and longer where it ends as processes have lost each other.

    Outside the main thread, where signals cannot be handled, none is ever requested.
    """
    found = Interruptions()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found._handle) for number in _SIGNALS}
    restores = True
    try:
        yield found
    except DistributedError:  # torchrun sends SIGTERM to those that are left, who have to say first what happened
        restores, found._held = False, True
        raise
    finally:
        if restores:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
