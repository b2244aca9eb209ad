"""`mhicl sparse assess`, `prune`, `probe`, `demo`: what is printed and written, one line for whatever is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mhicl_fast.cli import main
from mhicl_fast.sparse import load_run, preset, train
from mhicl_fast.sparse.study import StudyConfig, assess, prune, read_study
from mhicl_fast.sparse.study.folder import StudyFolder
from mhicl_fast.sparse.study.tables import importance_table, pruning_table

SMALL = ["dim_x=3", "sparsity=2", "context_length=6", "shortest_context=4", "n_layers=2", "width=8", "n_prompts=8",
         "n_queries=2", "steps=20", "record_every=10", "checkpoint_every=10", "record_prompts=8", "eval_prompts=16",
         "noise_variance=0,0.5", "device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the runs "two" and "one", of so many heads."""
    path = tmp_path_factory.mktemp("runs")
    for name, heads in (("two", 2), ("one", 1)):
        train(preset("demo").with_settings([*SMALL, f"n_heads={heads}"]), path / name)
    return path


def test_assess(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sparse", "assess", str(runs / "two"), "--prompts", "30"]) == 0
    printed = capsys.readouterr().out
    found = assess(runs / "two", StudyConfig(importance_prompts=30))  # as it is stored
    assert printed == f"{importance_table(found)}\n\nwritten to {runs / 'two' / 'importance.json'}\n"
    assert found.pooled_rise.value.shape == (2, 2)
    stored = json.loads((runs / "two" / "importance.json").read_text())
    assert stored["options"]["n_prompts"] == 30
    assert stored["result"] == found.to_dict()


def test_prune(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sparse", "prune", str(runs / "two"), "--prompts", "30", "--lengths", "4,6"]
    assert main(command) == 0
    alone = capsys.readouterr().out
    assert [line.split()[0] for line in alone.splitlines()[1:5]] == ["full", "pruned", "other", "without"]
    assert main([*command, "--fine-tune", "3", "--against", str(runs / "one")]) == 0
    printed = capsys.readouterr().out
    names = ["full", "trained", "single", "pruned", "other", "without"]
    assert [line.split()[0] for line in printed.splitlines()[1:7]] == names
    tuned = load_run(runs / "two-pruned")
    assert tuned.summary is not None
    assert (tuned.config.steps, tuned.model.shapes) == (3, [(2, 4), (1, 4)])
    config = StudyConfig(pruning_prompts=30, pruning_lengths="4,6")
    found = prune(runs / "two", config, fine_tune=3, against=runs / "one")
    assert printed.startswith(pruning_table(found))
    assert main([*command, "--fine-tune", "4"]) == 2
    assert "holds another run (steps 3 there, 4 here" in capsys.readouterr().err


def test_a_model_that_was_trained_anew_is_measured_anew(runs: Path, tmp_path: Path) -> None:
    config = StudyConfig(pruning_prompts=30, pruning_lengths="4", importance_prompts=30)
    shutil.copytree(runs / "two", tmp_path / "run")
    prune(tmp_path / "run", config, fine_tune=1)
    measured = (tmp_path / "run" / "pruning.json").read_bytes()
    shutil.rmtree(tmp_path / "run-pruned")
    tuned = prune(tmp_path / "run", config, fine_tune=20).against["full"]
    stored = json.loads(measured)["result"]["against"]["full"]
    row = tuned.names.index("trained on")
    assert tuned.pooled_risk.value[row] != stored["pooled_risk"]["value"][row]
    shutil.rmtree(tmp_path / "run-pruned")
    prune(tmp_path / "run", config, fine_tune=1)
    assert (tmp_path / "run" / "pruning.json").read_bytes() == measured


def test_prune_a_first_layer_of_one_head(tmp_path: Path) -> None:
    train(preset("demo").with_settings([*SMALL, "n_heads=1", "later_heads=3", "head_dim=2"]), tmp_path / "run")
    found = prune(tmp_path / "run", StudyConfig(pruning_prompts=30, pruning_lengths="6,4,6", importance_prompts=30))
    assert found.other[0] == found.dominant[0] == 0
    assert found.other[1] != found.dominant[1]
    assert found.against["full"].context_lengths.tolist() == [4, 6]  # claims and tables are about the last


def test_probe(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sparse", "probe", str(runs / "two"), "--prompts", "20", "--fit", "16", "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["features", "1", "step"]
    assert [line.split()[0] for line in lines[3:5]] == ["x", "r̂x"]
    assert {file.name for file in (runs / "two").glob("*.json")} >= {
        "probes.json", "contents.json", "correspondence.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["assess", "{runs}/none"], "{runs}/none is not a run folder: it has no config.json"),
        (["assess", "{runs}/two", "--prompts", "1"], "importance_prompts must be at least 2, got 1"),
        (["prune", "{runs}/one"], "the run in {runs}/one has one head in each later layer: there is nothing to prune"),
        (["prune", "{runs}/two", "--fine-tune", "0"], "steps must be at least 1, got 0"),
        (["prune", "{runs}/two", "--against", "{runs}/none"], "{runs}/none is not a run folder"),
        (["prune", "{runs}/two", "--lengths", "a"], "pruning_lengths must be numbers separated by commas, got 'a'"),
        (["probe", "{runs}/two", "--steps", "1.5"], "probe_steps must be integers of at least 0, got '1.5'"),
        (["demo", "--heads", "2,1", "--out", "{runs}/new"], "heads must be in ascending order, each once, got 2,1"),
        (["demo", "--set", "queris=1", "--out", "{runs}/new"], "unknown key 'queris'; the nearest valid one is"),
        (["demo", "--jobs", "0", "--out", "{runs}/new"], "jobs must be a positive integer, got 0"),
        (["demo", "--out", "{runs}"], "is not empty and not a study's folder"),
    ],
)
def test_bad_input_is_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["sparse", *(argument.format(runs=runs) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message.format(runs=runs) in printed.err
    assert printed.err.count("\n") == 1
    assert not (runs / "new").exists()


def test_an_unfinished_run_is_not_measured(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(load_run(runs / "one").config, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    assert main(["sparse", "assess", str(tmp_path / "run")]) == 2
    expected = f"mhicl: the run in {tmp_path}/run is not finished; go on with it: mhicl resume {tmp_path}/run\n"
    assert capsys.readouterr().err == expected


def test_an_interrupted_measurement_starts_again(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mhicl_fast.sparse.study.assess", interrupted)
    assert main(["sparse", "assess", str(runs / "two")]) == 130
    assert capsys.readouterr().err == "mhicl: interrupted; give the same command again\n"


def test_an_interrupted_study_says_how_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mhicl_fast.sparse.study.loop.Pool.work", interrupted)
    command = ["sparse", "demo", "--heads", "1,2", "--seeds", "3", "--seed", "5", "--out", str(tmp_path / "study")]
    assert main([*command, "--set", *SMALL, "queries=3"]) == 130
    assert capsys.readouterr().err == f"mhicl: interrupted; go on with: mhicl resume {tmp_path}/study\n"
    study = read_study(tmp_path / "study")
    assert (study.heads, study.seeds, study.config.queries, study.run.width) == ([1, 2], [5, 6, 7], 3, 8)
    assert main(["resume", str(tmp_path / "study")]) == 130
    assert main(["resume", str(tmp_path / "study"), "--device", "cpu"]) == 2
    assert "is a study: its device is fixed" in capsys.readouterr().err
    with StudyFolder.open(tmp_path / "study"):
        assert main(["resume", str(tmp_path / "study")]) == 2
    assert "another process is running" in capsys.readouterr().err
