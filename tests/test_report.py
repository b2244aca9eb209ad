"""Reports: self-contained pages that say what the run's files say, for every kind of run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import Page

from mhicl_fast import spectral
from mhicl_fast.cli import main
from mhicl_fast.presets import preset
from mhicl_fast.report import write_report
from mhicl_fast.report.analysis import analyse_run
from mhicl_fast.report.content import Table
from mhicl_fast.report.differences import differences
from mhicl_fast.report.findings import Findings, difference
from mhicl_fast.report.provenance import command, reproduction
from mhicl_fast.train import RunConfig, load_run, run
from mhicl_fast.train.folder import FolderError
from mhicl_fast.train.wording import STATES, missing_states, number, uncertain

ROOT = Path(__file__).resolve().parent.parent
STRANGE = "<b onclick=\"alert('1')\">&amp; {{ 7 * 7 }}</b>"

# Exact gradients where a run should learn; otherwise as few prompts and steps as make a run.
RUNS = {
    "demo": ("demo", "dim_x=12 estimator=asymptotic start_size=0.05 steps=160"),
    "combined": (
        "demo",
        "dim_x=12 n_tasks=2 parameters=combined estimator=asymptotic start_size=0.001 learning_rate=0.05 steps=600",
    ),
    "shared": ("demo", "dim_x=12 n_heads=2 estimator=asymptotic start_size=0.05 steps=300"),
    "one": ("single-task", "dim_x=6 n_heads=1 n_prompts=64 steps=40 record_every=2"),
    "random": ("superposition", "n_prompts=64 steps=200 record_every=20"),
    "coloured": ("demo", "dim_x=6 covariance=ar:0.3 estimator=sampled n_prompts=16 steps=5"),
    "decayed": ("demystified", "optimizer=adamw n_prompts=16 steps=4"),
    "short": ("demo", "n_prompts=16 steps=1"),
    "many": ("demo", "dim_x=18 n_tasks=9 n_heads=9 n_prompts=8 steps=20"),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    configs = {
        name: preset(base).with_settings([*settings.split(), "eval_prompts=256"])
        for name, (base, settings) in RUNS.items()
    }
    configs["strange"] = dataclasses.replace(configs["one"], preset=STRANGE, steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mhicl_fast.plots.save_figures", lambda run: [])  # the pages draw their own
        for name, config in configs.items():
            run(config, folder / name)
            write_report(folder / name)
    return {name: folder / name for name in configs}


@pytest.fixture(scope="session")
def pages(folders: dict[str, Path]) -> dict[str, Page]:
    return {name: Page((folder / "report.html").read_text(encoding="utf-8")) for name, folder in folders.items()}


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("name", [*RUNS, "strange"])
def test_the_page_is_well_formed_and_needs_nothing_else(pages: dict[str, Page], name: str) -> None:
    page = pages[name]
    assert page.errors == []
    assert page.external() == []
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert page.handlers == []
    assert len(page.ids) == len(set(page.ids))
    anchors = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert anchors <= set(page.ids)
    assert page.tags.count("svg") == 6
    assert "<svg" not in page.text


@pytest.mark.parametrize("name", [*RUNS, "strange"])
def test_headings_and_captions(pages: dict[str, Page], name: str) -> None:
    page = pages[name]
    levels, titles = zip(*page.headings)
    assert levels == ("h1", *["h2"] * (len(levels) - 1))
    for words in ("Key numbers", "Three phases", "Which head takes which task", "Semi-singular values",
                  "What the heads do", "What the heads attend to", "How good it is", "Other context lengths",
                  "Where the run differs from theory", "Configuration", "How to repeat it"):  # fmt: skip
        assert words in titles
    assert page.tags.count("figcaption") == page.tags.count("figure") == page.tags.count("svg")
    assert page.tags.count("caption") == page.tags.count("table")
    assert all(len(caption) > 20 for caption in page.tables)
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b|\[\]", page.text)


@pytest.mark.parametrize("name", RUNS)
def test_numbers_are_those_of_the_summary(folders: dict[str, Path], pages: dict[str, Page], name: str) -> None:
    page, summary, loaded = pages[name], summary_of(folders[name]), load_run(folders[name])
    loss = uncertain(summary["eval_loss"], summary["eval_loss_se"])
    numbers = page.tables["± is one standard error throughout this page."]
    assert numbers["Loss"][0] == loss
    assert loss in page.text.split("Key numbers")[0]  # the headline
    assert float(numbers["Loss"][0].split(" ± ")[0]) == pytest.approx(summary["eval_loss"], rel=1e-2)
    assert float(numbers["Loss"][0].split(" ± ")[1]) == pytest.approx(summary["eval_loss_se"], rel=0.06)
    for words, key in (("Warm-up ends", "warmup_end"), ("Emergence ends", "emergence_end")):
        moment = summary["phases"][key]
        expected = f"flow time {number(moment['flow_time'])}, step {moment['steps']}" if moment else "not reached"
        assert numbers[words][0].replace("\u202f", "") == expected
    assert (summary["ode_distance"] is None) == ("Distance to the ODE" not in numbers)
    assert page.row("seed")[0] == str(loaded.config.seed)
    for state, label in STATES.items():
        values = summary["theory"][state]
        name_on_page = label[0].upper() + label[1:]
        if values is None:
            assert [page.tables["States that theory does not give here, and why."][label]] == [
                [reason] for left_out, reason in missing_states(summary["theory"]) if left_out == label
            ]
        else:
            caption = next(caption for caption in page.tables if caption.startswith("Losses that theory knows"))
            assert page.tables[caption][name_on_page][0] == uncertain(values["loss"], values.get("standard_error", 0))
    for key, value in loaded.config.to_dict().items():
        shown = page.row(key)[0]
        assert shown == ("none" if value is None else str(value).lower() if isinstance(value, bool) else str(value))


def test_winners_and_times(folders: dict[str, Path], pages: dict[str, Page]) -> None:
    page, summary = pages["demo"], summary_of(folders["demo"])
    table = next(rows for caption, rows in page.tables.items() if caption.startswith("Winners and times"))
    metrics = load_run(folders["demo"]).metrics
    observed = spectral.half_learnt(metrics["flow_time"], metrics["share"])
    columns = ["Predicted head", "Observed head", "Predicted time", "Time in the ODE", "Time in the run"]
    assert table["Task"] == columns
    for task in range(3):
        row = dict(zip(columns, table[f"task {task}"]))
        assert row["Predicted head"] == f"head {summary['predicted_allocation'][task]}"
        assert row["Observed head"] == f"head {summary['allocation'][task]}"
        assert row["Predicted time"] == number(summary["predicted_times"][task])
        assert row["Time in the run"] == number(observed[task])
        assert float(row["Time in the ODE"]) == pytest.approx(observed[task], rel=0.1)
    assert "No prediction: Adam does not follow the gradient flow" in pages["random"].text
    assert "by AdamW with learning rate 0.001 and weight decay 0.01" in pages["decayed"].text
    assert "no head wins a combined flow" in pages["combined"].text


def test_what_happened(pages: dict[str, Page]) -> None:
    assert "Each task is taken by a head of its own, as predicted" in pages["demo"].text
    assert "Some heads serve several tasks" in pages["shared"].text
    assert "is shared by tasks" in pages["shared"].text
    assert "there are fewer heads than tasks" in pages["shared"].text
    assert "from which the run escapes" in pages["combined"].text
    assert "Plateau and escape" in pages["combined"].text
    assert "the run has left this state" in pages["combined"].text
    assert "No head has taken any of the tasks" in pages["short"].text
    assert "Not told here: known for covariates whose covariance is the identity only" in pages["coloured"].text
    assert "predictions are from" in pages["coloured"].text.lower()
    assert "asymptotic_loss" not in pages["coloured"].text


def test_what_the_flow_conserves(folders: dict[str, Path], pages: dict[str, Page]) -> None:
    def conserved_on(name: str) -> dict[str, list[str]]:
        return next((rows for caption, rows in pages[name].tables.items() if "conserves" in caption), {})

    assert conserved_on("combined") == {}
    for name, balanced in (("demo", True), ("random", False)):
        weights = load_run(folders[name]).parameters.tensors()
        w_q, w_k, w_v, w_o = (weights[key].double() for key in ("w_q", "w_k", "w_v", "w_o"))
        query_key = (w_q @ w_q.transpose(1, 2) - w_k @ w_k.transpose(1, 2)).norm()
        value_output = (w_v @ w_v.transpose(1, 2) - w_o.transpose(1, 2) @ w_o).norm()
        for (_, end, _, _), expected in zip(list(conserved_on(name).values())[1:], (query_key, value_output)):
            assert end == number(float(expected), 3)
        changes = [float(row[3].replace("−", "-")) for row in list(conserved_on(name).values())[1:]]
        assert (max(changes) < 1e-3) == balanced


def test_text_of_a_configuration_is_escaped(folders: dict[str, Path], pages: dict[str, Page]) -> None:
    html = (folders["strange"] / "report.html").read_text(encoding="utf-8")
    assert STRANGE not in html
    assert "onclick=" not in re.sub(r"&lt;b onclick=", "", html)
    assert pages["strange"].row("preset")[0] == STRANGE
    assert pages["strange"].headings[0] == ("h1", f"{STRANGE}, seed 0")


def test_same_run_same_bytes(folders: dict[str, Path]) -> None:
    paths = [folders[name] / "report.html" for name in ("demo", "random")]
    before = [path.read_bytes() for path in paths]
    assert max(map(len, before)) < 3_000_000
    code = "import sys; from mhicl_fast.report import write_report; print([write_report(f) for f in sys.argv[1:]])"
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    arguments = [sys.executable, "-c", code, *(str(path.parent) for path in paths)]
    subprocess.run(arguments, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert [path.read_bytes() for path in paths] == before
    assert not [entry for path in paths for entry in path.parent.iterdir() if entry.name.endswith(".tmp")]


def test_the_command_line(folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", str(folders["one"])]) == 0
    assert capsys.readouterr().out == f"report: {folders['one'] / 'report.html'}\n"
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_an_unfinished_run_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(folders["one"], unfinished)
    (unfinished / "summary.json").unlink()
    (unfinished / "report.html").unlink()
    with pytest.raises(FolderError, match=r"is not finished; go on with it: mhicl resume .*run"):
        write_report(unfinished)
    assert not (unfinished / "report.html").exists()
    with pytest.raises(ValueError, match="is not finished"):
        analyse_run(load_run(unfinished))
    with pytest.raises(FolderError, match="is not a run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["demo", "one", "coloured", "random", "strange"])
def test_the_command_repeats_the_run(folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_run(folders[name]).config
    config = dataclasses.replace(config, seed=5, record_every=7)
    words = shlex.split(command(config))
    asked: list[tuple[RunConfig, str]] = []
    if words[0] == "mhicl":
        monkeypatch.setattr(
            "mhicl_fast.train.loop.run", lambda config, path, bar, **_: asked.append((config, str(path)))
        )
        monkeypatch.setattr("mhicl_fast.train.table.results_table", lambda finished: "")
        assert main(words[1:]) == 0
    else:
        monkeypatch.setattr("mhicl_fast.train.run", lambda config, path: asked.append((config, path)))
        assert words[:2] == ["python", "-c"]
        exec(words[2])
    assert asked == [(config, "DIR")]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium, which prints the pages, is not installed")
@pytest.mark.parametrize("name", ["demo", "random"])
def test_the_page_prints_on_a4(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    file = tmp_path / "page.pdf"
    browser = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = (folders[name] / "report.html").as_uri()
    printing = [*browser, "--no-pdf-header-footer", f"--print-to-pdf={file}", address]
    subprocess.run(printing, check=True, capture_output=True, timeout=120)
    data = file.read_bytes()
    pages = re.findall(rb"/Type /Page\b(?!s)", data)
    assert 4 <= len(pages) <= 20
    boxes = {tuple(float(x) for x in box.split()) for box in re.findall(rb"/MediaBox \[([^\]]*)\]", data)}
    assert len(boxes) == 1
    assert boxes.pop() == pytest.approx((0, 0, 595, 842), abs=1)


@pytest.fixture(scope="session")
def found(folders: dict[str, Path]) -> dict[str, Findings]:
    runs = {name: load_run(folders[name]) for name in ("demo", "shared", "one", "coloured", "random", "combined")}
    return {name: Findings(loaded, summary_of(folders[name]), analyse_run(loaded)) for name, loaded in runs.items()}


def rows(found: Findings) -> dict[str, tuple[str, ...]]:
    """The table of differences: (run, theory, difference, reason) of each comparison."""
    section = differences(found)
    return {row[0]: tuple(row[1:]) for block in section.blocks if isinstance(block, Table) for row in block.rows}


def changed(found: Findings, *, negate: tuple[str, ...] = (), analysis: Any = None, **summary: Any) -> Findings:
    metrics = {name: -values if name in negate else values for name, values in found.run.metrics.items()}
    run = dataclasses.replace(found.run, metrics=metrics)
    return Findings(run, {**found.summary, **summary}, analysis or found.analysis)


def test_values_are_compared_up_to_their_joint_sign(found: dict[str, Findings]) -> None:
    pages = [rows(found["demo"]), rows(changed(found["demo"], negate=("mu", "omega")))]
    compared = [what for what in pages[0] if "of each task's head" in what]
    assert len(compared) == 2
    for what in compared:
        assert pages[0][what] == pages[1][what]
        assert float(pages[0][what][2].split(" %")[0]) < 20
        assert pages[0][what][3].startswith("near the state")
        far = rows(changed(found["demo"], eval_loss=6 * found["demo"].summary["eval_loss"]))
        assert far[what][3].startswith("the run is not at this state: its loss is 6.")
    flipped = rows(changed(found["demo"], negate=("omega",)))  # an anti-aligned head is no such state
    assert float(flipped[compared[1]][2].split(" %")[0]) > 180


def test_reasons_for_departures(found: dict[str, Findings]) -> None:
    def reason(name: str, residual: float, cause: str) -> tuple[str, str]:
        analysis = found[name].analysis
        departures = {key: residual if key == cause else residual / 10 for key in analysis.departures}
        decomposition = analysis.decomposition._replace(residual=residual)
        analysis = dataclasses.replace(analysis, departures=departures, decomposition=decomposition)
        return rows(changed(found[name], analysis=analysis))["Distance from decomposable weights"][2:]

    what, why = reason("random", 0.5, "kq_labels")
    assert what == "mostly KQ reading labels"
    assert why.startswith("too large for noise: the start was random")
    assert why.endswith("logits that read labels")
    assert "opposite antisymmetric parts" in reason("random", 0.5, "kq_antisymmetric")[1]
    what, why = reason("one", 0.01, "ov_covariates")
    assert (what, why) == ("mostly OV reading covariates", "sampling noise of the gradients")
    assert "noise" not in reason("demo", 1e-6, "ov_covariates")[1]
    assert reason("coloured", 0.01, "kq_off_diagonal")[1].startswith("correlated covariates")


def test_reasons_for_the_final_loss(found: dict[str, Findings]) -> None:
    shared = found["shared"]
    assert shared.sharing is not None
    every = dataclasses.replace(shared.analysis.roles, winner=[1, 1, 1], shared={1: [0, 1, 2]})  # type: ignore[type-var]
    analysis = dataclasses.replace(shared.analysis, roles=every)
    alike = changed(shared, analysis=analysis, allocation=[1, 1, 1], eval_loss=shared.summary["eval_loss"] * 1.6)
    table, state = rows(alike), spectral.shared_heads_state(shared.task, [[0, 1, 2]])
    reason = table["Final loss, against best shared heads"][3]
    assert (
        f"heads are shared in another way, for which theory has {number(state.loss)}: head 1 takes tasks 0, 1, 2"
        in reason
    )
    assert table["Final loss, against heads shared as in this run"][1] == number(state.loss)
    assert "Final loss, against heads shared as in this run" not in rows(shared)
    never = {**shared.summary["phases"], "task_emergence_end": [None] * 3}
    for what, row in rows(changed(shared, phases=never, eval_loss=9.0)).items():
        if what.startswith("Final loss"):
            assert (row[3] == "not all tasks are learnt") == ("at the same time" not in what)


def test_reasons_for_winners_and_times(found: dict[str, Findings]) -> None:
    demo = found["demo"]
    early = rows(changed(demo, allocation=[-1] * 3, flow_time=1e-3))["Winner of each task"]
    assert early[2:] == ("0 of 3 as predicted", "not learnt by the end, at flow time 0.001000, before a predicted time")
    other = [(head + 1) % 3 for head in demo.summary["predicted_allocation"]]
    reason = rows(changed(demo, allocation=other))["Winner of each task"][3]
    assert reason == "finite L, and what a head learnt before decide between heads that start alike"  # exact gradients
    for factor, words in ((0.5, "delay the run"), (2.0, "hastens the run")):
        times = (factor * demo.half_learnt).tolist()
        what = "Flow time at which half of a task is learnt"
        assert rows(changed(demo, predicted_times=times))[what][3].endswith(words)
    assert "delay" not in rows(changed(demo, predicted_times=demo.half_learnt.tolist()))[what][3]


def test_the_page_and_the_summary_have_one_source(found: dict[str, Findings]) -> None:
    for name in ("demo", "shared", "random"):
        analysis, summary = found[name].analysis, found[name].summary
        assert analysis.roles is not None
        assert analysis.attention is not None
        assert summary["head_roles"] == json.loads(json.dumps(analysis.roles.to_dict()))
        assert summary["predicted_effective_examples"] == analysis.attention.examples.tolist()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"machine": "x"}', '{"machine": {"threads": 2}}'])
def test_a_damaged_record_of_the_machine_is_named(folders: dict[str, Path], tmp_path: Path, content: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folders["one"], folder)
    (folder / "timing.json").write_text(content)
    with pytest.raises(FolderError, match=r"timing\.json is damaged"):
        reproduction(Findings(load_run(folder), {}, None))  # type: ignore[arg-type]
    (folder / "timing.json").unlink()
    tables = [block for block in reproduction(Findings(load_run(folder), {}, None)).blocks if isinstance(block, Table)]  # type: ignore[arg-type]
    assert tables[1].rows == [("machine", "not recorded")]


@pytest.mark.parametrize(
    ("value", "reference", "error", "words"),
    [
        (2.1, 2.0, 0.05, "5.0 % above it (2.0 s.e.)"),
        (1.9, 2.0, 0.0001, "5.0 % below it"),
        (8.0, 2.0, 0.1, "4 times as high"),
        (0.1, 0.0, 0.01, "0.100 above it (10 s.e.)"),
        (1.0, 1.0, 0.0, "no different"),
    ],
)
def test_differences_in_words(value: float, reference: float, error: float, words: str) -> None:
    assert difference(value, reference, error) == words
