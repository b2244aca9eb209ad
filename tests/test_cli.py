"""The `mhicl` command: results, exit codes, and one line for whatever is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mhicl_fast.cli import main
from mhicl_fast.train import load_run

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SMALL = ["n_prompts=32", "context_length=60", "steps=40", "eval_prompts=64", "record_every=4", "order=leading"]


def test_run_and_resume_print_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "run")
    assert main(["run", "demo", "--set", *SMALL, "--set", "n_heads=4", "--seed", "3", "--out", folder]) == 0
    printed = capsys.readouterr()
    for words in ("final loss", "evaluated loss", "theory", "warm-up ends", "predicted allocation",
                  "observed allocation", "distance to the ODE", f"{folder}/figures"):  # fmt: skip
        assert words in printed.out
    assert printed.err == ""  # quiet where there is no terminal
    config = load_run(folder).config
    assert (config.n_heads, config.seed, config.n_prompts) == (4, 3, 32)
    assert list((tmp_path / "run" / "figures").glob("*.png"))
    assert main(["resume", folder]) == 0
    assert capsys.readouterr().out == f"the run in {folder} is finished already:\n{printed.out}"
    assert main(["report", folder]) == 0
    assert capsys.readouterr().out == f"report: {folder}/report.html\n"
    assert (tmp_path / "run" / "report.html").exists()


def test_ode(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ode", "demo", "--set", "n_heads=4", "--order", "leading", "--t-end", "60"]) == 0
    printed = capsys.readouterr().out
    assert "leading order" in printed
    assert "loss at the end" in printed
    assert "1.94" in printed  # one head per task at leading order


def test_theory_needs_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "demo", "--set", "n_heads=2", "signal=1,2,0.5"]) == 0
    printed = capsys.readouterr().out
    for words in ("single head", "best multi-head", "Bayes risk", "there are fewer heads than tasks"):
        assert words in printed


def test_explore_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    assert main(["explore", "--no-browser"]) == 1
    assert capsys.readouterr().err == 'mhicl: the page needs Bokeh: pip install "mhicl_fast[explore]"\n'


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "instruction set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "dmo", "--out", "{}/new"], "unknown preset 'dmo'; the nearest one is 'demo'"),
        (["run", "demo", "--set", "n_head=3", "--out", "{}/new"], "the nearest valid one is 'n_heads'"),
        (["run", "demo", "--set", "estimator=condtional", "--out", "{}/new"], "the nearest valid value is conditional"),
        (["run", "demo", "--set", "n_heads=3", "steps", "--out", "{}/new"], "expected key=value, got 'steps'"),
        (["run", "demo", "--seed", "x", "--out", "{}/new"], "seed must be an integer"),
        (["run", "demo", "--out", "{}"], "is not empty and not a run folder"),
        (["run", "demo", "--out", "{}/precious"], "cannot make the folder"),
        (["resume", "{}"], "is not a run folder"),
        (["report", "{}"], "is not a run folder"),
        (["ode", "demystified"], "no ODE: Adam does not follow the gradient flow"),
        (["ode", "demo", "--t-end", "-1"], "t_end must be"),
        (["ode", "demo", "--set", "context_length=400", "dim_x=6", "start_size=30"], "first order"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "precious").write_text("data")
    assert main([argument.replace("{}", str(tmp_path)) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("mhicl: ")
    assert printed.err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("arguments", [["frobnicate"], ["run", "demo"], ["resume"], []])
def test_incomplete_commands_show_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: mhicl" in capsys.readouterr().err


COMMANDS = ("run", "resume", "sweep", "report", "ode", "theory", "explore", "bench", "info")


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed
    if command in (["run"], ["ode"], ["theory"]):
        assert "superposition" in printed
        assert "n_heads" in printed


def test_a_failing_run_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "demo", "--set", *SMALL, "step_cap=none", "learning_rate=1e6", "--out", str(tmp_path / "run")]
    assert main(arguments) == 1
    assert "use a smaller learning_rate" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "run")]) == 1
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.write_bytes(b"")
    assert main(["resume", str(tmp_path / "run")]) == 1
    assert "no usable checkpoint is left" in capsys.readouterr().err


def test_warnings_are_lines_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ode", "demo", "--set", "context_length=300", "--t-end", "1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mhicl: warning: order=")


def test_help_waits_for_no_library() -> None:
    code = """
import sys
from mhicl_fast.cli import main
try:
    main(["--help"])
finally:
    print(sorted({"scipy", "matplotlib", "bokeh", "mhicl_fast.train"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert "commands:" in done.stdout
    assert done.stdout.endswith("\n[]\n")


def test_ctrl_c_while_libraries_load_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", "import sys, mhicl_command; sys.exit(mhicl_command.main())"]
    done = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "mhicl: interrupted\n")


def test_ctrl_c_leaves_a_folder_that_can_be_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "mhicl_fast",
        "run",
        "demo",
        "--set",
        *SMALL,
        "steps=1000000",
        "--out",
        str(folder),
    ]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    metrics = folder / "metrics.csv"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == f"mhicl: interrupted; go on with: mhicl resume {folder}\n"
    assert load_run(folder).metrics["step"][-1] > 0
