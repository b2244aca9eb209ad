"""benchmarks/gpu.py, on the CPU: every stage that needs no GPU, in a rehearsal, and what it says without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mhicl_fast.bench.gpus import gpu_facts

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))  # the script's modules lie beside it

import gpu  # noqa: E402
import gpu_checks  # noqa: E402
import gpu_outcomes  # noqa: E402
import gpu_report  # noqa: E402
from gpu_deadline import Deadline  # noqa: E402


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = script("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("no GPU to run on: device=cuda: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_runs_every_stage(tmp_path: Path) -> None:
    done = script("--rehearse", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["wrong"] == []
    assert content["tests"]["counts"]["passed"] > 0
    assert content["tests"]["shown"]["CUDA graphs of both passes"] == "passed"
    assert {"native sampled", "native conditional", "absorbed-eager"} <= content["step"]["seconds"].keys()
    assert [len(report["shapes"]) for report in content["benchmarks"].values()] == [4, 2]
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# Rehearsal on the CPU: these numbers mean nothing")
    assert "compute-sanitizer memcheck: it is for GPUs" in page


def test_no_time_leaves_all_out_and_says_so(tmp_path: Path) -> None:
    done = script("--rehearse", "--out", str(tmp_path), "--budget", "0.1")
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert "tests: no time left" in content["left_out"]
    assert "native steps, sampled: no time left" in content["left_out"]
    assert "attention 2,2,3,5,4,causal: no time left" in content["left_out"]
    assert done.returncode == 0, done.stderr


def test_a_deadline_passes() -> None:
    deadline = Deadline(0.05)
    assert deadline.allows(0.01, "first")
    assert deadline.part(100) <= 0.05
    time.sleep(0.06)
    assert not deadline.allows(0.01, "second")
    assert deadline.left_out == ["second: no time left"]


def test_a_failing_test_and_a_sanitizer_s_findings_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = "a::test_the_same_bits_every_time[x]\tpassed\na::test_the_same_bits_every_time[y]\tfailed\n"

    def pytest_of(prefix: list[str], options: list[str], device: str, seconds: float, *more: Any) -> tuple[int, str]:
        if prefix:
            return 9, "========= ERROR SUMMARY: 3 errors\n"
        Path(more[0][gpu_outcomes.FILE]).write_text(outcomes + "a::test_z\tskipped\n")
        return 1, "said"

    monkeypatch.setattr(gpu_checks, "_pytest", pytest_of)
    monkeypatch.setattr(gpu_checks.shutil, "which", lambda name: sys.executable)
    tests = gpu_checks.run_tests(Deadline(100), "cuda", None, 10)
    assert tests["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert tests["shown"]["the same bits every time"] == "failed"
    assert tests["failures"] == ["a::test_the_same_bits_every_time[y]"]
    assert tests["tail"] == "said"
    assert gpu_checks.run_sanitizer(Deadline(100), "cuda", 10)["memcheck"]["errors"] == 3


def test_outcomes_are_those_of_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """import pytest

def test_passes(): pass

def test_fails(): assert False

@pytest.fixture
def broken():
    yield
    assert False

def test_leaves_something(broken): pass

@pytest.mark.skip
def test_z(): pass
"""
    (tmp_path / "test_kinds.py").write_text(code)
    (tmp_path / "test_unreadable.py").write_text("import nothing_of_this_name")
    monkeypatch.setattr(gpu_checks, "TESTS", tmp_path)
    found = gpu_checks.run_tests(Deadline(100), "cpu", None, 60)
    assert [name.rpartition("/")[2] for name in found["failures"]] == ["test_unreadable.py"]
    (tmp_path / "test_unreadable.py").unlink()
    found = gpu_checks.run_tests(Deadline(100), "cpu", None, 60)
    assert found["counts"] == {"passed": 1, "failed": 2, "skipped": 1}
    assert [name.partition("::")[2] for name in found["failures"]] == ["test_fails", "test_leaves_something"]
    assert found["status"] == 1


HANGS = """import signal, subprocess, time

def test_first():
    pass

