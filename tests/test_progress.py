"""The progress bar: on a terminal it counts the steps of every span, elsewhere it is silent."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from mhicl_fast.presets import preset
from mhicl_fast.progress import ProgressBar, SparseBar
from mhicl_fast.sparse import preset as sparse_preset
from mhicl_fast.train.loop import Progress
from mhicl_fast.train.records import SpectralState

CONFIG = preset("demo").with_settings(["steps=100"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def state(share: float) -> SpectralState:
    return SpectralState(np.ones((3, 3)), np.ones((3, 3)), np.full(3, share), 0.0)


def follow(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written for spans of steps that go on from step 40."""
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar(CONFIG) as bar:
        for step, loss, record in ((57, 3.5, state(0.0)), (58, 3.4, None), (90, 2.5, state(0.5)), (100, 2.25, None)):
            bar(Progress(step, step / 10, loss, record))
        bar(Progress(100, 10.0, 2.125, state(1.0)))
    return stream.getvalue().split("\r")


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    monkeypatch.setenv("TQDM_NCOLS", "120")
    last = follow(Terminal(), monkeypatch)[-1]
    assert "100/100" in last
    assert "loss 2.125, flow time 10, convergence" in last


def test_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert follow(io.StringIO(), monkeypatch) == [""]


def test_of_sparse_linear_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    monkeypatch.setenv("TQDM_NCOLS", "120")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with SparseBar(sparse_preset("demo").with_settings(["steps=50"])) as bar:
        for step, loss, record in ((20, 3.5, [4.0, 5.0]), (30, 3.25, None)):
            bar(Progress(step, 0.0, loss, record))
    last = stream.getvalue().split("\r")[-1]
    assert "30/50" in last
    assert "loss 3.25, risk 4.5" in last
