"""Run folders: what a finished one holds, and the folders that a run refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs_children import deterministic_files
from torch import Tensor

from mhicl_fast import spectral
from mhicl_fast.presets import preset
from mhicl_fast.train import Objective, RunConfig, evaluate, load_run, loop, population_loss, resume, run, steps
from mhicl_fast.train.checkpoints import Checkpoint, CheckpointError
from mhicl_fast.train.folder import FolderError, RunFolder
from mhicl_fast.train.loop import Progress
from mhicl_fast.train.objective import LossAndGradients
from mhicl_fast.train.odes import read_trajectories
from mhicl_fast.train.optimisers import Optimizer
from mhicl_fast.train.parameters import Parameters
from mhicl_fast.train.stepping import PythonStepper, TrainingError
from mhicl_fast.train.storage import StorageError, write_atomically
from mhicl_fast.train.summary import SUMMARY_KEYS

CONFIG = RunConfig(
    dim_x=6, n_tasks=2, context_length=400, support="blocks", noise_std=0.1, noisy_target=True, n_heads=2, scale=1.0,
    start="small", start_size=0.1, n_prompts=64, learning_rate=0.05, step_cap=0.05, steps=120, record_every=3,
    checkpoint_every=50, eval_prompts=512, dtype="float64",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = types.ModuleType("mhicl_fast.plots")
    plots.save_figures = lambda run: []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mhicl_fast.plots", plots)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "deep" / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mhicl_fast.plots", types.SimpleNamespace(save_figures=lambda run: []))
        run(CONFIG, path)
    return path


def test_a_finished_run_holds_its_results(finished: Path) -> None:
    loaded = load_run(finished)
    assert loaded.config == CONFIG
    assert loaded.path == finished
    metrics, summary = loaded.metrics, loaded.summary
    assert summary is not None
    assert metrics["step"].tolist() == list(range(0, 121, 3))
    assert metrics["mu"].shape == metrics["omega"].shape == (41, 2, 2)
    assert metrics["share"].shape == metrics["effective_examples"].shape == (41, 2)
    assert metrics["flow_time"][0] == 0
    assert (np.diff(metrics["flow_time"]) > 0).all()
    assert metrics["prompts_seen"].tolist() == (64 * metrics["step"]).tolist()
    np.testing.assert_allclose(metrics["share"], (metrics["mu"] * metrics["omega"]).sum(1), rtol=1e-12)
    assert ((metrics["effective_examples"] >= 1) & (metrics["effective_examples"] <= 400)).all()

    assert summary["steps"] == 120
    assert summary["prompts_seen"] == 120 * 64
    assert summary["final_loss"] == metrics["loss"][-1]
    assert summary["wall_s"] > 0
    assert summary["theory"] == json.loads(json.dumps(spectral.theory(CONFIG.task(), 2).to_dict()))
    for end in ("warmup_end", "emergence_end"):
        moment = summary["phases"][end]
        row = int(np.flatnonzero(metrics["flow_time"] >= moment["flow_time"])[0])
        assert moment["steps"] == metrics["step"][row]
    assert summary["phases"]["warmup_end"]["steps"] < summary["phases"]["emergence_end"]["steps"]
    assert sorted(summary["allocation"]) == [0, 1]
    assert summary["allocation"] == summary["predicted_allocation"]
    assert set(summary) == set(SUMMARY_KEYS)


def test_the_last_checkpoint_has_the_weights_of_the_last_row(finished: Path) -> None:
    loaded = load_run(finished)
    kq, ov = loaded.parameters.to_combined()
    values = spectral.diagonal(kq, ov, CONFIG.task())
    np.testing.assert_array_equal(values.mu, loaded.metrics["mu"][-1])
    assert loaded.summary is not None
    evaluation = evaluate(CONFIG.task(), kq, ov, 512, seed=CONFIG.evaluation_seed)
    assert (loaded.summary["eval_loss"], loaded.summary["eval_loss_se"]) == evaluation


def test_trajectories_are_those_of_the_ode(finished: Path) -> None:
    loaded = load_run(finished)
    assert loaded.summary is not None
    t_end = float(loaded.metrics["flow_time"][-1])
    for order in ("leading", "first"):
        stored = loaded.trajectories[order]
        exact = spectral.solve(
            CONFIG.task(), loaded.metrics["mu"][0], loaded.metrics["omega"][0], scale=1.0, order=order, t_end=t_end
        )
        assert stored.t[-1] == pytest.approx(t_end)
        np.testing.assert_allclose(stored.loss[-1], exact.loss[-1], rtol=1e-6)
        np.testing.assert_allclose(stored.mu[-1], exact.mu[-1], rtol=1e-5, atol=1e-8)
        assert stored.omega.shape == (len(stored.t), 2, 2)
        distance = spectral.ode_distance(loaded.metrics["flow_time"], loaded.metrics["loss"], exact)
        assert distance is not None
        assert loaded.summary["ode"][order]["loss_gap"] == pytest.approx(distance.loss_gap, rel=1e-3)
        assert loaded.summary["ode"][order]["final_loss"] == pytest.approx(exact.loss[-1], rel=1e-6)
    assert loaded.summary["ode_distance"]["order"] == "first"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is not JSON"),
        ('{"steps": 120, "eval_lo', "it is not JSON"),
        ("\xff", "it is not JSON"),
        ("{}", "it has no steps, prompts_seen, flow_time, …"),
        ("[]", "must hold a JSON object, got list"),
        ("null", "must hold a JSON object, got NoneType"),
    ],
)
def test_a_damaged_summary_is_named(finished: Path, tmp_path: Path, content: str, message: str) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(content, encoding="latin-1")
    with pytest.raises(FolderError, match=rf"summary\.json is damaged.*{message}"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -30, -400])
def test_damaged_trajectories_are_named(finished: Path, tmp_path: Path, kept: int) -> None:
    data = (finished / "trajectories.npz").read_bytes()
    (tmp_path / "trajectories.npz").write_bytes(data[:kept])
    with pytest.raises(FolderError, match=r"trajectories\.npz is damaged"):
        read_trajectories(tmp_path / "trajectories.npz")
    changed = bytearray(data)
    changed[300] ^= 1  # within the first array: the archive's checksum tells
    (tmp_path / "trajectories.npz").write_bytes(changed)
    with pytest.raises(FolderError, match=r"trajectories\.npz is damaged"):
        read_trajectories(tmp_path / "trajectories.npz")


def test_a_run_that_follows_no_ode_says_so(tmp_path: Path) -> None:
    config = preset("superposition").with_settings(["steps=4", "record_every=2", "eval_prompts=8", "n_prompts=8"])
    summary = run(config, tmp_path).summary
    assert summary is not None
    assert summary["ode_distance"] is None
    assert summary["predicted_allocation"] is None
    assert summary["ode"]["notes"] == ["no ODE: Adam does not follow the gradient flow"]
    assert load_run(tmp_path).trajectories == {}


def test_overlapping_supports_follow_the_ode_without_a_prediction(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, support="0:4,2:6", steps=6, eval_prompts=8, order="leading", n_heads=3)
    summary = run(config, tmp_path).summary
    assert summary is not None
    assert summary["predicted_allocation"] is None
    assert summary["ode"]["leading"]["final_loss"] > 0
    assert load_run(tmp_path).trajectories["leading"].omega.shape[1:] == (3, 2)


def test_a_running_run_can_be_read(tmp_path: Path) -> None:
    seen = []

    def look(progress: Progress) -> None:
        if progress.step == 63:
            seen.append(load_run(tmp_path))
            with pytest.raises(FolderError, match="another process is running in"):
                resume(tmp_path)

    run(dataclasses.replace(CONFIG, eval_prompts=8), tmp_path, look)
    assert seen[0].metrics["step"].tolist() == list(range(0, 61, 3))
    assert seen[0].summary is None
    assert seen[0].trajectories == {}


@pytest.mark.parametrize("estimator", ["conditional", "asymptotic"])
def test_observers_hear_of_every_span_and_every_row(
    tmp_path: Path, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Progress] = []
    monkeypatch.setattr(steps, "SPAN_SECONDS", 3600.0)  # however slow the machine is, no span is cut short
    config = dataclasses.replace(CONFIG, estimator=estimator, eval_prompts=8, record_every=20)
    metrics = run(config, tmp_path, heard.append).metrics
    spans = [20, 40, 50, 60, 80, 100, 120, 120]  # to the next row, the next checkpoint or the end
    assert [progress.step for progress in heard] == spans
    rows = [progress.record for progress in heard if progress.record is not None]
    np.testing.assert_array_equal([row.mu for row in rows], metrics["mu"])
    at_rows = metrics["flow_time"][1:]
    assert [p.flow_time for p in heard if p.step % 20 == 0] == [*at_rows, at_rows[-1]]
    assert heard[-1].loss == metrics["loss"][-1]
    assert metrics["prompts_seen"][-1] == (0 if estimator == "asymptotic" else 120 * 64)


def test_however_long_its_spans_are_a_run_has_the_same_files(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    monkeypatch.setattr(steps, "SPAN_SECONDS", 0.0)
    run(CONFIG, tmp_path, lambda progress: heard.append(progress.step))
    assert heard == [*range(1, 121), 120]
    assert deterministic_files(tmp_path) == deterministic_files(finished)


@pytest.mark.parametrize("optimizer", ["flow", "adamw"])
def test_a_run_is_the_same_on_an_independent_implementation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config = dataclasses.replace(CONFIG, steps=60, eval_prompts=64, optimizer=optimizer, step_cap=None)
    native = run(config, tmp_path / "native")

    def in_python(objective: Objective, parameters: Parameters, optimizer: Optimizer, *_: object) -> PythonStepper:
        def gradients(kq: Tensor, ov: Tensor, step: int) -> LossAndGradients:
            kq, ov = kq.clone().requires_grad_(), ov.clone().requires_grad_()
            options = {"n_prompts": objective.n_prompts, "seed": objective.seed, "step": step}
            loss = population_loss(objective.task, kq, ov, estimator=objective.estimator, **options)
            return LossAndGradients(float(loss.detach()), *torch.autograd.grad(loss, (kq, ov)))

        return PythonStepper(gradients, parameters, optimizer)

    monkeypatch.setattr(loop, "make_stepper", in_python)
    python = run(config, tmp_path / "python")
    assert native.metrics.keys() == python.metrics.keys()
    for name, values in native.metrics.items():
        np.testing.assert_allclose(values, python.metrics[name], rtol=1e-8, atol=1e-10, err_msg=name)
    names = [
        sorted(np.load(io.BytesIO((run.path / "checkpoints" / "step_000000050.ckpt").read_bytes().partition(b"\n")[2])))
        for run in (native, python)
    ]
    assert names[0] == names[1]
    assert ("optimizer.first.w_q" in names[0]) == (optimizer == "adamw")


def test_a_diverging_run_stops_with_advice(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=1e6, step_cap=None)
    with pytest.raises(TrainingError, match=r"stopped being finite at step .* use a smaller learning_rate"):
        run(config, tmp_path)
    metrics = load_run(tmp_path).metrics
    assert np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all()


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_folder_with_this_run_is_to_be_resumed(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(FolderError, match=r"holds this very run already; go on with it: mhicl resume .*run"):
        run(CONFIG, finished)
    assert contents(finished) == before


def test_a_folder_with_another_run_is_refused(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(FolderError, match=r"holds another run \(n_heads 2 there, 3 here, seed 0 there, 4 here\)"):
        run(dataclasses.replace(CONFIG, n_heads=3, seed=4), finished)
    assert contents(finished) == before


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/step_1.ckpt", "metrics.csv"])
def test_a_folder_with_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(FolderError, match=rf"is not empty and not a run folder \(it has {name}\)"):
        run(CONFIG, tmp_path)
    assert contents(tmp_path) == {tmp_path / name: b"precious"}


def test_a_folder_that_cannot_be_made_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot make the folder .*file: File exists"):
        run(CONFIG, tmp_path / "file")
    with pytest.raises(FolderError, match=r"cannot make the folder .*: Not a directory"):
        run(CONFIG, tmp_path / "file" / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(FolderError, match="is not writable"):
        run(CONFIG, tmp_path / "locked")


def test_what_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"is not a run folder: it has no config.json"):
        resume(tmp_path)
    with pytest.raises(FolderError, match=r"is not a run folder"):
        load_run(tmp_path / "nowhere")
    file = tmp_path / "config.json"
    for content, message in (
        ("{", "is not a run's configuration"),
        ("[]", "is not a run's configuration"),
        ('{"format": 9}', "has format 9, this version reads 1"),
        ('{"format": 1, "study": ["sparse"]}', "is not a run's configuration"),
        ('{"format": 1, "study": "later"}', r"a run of another study, later; not multi-task \(mhicl_fast.train, mhicl"),
        ('{"format": 1, "versions": {}, "config": {"n_head": 1}}', "unknown key 'n_head'"),
    ):
        file.write_text(content)
        with pytest.raises(FolderError, match=message):
            resume(tmp_path)


def test_other_versions_are_warned_about(tmp_path: Path) -> None:
    run(dataclasses.replace(CONFIG, steps=2, eval_prompts=8), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["versions"]["torch"] = "1.0"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.warns(RuntimeWarning, match=r"started with other versions \(torch 1\.0 then, .* now\)"):
        RunFolder.open(tmp_path, RunConfig).close()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, b"old")

    def full(descriptor: int, data: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"cannot write .*summary.json: no space left .* is intact"):
        write_atomically(file, b"new")
    assert contents(tmp_path) == {file: b"old"}


def test_checkpoints_are_checked() -> None:
    tensors = {"kq": torch.randn(2, 3, 3), "ov": torch.randn(2, 1, 3, dtype=torch.float64)}
    checkpoint = Checkpoint(5, 0.1, 0.02, 77, "abc", tensors, {"count": torch.tensor(5)})
    data = checkpoint.to_bytes()
    assert data == checkpoint.to_bytes()
    back = Checkpoint.from_bytes(data)
    assert (back.step, back.flow_time, back.step_size, back.metrics_bytes, back.metrics_digest) == (
        5,
        0.1,
        0.02,
        77,
        "abc",
    )
    assert all(back.parameters[name].equal(tensor) for name, tensor in tensors.items())
    assert back.parameters["ov"].dtype == torch.float64
    assert back.optimizer["count"].equal(torch.tensor(5))
    for at in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[at] ^= 4
        with pytest.raises(CheckpointError):
            Checkpoint.from_bytes(bytes(damaged))
        with pytest.raises(CheckpointError):
            Checkpoint.from_bytes(data[:at])