def test_second():
    SIGNAL
    started = subprocess.Popen(["sleep", "60"])
    print(started.pid, file=open(__file__ + ".pid", "w"), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("deaf", [False, True], ids=["interrupted", "killed"])
def test_a_test_that_hangs_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    """Also one that waits in a driver, out of Python's reach, so that pytest reports on nothing."""
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)" if deaf else ""
    (tmp_path / "test_slow.py").write_text(HANGS.replace("SIGNAL", ignore))
    monkeypatch.setattr(gpu_checks, "TESTS", tmp_path)
    if deaf:
        monkeypatch.setattr(gpu_checks, "GRACE", 1)
    deadline = Deadline(100)
    found = gpu_checks.run_tests(deadline, "cpu", None, 6)
    assert found["status"] == "out of time"
    assert found["counts"] == {"passed": 1, "failed": 0, "skipped": 0}
    (name,) = found["failures"]
    assert name.endswith("test_slow.py::test_second (stopped, as the tests had taken 6 s)")
    assert deadline.left_out == []
    assert ("KeyboardInterrupt" in found["tail"]) is not deaf
    content = {"tests": found, "sanitizer": {}, "benchmarks": {}}
    assert gpu._what_is_wrong(content) == [f"test failed: {name}"]
    assert gpu._what_is_wrong({**content, "tests": {**found, "failures": []}}) == [
        "the tests ended with status out of time"
    ]
    state = Path(f"/proc/{(tmp_path / 'test_slow.py.pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_test_that_ends_pytest_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_crash.py").write_text("import os\n\ndef test_it(): os.abort()\n")
    monkeypatch.setattr(gpu_checks, "TESTS", tmp_path)
    found = gpu_checks.run_tests(Deadline(100), "cpu", None, 60)
    assert [name.partition("::")[2] for name in found["failures"]] == ["test_it (ended pytest: -6)"]


def test_nvidia_smi_is_asked_by_what_does_not_depend_on_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(
        '#!/bin/sh\nfor word; do case $word in --id=GPU-12ab-34) echo "580.1, 1980 MHz, 700 W";; esac; done\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    properties = SimpleNamespace(
        name="H", multi_processor_count=132, major=9, minor=0, total_memory=80 << 30, uuid="12ab-34"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    facts = gpu_facts(torch.device("cuda", 1))
    assert facts["driver"] == "580.1"
    assert facts["power limit"] == "700 W"


class TestWithoutAToolkit:
    """`make gpu` in a folder that holds no more than what it looks at first."""

    @pytest.mark.parametrize(
        ("driver", "said"),
        [(False, "nvidia-smi finds none here"), (True, "make gpu needs a CUDA toolkit, looked for: CUDA_HOME")],
    )
    def test_it_says_so_before_it_makes_an_environment(self, tmp_path: Path, driver: bool, said: str) -> None:
        shutil.copy(ROOT / "Makefile", tmp_path)
        shutil.copytree(ROOT / "build_tools", tmp_path / "build_tools")
        (tmp_path / "csrc").mkdir()
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\nexit {0 if driver else 9}\n")
        (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
        environment = os.environ | {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CUDA_HOME": str(tmp_path / "none"),
            "PIP_NO_INDEX": "1",
        }
        command = ["make", "gpu", f"PYTHON={sys.executable}"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert said in done.stdout + done.stderr
        assert not (tmp_path / ".venv-gpu").exists()


def test_a_page_of_a_gpu_has_cold_times_and_both_roofs() -> None:
    timing = {"median": 2e-3, "low": 1.9e-3, "high": 2.1e-3}
    cold = {"median": 3e-3, "low": 2.9e-3, "high": 3.1e-3}
    entry = {"seconds": {"forward": timing, "both": timing}, "seconds_cold": {"forward": cold}, "reasons": {}}
    slow = entry | {"seconds": {"forward": {"median": 8e-3, "low": 8e-3, "high": 8e-3}}}
    report = {
        "machine": {"GPU": "NVIDIA H100"},
        "roofs": {"float32": {"peak": 1e12, "bandwidth": 1e12}},
        "published_roofs": {"float32": {"peak": 2e12, "bandwidth": 2e12}},
        "shapes": [{
            "shape": "1,2,3,4,5", "dtype": "float32", "operations": {"forward": 10**9, "backward": 0},
            "bytes": {"forward": 10**8, "backward": 0}, "competitors": {"mhicl_fast": entry, "eager": slow},
        }],
    }  # fmt: skip
    content = {
        "rehearsal": False, "benchmarks": {"attention": report},
        "wrong": ["test failed: a"], "left_out": ["x: no time left"],
        "tests": {"counts": {"passed": 3}, "shown": {"graphs": "passed"}},
        "sanitizer": {"memcheck": {"errors": 0, "status": 0}},
        "step": {"size": {"n": 1, "length": 2, "dim_x": 3, "heads": 4}, "useful_operations": 10**9,
                 "seconds": {"native sampled": timing}, "predicted_seconds": {"native sampled": 1e-3}},
    }  # fmt: skip
    page = gpu_report.page(content)
    assert page.startswith("# Measured on a GPU")
    assert "| 1,2,3,4,5 float32 | 2 ± 5% | 3 | 50% (25%) | 5% (2%) | eager 4.00 (1.00) |" in page
    assert "| compute-sanitizer memcheck | 0 errors (status 0) |" in page
    assert "| native sampled | 2 (1.90–2.10) | 1.00 | 50% | 1 |" in page
    assert "* test failed: a" in page
    assert "* x: no time left" in page
