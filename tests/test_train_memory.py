"""The memory of native runs: none grows with the steps, and little is needed for any number of prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mhicl_fast.presets import preset
from mhicl_fast.train import RunConfig

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")

# Runs the configuration in argv[1] in the folder argv[2]; prints MB: at the start, at each progress, the highest.
CHILD = """
import json, sys
import mhicl_fast.plots
from mhicl_fast.train import RunConfig, run

def megabytes(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(what))

start, seen = megabytes("VmRSS"), []
run(RunConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2], lambda progress: seen.append(megabytes("VmRSS")))
print(json.dumps([start, seen, megabytes("VmHWM")]))
"""


def memory(config: RunConfig, path: Path) -> tuple[float, list[float], float]:
    """Resident memory in MB, in a process of its own: after imports, after each span of steps, and the highest."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", CHILD, json.dumps(config.to_dict()), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    start, seen, peak = json.loads(done.stdout)
    return start, seen, peak


@pytest.mark.slow
def test_a_million_steps_leave_nothing_behind(tmp_path: Path) -> None:
    config = preset("demystified").with_settings(
        ["n_prompts=4", "steps=1e6", "record_every=1000", "checkpoint_every=20000", "eval_prompts=1000"]
    )
    _, seen, _ = memory(config, tmp_path)
    assert len(seen) > 1000
    assert max(seen) - seen[len(seen) // 20] < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single-task", "multi-task"])
def test_any_number_of_prompts_fits(tmp_path: Path, name: str) -> None:
    """A step's contexts alone would be 8 GB."""
    config = preset(name).with_settings(["n_prompts=4e5", "steps=3", "record_every=1", "eval_prompts=2e5"])
    start, _, peak = memory(config, tmp_path)
    assert peak - start < 100
