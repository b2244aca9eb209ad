"""Runs a test file again with another instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mhicl_fast

INSTRUCTION_SETS = ["portable", "avx2", "avx512"]


def run_again(file: str, isa: str) -> None:
    """Run a file's other tests with `isa`, unless they run with it anyway or cannot."""
    sets = mhicl_fast.build_info()["instruction_sets"]
    if isa not in sets["supported"]:
        pytest.skip(f"this processor, or this build, has no {isa}")
    if isa == sets["active"]:
        return
    here = Path(file)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here), "-k", "not instruction_set"]
    env = os.environ | {"MHICL_ISA": isa}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=here.parent, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
