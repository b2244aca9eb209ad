"""Signals that end a run or a sweep."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from mhicl_fast.sweep import pool
from mhicl_fast.train import interruptions


@pytest.fixture
def wait_for_another_wish(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets so much time pass that a signal is a new one."""
    monkeypatch.setattr(interruptions, "_SAME_WISH_S", 0.2)
    return lambda: time.sleep(0.25)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_held_back(number: signal.Signals, wait_for_another_wish: Callable[[], None]) -> None:
    """The first signal, with its echo, until the end; another one interrupts at once."""
    reached = []

    def train(impatient: bool) -> None:
        with interruptions.interruptions() as interrupted, interrupted.held():
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert interrupted.requested
            if impatient:
                wait_for_another_wish()
                signal.raise_signal(number)
            reached.append(impatient)

    for impatient in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(impatient)
    assert reached == [False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_not_held_back_interrupts_at_once(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), interruptions.interruptions():
        signal.raise_signal(number)


def test_sigterm_interrupts_a_sweep_once(wait_for_another_wish: Callable[[], None]) -> None:
    """Its echo does not cut short what follows, as the checkpoints of the runs."""
    reached = []

    def sweep() -> None:
        with pool.interrupted_by_sigterm():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                reached.append("after the echo")
                wait_for_another_wish()
                signal.raise_signal(signal.SIGTERM)
                reached.append("further")

    with pytest.raises(KeyboardInterrupt):
        sweep()
    assert reached == ["after the echo"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
