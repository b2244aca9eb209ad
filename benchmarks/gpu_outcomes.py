"""A plugin of pytest: what becomes of each test, written at once, so that it is known when pytest is killed.

A line `NAME<tab>KIND` for each test as it starts, and again as it ends; of the lines of a test the last one counts.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FILE = "MHICL_GPU_OUTCOMES"  # the variable that names the file
STARTED, PASSED, FAILED, SKIPPED = "started", "passed", "failed", "skipped"


def read(file: Path) -> dict[str, str]:
    """The last that was said of each test; `STARTED` of the one in which pytest was stopped."""
    lines = file.read_text().splitlines() if file.exists() else []
    return dict(line.rsplit("\t", 1) for line in lines)


def _say(name: str, kind: str) -> None:
    with open(os.environ[FILE], "a") as file:
        print(name, kind, sep="\t", file=file)


def pytest_runtest_logstart(nodeid: str) -> None:
    _say(nodeid, STARTED)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed or report.skipped or report.when == "call":
        _say(report.nodeid, report.outcome)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _say(report.nodeid, FAILED)
