"""The tests of tests/gpu are right about the CPU: their bodies run there, where no GPU is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import emulated

ROOT = Path(__file__).resolve().parent.parent


def pytest_on(device: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(ROOT / "tests" / "gpu")]
    environment = os.environ | {"MHICL_TEST_DEVICE": device, "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_every_body_runs_on_the_cpu() -> None:
    done = pytest_on("cpu")
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


@pytest.mark.slow
def test_every_body_runs_on_the_emulated_kernels() -> None:
    emulated()
    done = pytest_on("emulated", "-k", "not wide")
    assert done.returncode == 0, done.stdout[-5000:]


def test_without_a_gpu_all_are_skipped_with_the_reason() -> None:
    done = pytest_on("cuda", CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 0, done.stdout[-5000:]
    assert "there is no GPU: torch.cuda.is_available() is false" in done.stdout
    assert " passed" not in done.stdout


def test_beside_other_tests_gpus_are_hidden() -> None:
    done = pytest_on("cuda", str(ROOT / "tests" / "test_gpu_tests.py"), "-k", "test_gradients_that_are_asked_for")
    assert done.returncode == 0, done.stdout[-5000:]
    assert "GPUs are hidden from other tests" in done.stdout
