"""Training of transformers on sparse linear regression: what a step does, what a run keeps, and going on with one."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs_children import deterministic_files
from test_sparse_config import TINY
from torch import Tensor

from mhicl_fast.cli import main
from mhicl_fast.presets import preset as multi_task_preset
from mhicl_fast.sparse import (
    SparseConfig,
    evaluate,
    excess_risk,
    load_run,
    loss_and_gradients,
    measure_risk,
    predict,
    preset,
    resume,
    train,
)
from mhicl_fast.sparse.model import Transformer
from mhicl_fast.sparse.stepping import context_length
from mhicl_fast.train import load_run as load_multi_task_run
from mhicl_fast.train import run as run_multi_task
from mhicl_fast.train import steps
from mhicl_fast.train.folder import FolderError
from mhicl_fast.train.loop import Progress
from mhicl_fast.train.stepping import TrainingError

SMALL = ["dim_x=5", "sparsity=2", "context_length=9", "shortest_context=4", "n_layers=2", "n_heads=2", "width=12",
         "n_prompts=8", "n_queries=3", "record_prompts=8", "eval_prompts=64", "device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "deep" / "run"
    train(TINY, path)
    return path


def weights_of(model: Transformer, seed: int = 0) -> Transformer:
    """The model with a read-out that is not 0, without which nothing is predicted."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(model.width, generator=generator, dtype=torch.float64)
    return model.with_tensors({**model.tensors(), "read_out": drawn.to(model.read_out.dtype)})


def plain_training(config: SparseConfig) -> Transformer:
    """The same steps by PyTorch alone."""
    model = config.model()
    parameters = list(model.parameters())
    rule = torch.optim.AdamW(parameters, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)
    for step in range(config.steps):
        task = config.task().replace(context_length=context_length(config, step))
        prompts = task.sample(
            config.n_prompts, n_queries=config.n_queries, seed=config.seed, step=step, dtype=torch.float64
        )
        labels = torch.cat([prompts.y, torch.zeros_like(prompts.target)], 1)
        tokens = torch.cat([torch.cat([prompts.x, prompts.x_query], 1), labels[..., None]], 2)
        rule.zero_grad()
        noiseless = (prompts.x_query @ prompts.coefficients[..., None])[..., 0]
        (model(tokens, config.n_queries) - noiseless).square().mean().backward()
        norm = torch.cat([weight.grad.flatten() for weight in parameters]).norm()
        for weight in parameters:
            weight.grad *= min(1.0, (config.clip_norm or torch.inf) / norm)
        rule.param_groups[0]["lr"] = config.learning_rate_at(step)
        rule.step()
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_norm": 0.05, "weight_decay": 0.3, "beta2": 0.9},
        {"clip_norm": None, "activation": "linear", "noise_variance": "0.3", "covariance": "ar:0.4"},
        {"layer_norm": True, "mlp_width": 7, "shortest_context": None},
    ],
)
def test_steps_are_those_of_plain_pytorch(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = replace(TINY, dtype="float64", learning_rate=0.02, steps=25, **changes)
    trained, expected = train(config, tmp_path).model.tensors(), plain_training(config).tensors()
    assert list(trained) == list(expected)
    for name, weight in trained.items():
        assert (weight - config.model().tensors()[name]).abs().max() > 1e-3, name
        np.testing.assert_allclose(weight, expected[name], rtol=1e-7, atol=1e-9, err_msg=name)


def test_a_finished_run_holds_its_results(finished: Path) -> None:
    run = load_run(finished)
    assert run.config == TINY
    assert "finished" in repr(run)
    metrics, summary = run.metrics, run.summary
    assert summary is not None
    assert metrics["step"].tolist() == list(range(0, 41, 5))
    assert metrics["prompts_seen"].tolist() == (8 * metrics["step"]).tolist()
    assert metrics["context_length"].tolist() == [context_length(TINY, step) for step in metrics["step"]]
    assert metrics["learning_rate"].tolist() == [TINY.learning_rate_at(step) for step in metrics["step"]]
    assert metrics["risk"].shape == (9, 4)
    assert sorted(file.name for file in (finished / "checkpoints").iterdir()) == [
        "step_000000030.ckpt",
        "step_000000040.ckpt",
    ]
    assert summary["steps"] == 40
    assert summary["prompts_seen"] == 320
    assert summary["final_loss"] == metrics["loss"][-1]
    assert summary["noise_variance"] == [0.0, 0.1, 0.4, 0.8]
    assert json.loads((finished / "timing.json").read_text())["complete"] is True


def test_the_risks_of_a_run_are_those_of_its_weights(finished: Path) -> None:
    """Against the model in float64, on prompts drawn at once."""
    run = load_run(finished)
    assert run.summary is not None
    model = run.model.double()

    def risk(level: float, length: int, n_prompts: int, step: int) -> tuple[float, float]:
        task = TINY.task().replace(noise_variance=level, context_length=length)
        prompts = task.sample(n_prompts, n_queries=8, seed=TINY.evaluation_seed, step=step, dtype=torch.float64)
        with torch.no_grad():
            errors = (model(prompts.tokens(), 8) - prompts.target).square().mean(1).numpy()
        return errors.mean(), errors.std(ddof=1) / len(errors) ** 0.5

    def ridge_risk(level: float) -> float:
        drawn = TINY.task().replace(noise_variance=level).sample(64, seed=TINY.evaluation_seed, dtype=torch.float64)
        gram = drawn.x.mT @ drawn.x + level * 5 / 2 * torch.eye(5, dtype=torch.float64)
        error = torch.linalg.solve(gram, drawn.x.mT @ drawn.y[..., None])[..., 0] - drawn.coefficients
        return float(error.square().sum(1).mean())

    lengths = run.summary["risk_by_length"]["context_length"]
    assert lengths == [4, 5, 6, 7, 8, 9]
    for k, level in enumerate(run.summary["noise_variance"]):
        mean, error = risk(level, 9, 64, 0)
        assert run.summary["ridge_risk"][k] == pytest.approx(ridge_risk(level), rel=1e-9)
        assert run.summary["excess_risk"][k] == pytest.approx(mean, rel=1e-4)
        assert run.summary["excess_risk_se"][k] == pytest.approx(error, rel=1e-4)
        assert run.metrics["risk"][-1, k] == pytest.approx(risk(level, 9, 16, 1)[0], rel=1e-4)
        for at, length in enumerate(lengths):
            found = run.summary["risk_by_length"]["excess_risk"][at][k]
            assert found == pytest.approx(risk(level, length, 64, 0)[0], rel=1e-4)


def interrupted_by(path: Path, config: SparseConfig, at: int, number: int) -> None:
    """Train until a signal arrives in the span that ends with step `at`."""

    def stop(progress: Progress[list[float]]) -> None:
        if progress.step == at:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        train(config, path, stop)


@pytest.mark.parametrize(
    ("number", "at", "changes"),
    [
        (signal.SIGINT, 17, {}),
        (signal.SIGTERM, 30, {"weight_decay": 0.1}),
        (signal.SIGINT, 1, {"layer_norm": True, "mlp_width": 5}),
        (signal.SIGTERM, 39, {"dtype": "float64", "activation": "linear"}),
    ],
)
def test_a_resumed_run_ends_with_the_files_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, at: int, changes: dict[str, Any]
) -> None:
    config = replace(TINY, **changes)
    train(config, tmp_path / "unbroken")
    monkeypatch.setattr(steps, "SPAN_SECONDS", 0.0)  # spans of one step, so that any can be the last
    interrupted_by(tmp_path / "broken", config, at, number)
    assert f"at step {(at - 1) // 5 * 5}" in repr(load_run(tmp_path / "broken"))
    assert (tmp_path / "broken" / "checkpoints" / f"step_{at:09d}.ckpt").exists()
    resume(tmp_path / "broken")
    assert deterministic_files(tmp_path / "broken") == deterministic_files(tmp_path / "unbroken")


