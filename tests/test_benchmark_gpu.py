"""benchmarks/gpu.py, on the CPU: every stage that needs no GPU, in a rehearsal, and what it says without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))  # the script's modules lie beside it

import gpu_checks  # noqa: E402
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
    junit = """<testsuites><testsuite><testcase classname="a" name="test_the_same_bits_every_time[x]"/>
        <testcase classname="a" name="test_the_same_bits_every_time[y]"><failure/></testcase>
        <testcase classname="a" name="test_z"><skipped/></testcase></testsuite></testsuites>"""

    def pytest_of(prefix: list[str], options: list[str], device: str, seconds: float) -> tuple[int, str]:
        if prefix:
            return 9, "========= ERROR SUMMARY: 3 errors\n"
        Path(options[0].partition("=")[2]).write_text(junit)
        return 1, "said"

    monkeypatch.setattr(gpu_checks, "_pytest", pytest_of)
    monkeypatch.setattr(gpu_checks.shutil, "which", lambda name: sys.executable)
    tests = gpu_checks.run_tests(Deadline(100), "cuda", None, 10)
    assert tests["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert tests["shown"]["the same bits every time"] == "failed"
    assert tests["failures"] == ["a::test_the_same_bits_every_time[y]"]
    assert tests["tail"] == "said"
    assert gpu_checks.run_sanitizer(Deadline(100), "cuda", 10)["memcheck"]["errors"] == 3


def test_tests_that_are_stopped_count_as_far_as_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """import subprocess, time

def test_first():
    pass

def test_second():
    started = subprocess.Popen(["sleep", "60"])
    print(started.pid, file=open(__file__ + ".pid", "w"), flush=True)
    time.sleep(60)
"""
    (tmp_path / "test_slow.py").write_text(code)
    monkeypatch.setattr(gpu_checks, "TESTS", tmp_path)
    deadline = Deadline(100)
    found = gpu_checks.run_tests(deadline, "cpu", None, 8)
    assert found["status"] == "out of time"
    assert found["counts"] == {"passed": 1, "failed": 0, "skipped": 0}
    assert deadline.left_out == ["tests: stopped after their part of the time"]
    assert "KeyboardInterrupt" in found["tail"]
    state = Path(f"/proc/{(tmp_path / 'test_slow.py.pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


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
