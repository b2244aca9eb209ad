"""The study as one command: same files however it is done, what fails is told, and what claims are judged by."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from runs_children import deterministic_files

from mhicl_fast.cli import main
from mhicl_fast.sparse import begin, load_run, resume, train
from mhicl_fast.sparse.analysis.conditions import Conditions
from mhicl_fast.sparse.analysis.draws import Purpose
from mhicl_fast.sparse.analysis.prune import Comparison, compare, prune_to_dominant
from mhicl_fast.sparse.analysis.statistics import Estimate
from mhicl_fast.sparse.comparison.estimators import RIDGE
from mhicl_fast.sparse.study import Study, StudyConfig, checks, load_study, resume_study, run_study, study
from mhicl_fast.sparse.study.experiments import Pruning, name_of
from mhicl_fast.sparse.study.finetune import pruned_run
from mhicl_fast.sparse.study.folder import StudyFolder
from mhicl_fast.sparse.study.verdicts import Check, over_seeds
from mhicl_fast.train.checkpoints import CheckpointError
from mhicl_fast.train.folder import FolderError
from mhicl_fast.train.settings import ConfigError

SETTINGS = [
    "dim_x=3", "sparsity=2", "context_length=6", "shortest_context=4", "n_layers=2", "width=8", "n_prompts=8",
    "n_queries=2", "steps=20", "warmup_steps=4", "record_every=5", "checkpoint_every=5", "record_prompts=8",
    "eval_prompts=16", "noise_variance=0,0.5", "device=cpu", "heads=1,2", "seeds=1", "queries=2", "risk_lengths=3,6",
    "risk_prompts=40", "tuning_prompts=20", "importance_prompts=40", "pruning_lengths=4,6", "pruning_prompts=40",
    "probe_steps=1", "probe_fit=16", "probe_prompts=20", "correspondence_prompts=20",
]  # fmt: skip
TINY = study("demo", SETTINGS)


class Stopper:
    """Interrupts a study, at a step of a run or at the end of a measurement, and hears what happens until then."""

    def __init__(self, stage: str = "", name: str = "", step: int | None = None) -> None:
        self.at = (stage, name, step)
        self.stage = ""
        self.begun: dict[str, list[str]] = {}
        self.steps: dict[str, list[int]] = {}
        self.ended: dict[str, str | None] = {}

    def begin(self, stage: str, steps: Mapping[str, int], unfinished: Sequence[str]) -> None:
        self.stage, self.begun[stage] = stage, list(unfinished)

    def step(self, name: str, step: int) -> None:
        self.steps.setdefault(name, []).append(step)
        if self.at == (self.stage, name, step):
            raise KeyboardInterrupt

    def end(self, name: str, failure: str | None) -> None:
        self.ended[name] = failure
        if self.at == (self.stage, name, None):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "unbroken"
    run_study(TINY, path, jobs=2)
    return path


def files(path: Path) -> dict[str, Any]:
    """All that a study's folder holds but times."""
    runs = {run.name: deterministic_files(run) for run in sorted((path / "runs").iterdir())}
    own = {file.name: file.read_bytes() for file in path.glob("*.json") if file.name != "timing.json"}
    measured = {f"{file.parent.name}/{file.name}": file.read_bytes() for file in path.glob("runs/*/[!st]*.json")}
    return {**own, **runs, **measured}


