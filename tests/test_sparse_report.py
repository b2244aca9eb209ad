"""Pages about the study of sparse linear regression: self-contained, with the numbers of the results' files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page
from sparse_results import made_study

from mhicl_fast.cli import main
from mhicl_fast.sparse import SparseConfig, load_run
from mhicl_fast.sparse.analysis.statistics import Estimate
from mhicl_fast.sparse.comparison import ComparisonConfig, compare
from mhicl_fast.sparse.report import write_report
from mhicl_fast.sparse.report.cells import measured, over_seeds
from mhicl_fast.sparse.report.findings import findings_of_study
from mhicl_fast.sparse.report.provenance import run_command, study_command
from mhicl_fast.sparse.study import load_study
from mhicl_fast.train.folder import FolderError

ROOT = Path(__file__).resolve().parent.parent
STRANGE = "<b onclick=\"alert('1')\">&amp; {{ 7 * 7 }}</b>"
COMPARISON = [
    "dim_x=4", "context_length=8", "sparsities=2", "noise_variances=0,0.5", "step_counts=2,3", "n_prompts=30",
    "steps=2", "sparsity=2", "curve_lengths=4,8", "curve_sparsities=1,2", "curve_dims=4,5", "curve_noises=0.1,0.4",
    "curve_steps=1,2", "curve_prompts=20", "map_lengths=8", "map_sparsities=1,2", "map_noises=0.1,0.4",
    "map_prompts=20", "tuning_prompts=10", "theory_lengths=6", "theory_sparsities=1,2", "theory_draws=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two seeds with its page."""
    path = tmp_path_factory.mktemp("study") / "whole"
    made_study(path)
    write_report(path)
    return path


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return parsed(finished)


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("mhicl_fast.sparse.report.page.save_figures", lambda found: [])  # pages draw their own
    shutil.copytree(finished, tmp_path / "study")
    return tmp_path / "study"


def parsed(folder: Path) -> Page:
    """The page in a folder, which is well formed and needs nothing else."""
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.errors == []
    assert page.external() == []
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert page.handlers == []
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert page.tags.count("figcaption") == page.tags.count("figure") == page.tags.count("svg")
    return page


def table(page: Page, start: str) -> dict[str, list[str]]:
    (found,) = (rows for caption, rows in page.tables.items() if caption.startswith(start))
    return found


