"""Reports of the benchmark: JSON and back, tables, comparison, figure; and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import mhicl_fast
from mhicl_fast import bench
from mhicl_fast.bench import AttentionShape, Entry, Report, Roofs, ShapeResult, Timing
from mhicl_fast.bench.comparison import Change, changes
from mhicl_fast.bench.results import rates
from mhicl_fast.cli import main

ROOT = Path(__file__).resolve().parent.parent
SHAPE = AttentionShape(2, 6, 3, 4, 5, 7, 9)
MACHINE = {
    "processor": "P", "instruction set": "avx2", "threads": "2", "platform": "Linux", "compiler": "GCC",
    "mhicl_fast": "0", "torch": "2", "date": "today",
}  # fmt: skip


def timing(milliseconds: float) -> Timing:
    return Timing(milliseconds / 1e3, milliseconds * 0.9 / 1e3, milliseconds * 1.1 / 1e3)


def entry(forward: float, both: float | None = None, reason: str = "") -> Entry:
    times = {"forward": timing(forward)}
    if both is not None:
        times |= {"backward": timing(both - forward), "both": timing(both)}
    return Entry(
        times,
        {"output": 1e-7, "gradient": 3e-7},
        {"forward": 2**20, "both": 3 * 2**20},
        {"both": reason} if reason else {},
    )


def report(scale: float = 1.0, shape: AttentionShape = SHAPE) -> Report:
    slow = AttentionShape(9, 1, 1, 1, 8, 5, 5)
    results = [
        ShapeResult(
            shape,
            "float32",
            {
                "mhicl_fast": entry(2 * scale, 5 * scale),
                "eager": entry(8, 30),
                "sdpa": entry(6, 40),
                "flex": entry(5, reason="NotImplementedError: no backward"),
            },
        ),
        ShapeResult(slow, "float32", {"mhicl_fast": entry(4 * scale, 10 * scale), "eager": entry(3, 20)}),
        ShapeResult(slow, "float64", {"mhicl_fast": Entry({}, {"output": float("inf")}, {}, {"both": "wrong"}),
                                      "eager": entry(3, 20)}),
    ]  # fmt: skip
    roofs = {"float32": Roofs(1e9, 1e8), "float64": Roofs(5e8, 1e8)}
    return Report(MACHINE, {"operator": "attention", "seconds": 1.0}, roofs, results)


def test_ratios_and_summary() -> None:
    made = report()
    assert made.results[0].ratio("eager", "both") == pytest.approx(6)
    assert (made.results[0].best("forward"), made.results[0].best("both")) == ("flex", "eager")
    assert made.results[2].best("both") is None
    summary = made.summary()
    assert summary["both"]["geometric_mean"] == pytest.approx((6 * 2) ** 0.5)
    assert summary["forward"]["geometric_mean"] == pytest.approx((2.5 * 0.75) ** 0.5)
    assert summary["forward"]["worst"] == pytest.approx(0.75)
    assert (summary["forward"]["worst_shape"], summary["forward"]["worst_against"]) == ("9,1,1,8,5", "eager")
    assert summary["forward"]["shapes"] == 2


def test_rates() -> None:
    made = report()
    found = rates(made.results[0], "mhicl_fast", "forward", made.roofs["float32"])
    assert found is not None
    assert found["prompts_per_s"] == pytest.approx(2 / 2e-3)
    assert found["operations_per_s"] == pytest.approx(7680 / 2e-3)
    assert found["share_of_peak"] == pytest.approx(7680 / 2e-3 / 1e9)
    elements = 2 * 6 * 4 * 7 + 2 * 3 * 5 * (7 + 9) + 2 * 6 * 4 * 9
    assert found["bytes_per_s"] == pytest.approx(4 * elements / 2e-3)
    assert found["share_of_bandwidth"] == pytest.approx(4 * elements / 2e-3 / 1e8)
    assert rates(made.results[0], "flex", "both", made.roofs["float32"]) is None


def test_json_and_back(tmp_path: Path) -> None:
    made = report()
    bench.write_report(made, tmp_path / "r.json")
    again = bench.read_report(tmp_path / "r.json")
    assert again == made
    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["summary"]["both"]["worst_shape"] == "9,1,1,8,5"
    assert content["shapes"][0]["competitors"]["eager"]["rates"]["forward"]["prompts_per_s"] == pytest.approx(250)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "machine": {}}'])
def test_files_that_are_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(bench.BenchInputError, match=r"r\.json"):
        bench.read_report(tmp_path / "r.json")


def test_changes_beyond_noise() -> None:
    # quartiles at ±10 %: 1.1 / 0.9 = 1.22 is the least ratio that can be told
    assert Change.of(timing(1.2), timing(1)).verdict(1) == ""
    assert Change.of(timing(1.25), timing(1)).verdict(1) == "slower"
    assert Change.of(timing(0.8), timing(1)).verdict(1) == "faster"
    assert Change.of(timing(2), timing(1)).verdict(2) == ""
    assert Change.of(timing(1), timing(1)).verdict(2) == "faster"
    assert Change.of(timing(1), timing(1)).verdict(0.5) == "slower"
    change = changes(report(2).results[0], report().results[0], "mhicl_fast")["both"]
    assert change == pytest.approx((2, 2 * 0.9 / 1.1, 2 * 1.1 / 0.9))


def test_comparison() -> None:
    lines = bench.compare_reports(report(0.5), report()).splitlines()
    assert lines[1].split()[:4] == [str(SHAPE), "float32", "faster", "0.50"]
    assert lines[1].split()[-1] == "1"  # the competitors are as they were
    assert lines[3].split() == ["9,1,1,8,5", "float64", "–", "–", "–", "1"]
    other = report(shape=AttentionShape(1, 1, 1, 1, 1, 1, 1))
    assert bench.compare_reports(other, report()).splitlines()[-2:] == [
        "in the new report alone: 1,1,1,1,1 float32",
        f"in the earlier report alone: {SHAPE} float32",
    ]
    later = Report(MACHINE | {"threads": "1", "date": "later"}, {}, {}, report().results)
    assert bench.compare_reports(later, report()).splitlines()[-1] == "threads: 2, now 1"
    with pytest.raises(bench.BenchInputError, match="no shape and dtype in common"):
        bench.compare_reports(Report(MACHINE, {}, {}, other.results[:1]), report())


def test_the_verdict_is_in_terms_of_what_became_of_the_competitors() -> None:
    slower = {name: entry(6 * time, 15 * time) for name, time in {"mhicl_fast": 1, "eager": 3, "sdpa": 4}.items()}
    before = {name: entry(2 * time, 5 * time) for name, time in {"mhicl_fast": 1, "eager": 3, "sdpa": 4}.items()}

    def row(now: dict[str, Entry]) -> list[str]:
        made = [Report(MACHINE, {}, {}, [ShapeResult(SHAPE, "float32", entries)]) for entries in (now, before)]
        return bench.compare_reports(*made).splitlines()[1].split()[2:]

    assert row(slower) == ["3.00", "(2.45–3.67)", "3.00", "(2.45–3.67)", "3.00", "(2.45–3.67)", "3.00"]
    assert row(slower | {"mhicl_fast": before["mhicl_fast"]})[:3] == ["faster", "1.00", "(0.82–1.22)"]
    assert row({"mhicl_fast": slower["mhicl_fast"]})[-4:] == ["slower", "3.00", "(2.45–3.67)", "–"]


def test_table() -> None:
    table = bench.report_table(report())
    assert max(map(len, table.splitlines())) <= 120
    for words in ("measured roofs: 1 GFLOP/s in float32", "5 ±10%", "4.50–5.50", "6.00", "3e-07",
                  "flex, no forward + backward: NotImplementedError: no backward",
                  "forward + backward: 3.46 times as fast as the best competitor (geometric mean of 2)",
                  "worst: 0.750 at 9,1,1,8,5 float32 against eager"):  # fmt: skip
        assert words in table


def test_a_busy_machine_is_told() -> None:
    assert "other work" not in bench.report_table(report())
    calm = report()
    busy = Entry({"both": Timing(1e-3, 0.7e-3, 1.2e-3)}, {}, {}, {})
    made = Report(MACHINE, {}, calm.roofs, [ShapeResult(SHAPE, "float32", {"mhicl_fast": busy, "eager": entry(1, 3)})])
    assert "\n1 of 4 medians have quartiles beyond ±20%: the machine did other work too" in bench.report_table(made)


def test_figure() -> None:
    figure = bench.bench_figure(report())
    forward, both = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in both.lines if line.get_marker() != "None"}
    assert [x for x, _ in drawn["eager"]] == pytest.approx([6, 2])
    assert [round(y) for _, y in drawn["eager"]] == [0, 1]
    assert drawn["flex"] == []
    assert len({line.get_label() for line in forward.lines} & {"eager", "sdpa", "flex"}) == 3
    with pytest.raises(bench.BenchInputError, match="nothing to draw"):
        bench.bench_figure(Report(MACHINE, {}, {}, report().results[2:]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: str(tmp_path / f"bench.{kind}") for kind in ("json", "png")}
    few = ["bench", "--shapes", "3,4/2,5,6,7,causal", "--only", "eager-rows", "sdpa", "--rounds", "2", "--threads", "1"]
    threads = torch.get_num_threads()
    assert main([*few, "--json", files["json"], "--figure", files["png"]]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "times as fast as the best competitor (geometric mean of 1)" in printed.out
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    entries = bench.read_report(tmp_path / "bench.json").results[0].entries
    assert list(entries) == ["mhicl_fast", "eager-rows", "sdpa"]
    for found in entries.values():
        assert set(found.times) == {"forward", "backward", "both"}
        assert set(found.memory) == {"forward", "both"}
        assert max(found.errors.values()) < 1e-5
        assert not found.reasons
    assert torch.get_num_threads() == threads
    assert main([*few, "--quick", "--dtype", "float32", "bfloat16", "--compare", files["json"]]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("new time / old time") == 1
    assert "bfloat16: useful operations" in printed.out
    assert max(map(len, printed.out.splitlines())) <= 120


def test_an_earlier_report_of_other_shapes_is_refused_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.write_report(report(), tmp_path / "old.json")
    file = tmp_path / "new.json"
    command = ["bench", "--shapes", "2,2,3,4,5", "--rounds", "1", "--only", "eager", "--json", str(file)]
    assert main([*command, "--compare", str(tmp_path / "old.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the earlier report has none of these shapes in these dtypes" in printed.err
    assert not file.exists()


def test_the_command_on_prompt_attention(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--operator", "prompt_attention", "--shapes", "5,4,3,2,2", "--quick", "--rounds", "1"]
    assert main([*command, "--dtype", "float64"]) == 0
    printed = capsys.readouterr().out
    for words in ("prompt_attention 5,4,3,2,2 float64", "absorbed-eager", "projected"):
        assert words in printed
    assert "compile" not in printed


def test_a_wrong_result_of_ours_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mhicl_fast, "attention", lambda query, key, value, **_: (query @ key.mT) @ value)
    assert main(["bench", "--shapes", "2,2,3,4,5", "--only", "eager", "--quick", "--rounds", "1"]) == 1
    printed = capsys.readouterr()
    assert "mhicl_fast, no forward: wrong result: relative error" in " ".join(printed.out.split())
    assert printed.err == "mhicl: mhicl_fast failed, for reasons given above, at 2,2,3,4,5 float32\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "1,2,3"], "a shape of attention is written"),
        (["--shapes", "shapes.txt"], "neither a shape nor a file of shapes"),
        (["--only", "egger"], "competitor must be one of"),
        (["--only", "sdpa-cudnn"], "sdpa-cudnn runs on GPUs alone"),
        (["--device", "gpu"], "device must be cpu, cuda, or cuda with a number"),
        (["--dtype", "float8"], "dtype must be one of"),
        (["--random", "0"], "must be positive, got 0"),
        (["--threads", "0"], "threads must be positive, got 0"),
        (["--json", "{}/none/r.json"], "there is no folder"),
        (
            ["--quick", "--shapes", "2,2,3,4,5", "--figure", "{}/r.svg"],
            "the figure is drawn as PNG, so its file must be named so; got r.svg",
        ),
        (["--compare", "{}/none.json"], "cannot read"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", *(argument.replace("{}", str(tmp_path)) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("mhicl: ")
    assert printed.err.count("\n") == 1


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    shapes, few = ["2,2,3,4,5", "400,8,100,100,64"], ["--only", "eager", "--no-memory", "--rounds", "3"]
    old = tmp_path / "old.json"  # of the second shape alone: there is nothing to compare when the first is done
    bench.write_report(report(shape=AttentionShape.parse(shapes[1])), old)
    command = [sys.executable, "-m", "mhicl_fast", "bench", "--shapes", *shapes, *few, "--json", str(file)]
    command += ["--compare", str(old)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("  eager"):
        assert process.poll() is None
    time.sleep(0.2)  # the second shape takes seconds
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "mhicl: interrupted\n"
    assert "geometric mean of 1" in output
    assert [str(result.shape) for result in bench.read_report(file).results] == ["2,2,3,4,5"]
