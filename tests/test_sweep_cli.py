"""`mhicl sweep`, and `mhicl resume` on its folders: what is printed, exit statuses, one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhicl_fast.cli import main
from mhicl_fast.sweep import load_sweep

SMALL = ["n_prompts=8", "context_length=9", "dim_x=4", "n_tasks=2", "eval_prompts=16", "steps=30", "order=leading"]


def test_a_sweep_prints_its_table_and_tells_of_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep"
    axes = ["n_heads=1,2", "step_cap/learning_rate=0.04/0.04,none/1e6"]
    command = ["sweep", "demo", "--vary", *axes, "--set", *SMALL, "--seed", "3", "--jobs", "1", "--out", str(path)]
    failed = f"mhicl: 2 of 4 runs failed; try them again with: mhicl resume {path}\n"
    assert main(command) == 1
    printed = capsys.readouterr()
    assert printed.err == failed
    lines = printed.out.splitlines()
    assert lines[0].split()[:4] == ["run", "n_heads", "learning_rate", "step_cap"]
    assert [line.split()[:4] for line in lines[1:5]] == [
        ["0000", "1", "0.04", "0.04"], ["0001", "1", "1e+06", "None"], ["0002", "2", "0.04", "0.04"],
        ["0003", "2", "1e+06", "None"],
    ]  # fmt: skip
    assert [("failed: the loss" in line) for line in lines[1:5]] == [False, True, False, True]
    assert lines[-1] == f"table and figures: {path}/table.csv, {path}/figures"
    assert {config.seed for config in load_sweep(path).configs} == {3}
    assert sorted(file.name for file in (path / "figures").iterdir()) == ["learning_rate.png", "n_heads.png"]
    assert main(["resume", str(path), "--jobs", "1"]) == 1
    again = capsys.readouterr()
    assert (again.out, again.err) == (printed.out, failed)


def test_a_finished_sweep_is_told_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep"
    assert main(["sweep", "demo", "--vary", "seed=0:1", "--set", *SMALL, "--out", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert main(["resume", str(path)]) == 0
    assert capsys.readouterr() == printed
    assert not list((path / "figures").iterdir())  # nothing varies
    assert main(["run", "demo", "--out", str(path)]) == 2
    assert "is not empty and not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmo", "--vary", "n_heads=1"], "unknown preset 'dmo'; the nearest one is 'demo'"),
        (["demo", "--vary", "n_head=1,2"], "unknown key 'n_head'; the nearest valid one is 'n_heads'"),
        (["demo", "--vary", "n_heads=1,2", "dim_x=2,30"], "the run with n_heads=1, dim_x=2: support=blocks needs"),
        (["demo", "--vary", "seed=0:2", "--seed", "1"], "seed is both set and varied"),
        (["demo", "--vary", "seed=0:2", "--set", "steps"], "expected key=value, got 'steps'"),
        (["demo", "--vary", "seed=0:2", "--jobs", "0"], "jobs must be a positive integer, got 0"),
    ],
)
def test_bad_input_is_one_line_and_nothing_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["sweep", *arguments, "--out", str(tmp_path / "sweep")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_sweep_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 7, "versions": {}, "runs": []}))
    assert main(["resume", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"mhicl: {tmp_path}/sweep.json has format 7, this version reads 1\n"
    assert main(["resume", str(tmp_path / "no-sweep"), "--jobs", "2"]) == 2
    assert capsys.readouterr().err == f"mhicl: --jobs is for sweeps and studies, {tmp_path}/no-sweep is none\n"


def test_help_has_examples_presets_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for words in ("examples:", "--vary", "n_tasks/dim_x=1/10,2/20", "superposition", "context_length"):
        assert words in printed