def test_a_killed_run_goes_on_from_its_last_checkpoint(finished: Path, tmp_path: Path) -> None:
    def fail(progress: Progress[list[float]]) -> None:
        if progress.step >= 25:
            raise RuntimeError("as if killed")

    with pytest.raises(RuntimeError, match="as if killed"):
        train(TINY, tmp_path, fail)
    resume(tmp_path)
    assert deterministic_files(tmp_path) == deterministic_files(finished)
    before = (tmp_path / "summary.json").read_bytes()
    assert resume(tmp_path).summary is not None
    assert (tmp_path / "summary.json").read_bytes() == before


def test_a_diverging_run_stops_with_advice(tmp_path: Path) -> None:
    config = replace(TINY, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TrainingError, match=r"stopped being finite at step .* use a smaller learning_rate"):
        train(config, tmp_path)
    assert np.isfinite(load_run(tmp_path).metrics["loss"]).all()


def test_folders_are_of_one_study(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FolderError, match=r"another study, sparse \(mhicl_fast.sparse, mhicl sparse --help\); not multi"
    ):
        load_multi_task_run(finished)
    with pytest.raises(FolderError, match="holds this very run already; go on with it: mhicl resume"):
        train(TINY, finished)
    with pytest.raises(FolderError, match=r"holds another run \(seed 3 there, 5 here\)"):
        train(replace(TINY, seed=5), finished)
    with pytest.raises(FolderError, match="is not a run folder"):
        resume(tmp_path)
    short = ["n_prompts=8", "context_length=20", "steps=2", "eval_prompts=8", "order=leading", "n_tasks=1", "dim_x=3"]
    run_multi_task(multi_task_preset("demo").with_settings(short), tmp_path / "other", figures=False)
    with pytest.raises(FolderError, match="another study, multi-task"):
        load_run(tmp_path / "other")
    content = json.loads((tmp_path / "other" / "config.json").read_text())
    assert content.pop("study") == "multi-task"
    (tmp_path / "other" / "config.json").write_text(json.dumps(content))  # as earlier versions wrote it
    assert load_multi_task_run(tmp_path / "other").config.steps == 2