def change(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def test_sections_in_order(page: Page) -> None:
    assert [title for _, title in page.headings[1:]] == [
        "What is studied",
        "Excess risk for each number of heads",
        "Which heads each layer uses",
        "What is left after pruning",
        "Gradient steps on hidden states",
        "Layers and the algorithm",
        "Which claims hold",
        "Configuration",
        "How to repeat it",
    ]
    assert "The settings are this project's own" in page.text


def test_figures_are_files_as_well(finished: Path) -> None:
    names = ("contents", "dominance", "importance", "probing", "pruning", "risk", "steps", "training")
    assert sorted(file.name for file in (finished / "figures").iterdir()) == [f"{name}.png" for name in names]


def test_numbers_are_those_of_the_files(finished: Path, page: Page) -> None:
    loaded = load_study(finished)
    risks = table(page, "Excess risk at n = 20")
    for heads, label in ((1, "1 head"), (2, "2 heads")):
        each = [one.risk[one.names.index(f"heads-{heads}-seed-{seed}"), -1] for seed, one in loaded.risk.items()]
        assert risks[label] == [over_seeds(one[k] for one in each) for k in range(2)]
    ridge = [one.risk[one.names.index("ridge, Bayes"), -1] for one in loaded.risk.values()]
    assert risks["ridge, Bayes"] == [over_seeds(one[k] for one in ridge) for k in range(2)]

    shares = table(page, "The dominant head of each layer")
    for seed in (0, 1):
        importance = loaded.importance[f"heads-2-seed-{seed}"]
        for layer, head in enumerate(importance.dominant):
            row = shares[f"2 heads, seed {seed}, layer {layer + 1}"]
            assert row[0] == str(head)
            known = importance.dominant_share(layer)
            assert row[1] == ("within noise" if known is None else measured(*known))

    pruned = [loaded.pruning[f"heads-2-seed-{seed}"].against["full"] for seed in (0, 1)]
    ratios = table(page, "Risk at the largest n, pooled over")
    for name, label in (("pruned", "pruned"), ("single", "single head"), ("trained on", "pruned, trained on")):
        ratio = over_seeds(one.pooled_ratio[one.names.index(name)] for one in pruned)
        assert ratios[f"2 heads: {label}"][1] == ratio

    probes = [loaded.probes[f"heads-2-seed-{seed}"] for seed in (0, 1)]
    after = table(page, "Excess risk after t gradient steps")["2 heads: P h, after 1 layer"]
    assert after == [over_seeds(one.risk[one.sources.index("P h1"), t] for one in probes) for t in range(3)]

    contents = [loaded.contents[f"heads-2-seed-{seed}"] for seed in (0, 1)]
    held = table(page, "What the states hold")["2 heads: R², r̂x"]
    assert held == [over_seeds(one.pooled_r2[layer, 0] for one in contents) for layer in range(4)]


def test_claims_are_those_of_the_summary(finished: Path, page: Page) -> None:
    claims = json.loads((finished / "summary.json").read_text())["claims"]
    words = {"true": "yes", "false": "no", "undecided": "undecided"}
    shown = table(page, "The claims.")
    assert [row[0] for row in list(shown.values())[1:]] == [words[claim["holds"]] for claim in claims]
    holding = sum(claim["holds"] == "true" for claim in claims)
    assert page.text.count(f"{holding} of {len(claims)} claims hold at this scale") == 2  # above and in the section
    tests = table(page, "The tests of each claim")
    for number, claim in enumerate(claims, 1):
        for test in claim["evidence"]:
            if not test["judged"] or test["value"] is None:
                continue
            cell = f"{measured(test['value'], test['se'] or 0.0)}: {words[test['holds']]}"
            assert any(name.startswith(f"{number}. ") and cell in cells for name, cells in tests.items()), test["what"]
    assert "heads-2-seed" not in "".join(tests)


def test_same_results_same_bytes(finished: Path) -> None:
    files = [finished / "report.html", *sorted((finished / "figures").iterdir())]
    before = [file.read_bytes() for file in files]
    assert len(before[0]) < 3_000_000
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    code = "import sys; from mhicl_fast.sparse.report import write_report; write_report(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(finished)], check=True, env=environment, cwd=ROOT)
    assert [file.read_bytes() for file in files] == before


def test_an_unfinished_study_has_what_is_there(copied: Path) -> None:
    for file in ("summary.json", "risk-seed-1.json", "runs/heads-2-seed-1/probes.json"):
        (copied / file).unlink()
    for file in (*copied.rglob("pruning.json"), *copied.rglob("contents.json"), *copied.rglob("correspondence.json")):
        file.unlink()
    (copied / "runs" / "heads-1-seed-1" / "summary.json").unlink()
    shutil.rmtree(copied / "runs" / "heads-2-seed-0")
    write_report(copied)
    page = parsed(copied)
    titles = [title for _, title in page.headings]
    assert "What is left after pruning" not in titles
    assert "Which claims hold" not in titles
    assert "Not finished, and shown as far as they have come: 1 head, seed 1." in page.text
    assert list(table(page, "Excess risk at n = 20"))[1:3] == ["1 head", "2 heads"]
    shutil.rmtree(copied / "runs")
    with pytest.raises(FolderError, match=r"no run of the study in .* has begun"):
        write_report(copied)


def test_a_study_without_risk_curves_has_the_runs_own(copied: Path) -> None:
    for file in copied.glob("risk-seed-*.json"):
        file.unlink()
    write_report(copied)
    rows = table(parsed(copied), "Excess risk at n = 20")
    summary = json.loads((copied / "runs" / "heads-2-seed-0" / "summary.json").read_text())
    assert set(rows) == {"", "1 head", "2 heads"}
    found = [load_run(copied / "runs" / f"heads-2-seed-{seed}").summary for seed in (0, 1)]
    values = [one["excess_risk"][0] for one in found if one is not None]
    assert values[0] == summary["excess_risk"][0]
    assert float(rows["2 heads"][0].split(" ± ")[0]) == pytest.approx(np.mean(values), rel=0.1)


def test_a_failure_is_told(copied: Path) -> None:
    change(copied / "summary.json", failed={"heads-9, probes": f"it was {STRANGE}"})
    write_report(copied)
    page = parsed(copied)
    assert f"heads-9, probes: it was {STRANGE}" in page.text
    assert STRANGE not in (copied / "report.html").read_text()


def test_strange_names_are_escaped(copied: Path) -> None:
    for file in copied.glob("runs/*/config.json"):
        content = json.loads(file.read_text())
        change(file, config={**content["config"], "preset": STRANGE})
    run = copied / "runs" / "heads-2-seed-0"
    assert main(["report", str(run)]) == 0
    html = (run / "report.html").read_text()
    assert STRANGE not in html
    assert "onclick=" not in re.sub(r"&lt;b onclick=", "", html)
    assert parsed(run).headings[0] == ("h1", f"{STRANGE}, seed 0")


def test_damaged_files_are_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copied / "runs" / "heads-2-seed-0" / "importance.json", result={"rise": 1})
    assert main(["sparse", "report", str(copied)]) == 2
    assert "importance.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["heads-1-seed-0", "heads-2-seed-1", "heads-2-seed-1-pruned"])