def test_what_a_study_leaves(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["heads-1-seed-0", "heads-2-seed-0"]
    found = load_study(finished)
    assert found.study == TINY
    assert not found.failures
    assert sorted(run.name for run in (finished / "runs").iterdir()) == [*names, "heads-2-seed-0-pruned"]
    for measured, wanted in (
        (found.importance, names), (found.pruning, names[1:]), (found.probes, names),
        (found.contents, names), (found.correspondence, names),
    ):  # fmt: skip
        assert list(measured) == wanted
    assert found.risk[0].names[:2] == tuple(names)
    assert found.risk[0].reference == names[1]
    assert found.risk[0].risk.value.shape == (14, 2, 2)
    assert set(found.pruning[names[1]].against) == {"full", "single"}
    assert set(found.pruning[names[1]].against["full"].names) == {
        "full", "trained on", "single", "pruned", "other", "without"
    }  # fmt: skip
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*.json") if file.parent != finished}
    assert main(["resume", str(finished)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert found.summary is not None
    for claim in found.summary["claims"]:
        assert f"{claim['holds']:<9}  {claim['claim']}" in printed.out
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_numbers_are_those_of_the_models(finished: Path) -> None:
    found = load_study(finished)
    single, full = (load_run(finished / "runs" / name) for name in ("heads-1-seed-0", "heads-2-seed-0"))
    tuned = load_run(finished / "runs" / "heads-2-seed-0-pruned")
    seed = full.config.evaluation_seed
    pruned = prune_to_dominant(full.model, found.importance["heads-2-seed-0"].dominant)
    models = {"full": full.model, "trained on": tuned.model, "single": single.model, "pruned": pruned}
    expected = compare(
        models, full.config.task(), n_prompts=40, n_queries=2, seed=seed, context_lengths=[4, 6], reference="single"
    )
    measured = found.pruning["heads-2-seed-0"].against["single"]
    np.testing.assert_array_equal(measured.risk.value[:4], expected.risk.value)
    np.testing.assert_array_equal(measured.pooled_ratio.se[:4], expected.pooled_ratio.se)
    row = found.risk[0].names.index(name_of(RIDGE))
    prompts = full.config.task().replace(noise_variance=0.5).sample(
        40, n_queries=0, seed=seed, step=int(Purpose.COMPARISON), dtype=torch.float64
    )  # fmt: skip
    gram = prompts.x.mT @ prompts.x + 0.5 * 3 / 2 * torch.eye(3, dtype=torch.float64)
    estimate = torch.linalg.solve(gram, prompts.x.mT @ prompts.y[..., None])[..., 0]
    ridge = (estimate - prompts.coefficients).square().sum(-1).mean()
    np.testing.assert_allclose(found.risk[0].risk.value[row, 1, 1], float(ridge), rtol=1e-10)


def test_training_goes_on_after_pruning(finished: Path) -> None:
    full, tuned = (load_run(finished / "runs" / name) for name in ("heads-2-seed-0", "heads-2-seed-0-pruned"))
    assert tuned.model.shapes == [(2, 4), (1, 4)]
    assert tuned.config.steps == 2
    assert tuned.config.seed not in TINY.seeds
    assert tuned.config.learning_rate < full.config.learning_rate


def test_stopped_and_resumed_it_ends_the_same(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "study"
    with StudyFolder.create(path, TINY):
        pass
    alien = path / "runs" / "heads-2-seed-0"
    train(replace(TINY.run, seed=5, steps=1, n_heads=1), alien)
    with pytest.raises(KeyboardInterrupt):
        resume_study(path, jobs=1, observer=Stopper("training", "heads-1-seed-0", 20))
    heard = Stopper()
    broken = resume_study(path, jobs=2, observer=heard)
    reason = f"{alien} holds another run than it should"
    assert heard.steps["heads-1-seed-0"][0] > 0
    assert broken.failures == {"heads-2-seed-0": reason}
    assert json.loads((path / "summary.json").read_text())["failed"] == {"heads-2-seed-0": reason}
    assert list(broken.importance) == ["heads-1-seed-0"]
    for file in sorted(alien.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(KeyboardInterrupt):
        resume_study(path, jobs=1, observer=Stopper("measuring", "heads-2-seed-0, contents"))
    heard = Stopper()
    resume_study(path, jobs=1, observer=heard)
    assert heard.begun["training"] == heard.begun["assessing heads"] == heard.begun["training after pruning"] == []
    assert "heads-2-seed-0, contents" not in heard.begun["measuring"]
    assert "heads-1-seed-0, probes" not in heard.begun["measuring"]
    assert files(path) == files(finished)


def test_a_folder_is_used_once(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds this very study already; go on with it: mhicl resume"):
        run_study(TINY, finished)
    with pytest.raises(FolderError, match="another study; choose another folder"):
        run_study(Study(replace(TINY.config, queries=3), TINY.run), finished)
    (tmp_path / "notes").touch()
    with pytest.raises(FolderError, match="not empty and not a study's folder \\(it has notes\\)"):
        run_study(TINY, tmp_path)
    with pytest.raises(FolderError, match="is not a study's folder: it has no study"):
        resume_study(tmp_path)


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("dmo", [], "unknown preset 'dmo'; the nearest one is 'demo'"),
        ("demo", ["head=1"], "unknown key 'head'; the nearest valid one is 'heads'"),
        ("demo", ["heads=2,1"], "heads must be in ascending order, each once, got 2,1"),
        ("demo", ["heads=1,1.5"], "heads must be integers of at least 1, got '1,1.5'"),
        ("demo", ["heads=3"], "width must be a multiple of n_heads, got width=64, n_heads=3"),
        ("demo", ["n_heads=3"], "n_heads cannot be set: heads has the numbers of heads of all models"),
        ("demo", ["probe_prompts=7"], "probe_prompts must be 2 for each of 4 noise variances at least, got 7"),
        ("demo", ["later_heads=1"], "later_heads cannot be set: the study chooses it"),
        ("demo", [f"seed={2**62 - 1}"], "seed must be at most"),
        ("demo", ["device=cuda:77"], "or choose cpu"),
    ],
)
def test_bad_settings_are_told(preset: str, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(preset, settings)


class TestRunsFromOtherWeights:
    def test_it_starts_where_the_other_ended(self, finished: Path, tmp_path: Path) -> None:
        full = load_run(finished / "runs" / "heads-2-seed-0")
        pruned = prune_to_dominant(full.model, [0, 1])
        config = pruned_run(full.config, 6)
        begun = begin(config, tmp_path / "run", pruned)
        assert begun.start is not None
        assert begin(config, tmp_path / "run", pruned) == begun  # which changes nothing
        ended = resume(tmp_path / "run")
        assert ended.config == begun
        first = load_run(tmp_path / "run").metrics["risk"][0]
        conditions = Conditions.of(config.task(), None, None, config.record_prompts, 8, config.evaluation_seed)
        for risk, task in zip(first, conditions.tasks()):
            prompts = task.sample(config.record_prompts, n_queries=8, seed=config.evaluation_seed, step=1)
            error = pruned(prompts.tokens(), 8) - prompts.target
            assert math.isclose(risk, error.square().mean().item(), rel_tol=1e-5)

    def test_other_weights_are_another_run(self, finished: Path, tmp_path: Path) -> None:
        full = load_run(finished / "runs" / "heads-2-seed-0")
        config = pruned_run(full.config, 6)
        begin(config, tmp_path / "run", prune_to_dominant(full.model, [0, 1]))
        with pytest.raises(FolderError, match="holds another run \\(start "):
            begin(config, tmp_path / "run", prune_to_dominant(full.model, [0, 0]))
        with pytest.raises(ValueError, match="the model must have the layers"):
            begin(config, tmp_path / "new", full.model)

    def test_it_never_starts_from_fresh_weights(self, finished: Path, tmp_path: Path) -> None:
        full = load_run(finished / "runs" / "heads-2-seed-0")
        config = begin(pruned_run(full.config, 6), tmp_path / "run", prune_to_dominant(full.model, [0, 1]))
        for file in (tmp_path / "run" / "checkpoints").iterdir():
            file.unlink()
        with pytest.raises(CheckpointError, match="were never stored; begin it again"):
            resume(tmp_path / "run")
        with pytest.raises(ConfigError, match="start cannot be set"):
            train(config, tmp_path / "other")
        begin(config, tmp_path / "run", prune_to_dominant(full.model, [0, 1]))
        assert resume(tmp_path / "run").summary is not None


class TestVerdicts:
    @pytest.mark.parametrize(
        ("value", "above", "holds"),
        [(1.3, True, "true"), (1.1, True, "undecided"), (0.7, True, "false"), (0.7, False, "true"),
         (1.3, False, "false"), (0.9, False, "undecided"), (math.nan, True, "undecided")],
    )  # fmt: skip
    def test_a_check(self, value: float, above: bool, holds: str) -> None:
        check = Check("", value, 0.1, 1.0, above)
        assert check.holds == holds
        assert json.loads(json.dumps(check.to_dict(), allow_nan=False))["holds"] == holds

    @pytest.mark.parametrize(
        ("seeds", "holds"),
        [("t t", "true"), ("f f", "false"), ("t f", "undecided"), ("t u", "undecided"), ("f u", "undecided"),
         ("tt tt", "true"), ("tf ff", "false"), ("tu uu", "undecided"), ("tu tt", "undecided"), ("uf f", "false"),
         ("", "undecided")],
    )  # fmt: skip
    def test_the_seeds_together(self, seeds: str, holds: str) -> None:
        known = {"t": Check("", 2, 0.1, 1), "f": Check("", 0, 0.1, 1), "u": Check("", 1, 0.1, 1)}
        shown = Check("", 0, 0.1, 1, judged=False)
        evidence = {seed: [shown, *(known[letter] for letter in each)] for seed, each in enumerate(seeds.split())}
        assert over_seeds(evidence) == holds
        assert over_seeds({0: [shown]}) == over_seeds({0: []}) == "undecided"

    def test_what_pruning_costs_does_not_depend_on_where_risks_are_large(self) -> None:
        """As at few examples, or with much noise, where models are all alike."""
        rng = np.random.default_rng(0)
        risks = np.array([[3.0, 3.0], [0.1, 3.0]])[..., None] * rng.exponential(1, (2, 2, 200))
        conditions = Conditions(TINY.run.task(), (2, 6), (0.0, 9.0), 200, 1, 0)
        ratios = np.array([[1.0, 1.0], [1.6, 1.0]])[..., None] * rng.normal(1, 0.01, (2, 2, 200))
        against = Comparison.of({"full": risks, "pruned": risks * ratios}, "full", conditions)
        found: dict[int, Sequence[Check]] = {}
        for layers in (1, 2):
            pruning = Pruning(np.arange(layers), np.arange(layers), {"full": against})
            measured: Any = SimpleNamespace(study=TINY, pruning={"heads-2-seed-0": pruning})
            found[layers] = checks.pruned("pruned", "full", 1.1)(measured, 0)
        assert not found[1]  # there is nothing to prune
        assert [check.holds for check in found[2] if check.judged] == ["false", "true"]
        assert over_seeds({0: found[2]}) == "false"

    def test_what_is_not_known_decides_nothing(self, finished: Path) -> None:
        """A model that failed between others, and prompts whose coefficients are all 0."""
        found = load_study(finished)
        risks = np.array([3.0, 1.0])[:, None, None] * np.ones((2, 1, 1, 4)) + np.arange(4) / 100
        conditions = Conditions(TINY.run.task(), (6,), (0.0,), 4, 1, 0)
        known = Comparison.of(dict(zip(("heads-1-seed-0", "heads-4-seed-0"), risks)), "heads-4-seed-0", conditions)
        three = Study(replace(TINY.config, heads="1,2,4"), TINY.run)
        assert over_seeds({0: checks.more_heads(replace(found, study=three, risk={0: known}), 0)}) == "undecided"
        agreement = found.correspondence["heads-2-seed-0"].preprocessed
        blank = Estimate(agreement.cosine.value * np.nan, agreement.cosine.se * np.nan)
        nothing = replace(agreement, cosine=blank, distance=blank)
        same = replace(found.correspondence["heads-2-seed-0"], raw=nothing, preprocessed=nothing)
        empty = replace(found, correspondence={"heads-2-seed-0": same})
        for tests in (checks.like_steps, checks.rather_preprocessed):
            assert over_seeds({0: tests(empty, 0)}) == "undecided"

    def test_every_claim_is_measured(self, finished: Path) -> None:
        summary = load_study(finished).summary
        assert summary is not None
        assert [entry["heads"] for entry in summary["risk"]] == [1, 2]
        for row, entry in enumerate(summary["risk"]):
            assert (
                entry["mean"] == entry["seeds"][0]["value"] == load_study(finished).risk[0].risk.value[row, -1].tolist()
            )
            assert entry["se_over_seeds"] is None
        for claim in summary["claims"]:
            judged = [check for check in claim["evidence"] if check["judged"]]
            assert judged, claim["claim"]
            assert claim["rule"]
            assert {check["seed"] for check in judged} == {0}


def test_defaults_fit_each_other() -> None:
    assert StudyConfig().integers("risk_lengths")[-1] == study().run.context_length