@pytest.mark.parametrize("changes", [{}, {"activation": "linear"}])
def test_native_and_pytorchs_ways_agree(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    config = replace(TINY, dtype="float64", **changes)
    model = weights_of(config.model())
    prompts = config.task().sample(21, n_queries=5, seed=1, dtype=torch.float64)

    def computed() -> tuple[Tensor, float, dict[str, Tensor]]:
        with model.masked([(1, 0)]):
            return predict(model, prompts), *loss_and_gradients(model, prompts)

    native = computed()
    monkeypatch.setattr(evaluate, "has_native_kernels", lambda model: False)
    plain = computed()
    torch.testing.assert_close(native[0], plain[0], rtol=1e-11, atol=1e-11)
    assert native[1] == pytest.approx(plain[1], rel=1e-11)
    assert list(native[2]) == list(plain[2]) == list(model.tensors())
    torch.testing.assert_close(native[2], plain[2], rtol=1e-10, atol=1e-10)


def test_which_models_the_native_kernels_compute() -> None:
    assert evaluate.has_native_kernels(TINY.model())
    assert evaluate.has_native_kernels(TINY.model().double())
    for other in (
        TINY.model().bfloat16(),
        replace(TINY, layer_norm=True).model(),
        replace(TINY, mlp_width=3).model(),
        TINY.model().to("meta"),
    ):
        assert not evaluate.has_native_kernels(other)


@pytest.mark.parametrize("mlp_width", [0, 4])
def test_risks(mlp_width: int) -> None:
    model = weights_of(replace(TINY, dtype="float64", mlp_width=mlp_width).model())
    prompts = TINY.task().sample(2500, n_queries=2, seed=2, dtype=torch.float64)
    errors = (predict(model, prompts) - prompts.target).square().mean(1)
    found = excess_risk(model, prompts)
    assert found.mean == pytest.approx(float(errors.mean()), rel=1e-12)
    assert found.standard_error == pytest.approx(float(errors.std()) / 50, rel=1e-12)
    in_parts = measure_risk(model, TINY.task(), 2500, n_queries=2, seed=2)
    assert in_parts == pytest.approx(found, rel=1e-10)
    assert predict(model, TINY.task().sample(0, n_queries=2, seed=2, dtype=torch.float64)).shape == (0, 2)
    with pytest.raises(ValueError, match="takes at least 2 prompts, got 1"):
        excess_risk(model, TINY.task().sample(1, seed=2, dtype=torch.float64))


def test_training_learns(tmp_path: Path) -> None:
    """Far better than 0, whose risk is 1 here, even from noisy labels."""
    config = replace(TINY, dim_x=2, sparsity=1, noise_variance="0.1", n_prompts=64, steps=400, learning_rate=0.01)
    run = train(replace(config, record_every=50, checkpoint_every=100), tmp_path)
    assert run.summary is not None
    risk, error = run.summary["excess_risk"][0], run.summary["excess_risk_se"][0]
    assert risk + 5 * error < 0.5


def test_the_full_preset_runs(tmp_path: Path) -> None:
    settings = ["steps=2", "n_prompts=2", "n_queries=1", "record_prompts=2", "eval_prompts=2", "device=cpu"]
    run = train(preset("full").with_settings(settings), tmp_path)
    assert run.model.width == 256
    assert run.summary is not None


def test_the_command_trains_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "run")
    assert main(["sparse", "train", "small", "--set", *SMALL, "steps=3", "--seed", "4", "--out", folder]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # quiet where there is no terminal
    for words in ("noise variance", "excess risk", "always 0", "0.8", "64 fresh prompts", "prompts/s", folder):
        assert words in printed.out
    assert load_run(folder).config.seed == 4
    assert main(["resume", folder]) == 0
    assert capsys.readouterr().out == f"the run in {folder} is finished already:\n{printed.out}"
    interrupted_by(tmp_path / "stopped", TINY, 10, signal.SIGINT)
    assert main(["resume", str(tmp_path / "stopped")]) == 0
    assert main(["resume", str(tmp_path / "stopped"), "--jobs", "2"]) == 2
    assert load_run(tmp_path / "stopped").summary is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smal"], "unknown preset 'smal'; the nearest one is 'small'"),
        (["small", "--set", "n_head=3"], "the nearest valid one is 'n_heads'"),
        (["small", "--set", "n_heads=7"], "width must be a multiple of n_heads"),
        (["small", "--seed", "x"], "seed must be an integer"),
        (["small", "--device", "tpu"], "device must be auto, cpu"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["sparse", "train", *arguments, "--out", str(tmp_path / "new")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_several_processes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sparse", "train", "small", "--set", *SMALL, "--out", str(tmp_path / "new")]) == 2
    assert "trains in one process, torchrun has started 2: start mhicl without it" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", [["sparse"], ["sparse", "train"]])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed
    if len(command) == 2:
        assert "full" in printed
        assert "shortest_context" in printed
