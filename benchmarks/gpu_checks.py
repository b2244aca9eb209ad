"""The tests of tests/gpu as stages of `make gpu`: all of them, and a few under compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gpu_outcomes
from gpu_deadline import Deadline

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "gpu"
# What the tests of these names show of the device beyond right numbers.
SHOWN = {
    "CUDA graphs of both passes": "test_a_graph_of_both_passes",
    "no wait for the GPU (set_sync_debug_mode)": "test_nothing_waits_for_the_gpu",
    "steps of training enqueued without a wait": "test_steps_are_enqueued_without_a_wait",
    "the same bits every time": "test_the_same_bits_every_time",
    "the current stream": "test_work_goes_to_the_current_stream",
    "torch.compile without graph breaks": "test_compiled_without_graph_breaks",
}
SANITIZED = "test_moments or test_masks or test_lengths_hide or test_tf32 or (test_a_step and plain)"  # small shapes
TOOLS = ("memcheck", "racecheck")
LEAST = 20  # seconds that tests are begun for
GRACE = 10  # seconds for pytest's words about what was stopped
OUT_OF_TIME, LEFT_OUT = "out of time", "left out"
COUNTED = (gpu_outcomes.PASSED, gpu_outcomes.FAILED, gpu_outcomes.SKIPPED)
_ERRORS = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def run_tests(deadline: Deadline, device: str, selection: str | None, seconds: float) -> dict[str, Any]:
    """Counts of outcomes, the names of failures, and what became of the tests in `SHOWN`.

    The test in which pytest was stopped for want of time has failed: it may wait for a GPU that never answers.
    """
    if not deadline.allows(LEAST, "tests"):
        return _told({}, LEFT_OUT, "", 0)
    part = deadline.part(seconds)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        options = ["-p", gpu_outcomes.__name__, *(["-k", selection] if selection else [])]
        status, output = _pytest([], options, device, part, {gpu_outcomes.FILE: str(file)})
        return _told(gpu_outcomes.read(file), OUT_OF_TIME if status is None else status, output, part)


def _told(outcomes: Mapping[str, str], status: int | str, output: str, seconds: float) -> dict[str, Any]:
    end = f"stopped, as the tests had taken {seconds:.0f} s" if status == OUT_OF_TIME else f"ended pytest: {status}"
    wrong = {gpu_outcomes.STARTED: f" ({end})", gpu_outcomes.FAILED: ""}
    shown = {what: _together([kind for name, kind in outcomes.items() if test in name]) for what, test in SHOWN.items()}
    return {
        "status": status,
        "counts": {kind: list(outcomes.values()).count(kind) for kind in COUNTED},
        "failures": [name + wrong[kind] for name, kind in outcomes.items() if kind in wrong],
        "shown": shown,
        "tail": "" if status == 0 else output[-3000:],
    }


def run_sanitizer(deadline: Deadline, device: str, seconds: float) -> dict[str, Any]:
    """By tool of compute-sanitizer what it said of a short selection of the tests."""
    command = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    found: dict[str, Any] = {}
    for tool in TOOLS:
        missing = "it is for GPUs" if device == "cpu" else "" if Path(command).exists() else f"{command} is not there"
        if missing:
            deadline.left_out.append(f"compute-sanitizer {tool}: {missing}")
            continue
        if not deadline.allows(LEAST, f"compute-sanitizer {tool}"):
            continue
        prefix = [command, f"--tool={tool}", "--target-processes=all", "--error-exitcode=9"]
        status, output = _pytest(prefix, ["-k", SANITIZED, "-x"], device, deadline.part(seconds))
        if status is None:
            deadline.left_out.append(f"compute-sanitizer {tool}: stopped after its part of the time")
        found[tool] = {
            "status": OUT_OF_TIME if status is None else status,
            "errors": sum(int(a or b) for a, b in _ERRORS.findall(output)),
            "tail": "" if status == 0 else output[-3000:],
        }
    return found


def _pytest(
    prefix: Sequence[str],
    options: Sequence[str],
    device: str,
    seconds: float,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int | None, str]:
    """Exit status, None where the time ran out, and what was said."""
    # The package is the installed one, not the repository's, which may have been built for another PyTorch.
    own = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
        "-o",
        "pythonpath=",
    ]
    command = [*prefix, sys.executable, "-m", "pytest", *own, *options, str(TESTS)]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])  # the plugin's
    environment = os.environ | {"MHICL_TEST_DEVICE": device, "PYTHONPATH": path} | variables
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryDirectory() as elsewhere:
        process = subprocess.Popen(
            command,
            cwd=elsewhere,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
        try:
            status: int | None = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, signal.SIGINT)  # at which pytest reports on the tests that are over
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started too, or that would disturb what is timed
            process.wait()
        output.seek(0)
        return status, output.read()


def _heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _together(outcomes: Sequence[str]) -> str:
    for kind in (gpu_outcomes.STARTED, gpu_outcomes.FAILED, gpu_outcomes.PASSED, gpu_outcomes.SKIPPED):
        if kind in outcomes:
            return "not ended" if kind == gpu_outcomes.STARTED else kind
    return "not run"