def test_a_single_run(copied: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = copied / "runs" / name
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    page, run = parsed(folder), load_run(folder)
    assert run.summary is not None
    risks = run.summary["excess_risk"], run.summary["excess_risk_se"]
    (row,) = list(table(page, "Excess risk at n = 20").values())[1:]
    assert row == [measured(*each) for each in zip(*risks)]
    titles = [title for _, title in page.headings]
    assert ("What is left after pruning" in titles) == (name == "heads-2-seed-1")
    assert ("Which heads each layer uses" in titles) != name.endswith("pruned")
    assert "Which claims hold" not in titles


def test_an_unfinished_run(copied: Path) -> None:
    folder = copied / "runs" / "heads-1-seed-0"
    for file in ("summary.json", "importance.json", "probes.json", "contents.json", "correspondence.json"):
        (folder / file).unlink()
    write_report(folder)
    page = parsed(folder)
    assert "No run is finished yet" in page.text
    assert [title for _, title in page.headings[1:]] == ["What is studied", "Configuration", "How to repeat it"]


def test_a_comparison_of_the_algorithm(tmp_path: Path, capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    folder = tmp_path / "algorithm"
    results = compare(ComparisonConfig().with_settings(COMPARISON), folder)
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    page = parsed(folder)
    wins = sum(row["verdict"] == 1 for row in results["map"])
    assert f"less risk in {wins} of {len(results['map'])} comparisons" in page.text
    rows = table(page, "Excess risk at s = 2, d = 4, n = 8")
    ridge = [row for row in results["table"] if (row["method"], row["choice"]) == ("ridge", "Bayes")]
    assert rows["ridge, Bayes"] == [measured(row["risk"], row["standard_error"]) for row in ridge]
    shutil.copytree(folder, copied / "algorithm")  # a study's page has it too
    write_report(copied)
    assert "The algorithm and other estimators" in [title for _, title in parsed(copied).headings]
    (folder / "results.json").unlink()
    with pytest.raises(FolderError, match="is not finished"):
        write_report(folder)


def test_other_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["report"], ["sparse", "report"]):
        assert main([*command, str(tmp_path)]) == 2
        assert "is not a run folder" in capsys.readouterr().err


def test_commands_repeat_what_was_done(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings_of_study(finished)
    assert found.study is not None
    asked: list[Any] = []
    monkeypatch.setattr("mhicl_fast.sparse.study.run_study", lambda plan, path, **_: asked.append(plan))
    monkeypatch.setattr("mhicl_fast.cli.sparse._tell", lambda done: None)
    words = shlex.split(study_command(found.study))
    assert words[0] == "mhicl"
    assert main(words[1:]) == 0
    assert asked == [found.study]

    configs: list[SparseConfig] = []
    monkeypatch.setattr("mhicl_fast.sparse.training.train", lambda config, path, bar: configs.append(config))
    monkeypatch.setattr("mhicl_fast.sparse.table.results_table", lambda run: "")
    config = replace(found.config, seed=5, scale=0.5, mlp_width=4)
    assert main(shlex.split(run_command(config))[1:]) == 0
    assert configs == [config]


@pytest.mark.parametrize(
    ("values", "errors", "words"),
    [
        ([1.0], [0.1], "1.00 ± 0.10"),
        ([1.0, 1.2], [0.01, 0.01], "1.10 ± 0.10"),  # over seeds: half their difference
        ([1.0, 1.02], [0.1, 0.1], "1.010 ± 0.071"),  # over prompts: 0.1/√2
        ([np.nan, 1.0], [0.1, 0.1], "–"),
        ([0.0, 0.0], [0.0, 0.0], "0"),
        ([1e-20], [1e-21], "0"),
        ([1.0], [1e-15], "1"),
    ],
)
def test_a_cell(values: list[float], errors: list[float], words: str) -> None:
    each = [Estimate(np.array(value), np.array(error)) for value, error in zip(values, errors)]
    assert over_seeds(each) == words
