"""Everything about a GPU in one go: tests, compute-sanitizer, times against PyTorch, shares of the roofs.

    make gpu                                      # builds for CUDA first
    python benchmarks/gpu.py [--device cuda:1] [--budget 420] [--out runs/gpu] [--table docs/gpu.md]
    python benchmarks/gpu.py --rehearse --out DIR    # tiny, on the CPU: runs the script, its numbers mean nothing

Writes OUT/gpu.json with everything and a table in words. Ends within the budget (seconds) and says what it left out.
Exit status: 0; 1 where a test or a result is wrong; 2 where there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_report
import torch
from gpu_deadline import Deadline
from gpu_model import predict_step
from gpu_steps import SMALL, STUDY, Size, time_steps
from gpu_workloads import Sizes

from mhicl_fast import bench
from mhicl_fast.bench.gpus import H100, PUBLISHED, Gpu
from mhicl_fast.bench.measuring import begin, measure, without_compiled
from mhicl_fast.bench.problem import COMPILED
from mhicl_fast.bench.results import ShapeResult, write_report
from mhicl_fast.devices import DeviceError, named_device

TINY = {"attention": ["2,2,3,5,4,causal", "3,2/1,1,7,5"], "prompt_attention": ["9,6,4,2,1"]}
DTYPES = {"attention": ("float32", "bfloat16"), "prompt_attention": ("float32", "float64")}


@dataclass(frozen=True)
class Scale:
    """How much is done: all on a GPU, next to nothing in a rehearsal."""

    device: str
    rehearsal: bool

    def shapes(self, operator: str) -> list[bench.shapes.Shape]:
        if self.rehearsal:
            return bench.shapes.read_shapes(operator, TINY[operator])
        return bench.default_shapes(operator)

    def plan(self, operator: str) -> bench.Plan:
        common = {"operator": operator, "dtypes": DTYPES[operator], "device": self.device}
        only = without_compiled(operator, self.device)
        if self.rehearsal:
            return bench.Plan(**common, only=only, rounds=1, memory=False)
        return bench.Plan(**common, only=only, seconds=0.05)


def main() -> int:
    options = _parser().parse_args()
    device = "cpu" if options.rehearse else options.device
    if not options.rehearse and not device.startswith("cuda"):
        print(f"--device names a GPU (cuda, cuda:1), got {device}; --rehearse is for the CPU", file=sys.stderr)
        return 2
    out = options.out or Path("runs/gpu-rehearsal" if options.rehearse else "runs/gpu")
    try:
        named_device(device, "attention")
    except DeviceError as error:
        print(f"no GPU to run on: {error}\n--rehearse runs the script on the CPU", file=sys.stderr)
        return 2
    scale, deadline = Scale(device, options.rehearse), Deadline(options.budget)
    out.mkdir(parents=True, exist_ok=True)
    content = run_stages(scale, deadline, out)
    (out / "gpu.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    text = gpu_report.page(content)
    table = out / "gpu.md" if options.rehearse else options.table
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(text)
    print(f"{text}\nwritten: {out / 'gpu.json'}, {table}")
    return 1 if content["wrong"] else 0


def run_stages(scale: Scale, deadline: Deadline, out: Path) -> dict[str, Any]:
    """All stages within the time, and what they left out."""
    content: dict[str, Any] = {"rehearsal": scale.rehearsal, "device": scale.device}
    _say("tests")
    selection = "test_moments or test_a_graph" if scale.rehearsal else None
    content["tests"] = gpu_checks.run_tests(deadline, scale.device, selection, 180)
    _say("compute-sanitizer")
    content["sanitizer"] = gpu_checks.run_sanitizer(deadline, scale.device, 60)
    _say("training steps")
    size = SMALL if scale.rehearsal else STUDY
    content["step"] = {"size": size._asdict(), "useful_operations": size.useful_operations}
    content["step"]["seconds"] = time_steps(size, torch.device(scale.device), deadline, compiled=not scale.rehearsal)
    content["step"]["predicted_seconds"] = predicted(size, H100 if scale.rehearsal else known_gpu(scale.device))
    content["benchmarks"] = {}
    for operator in TINY:
        file = out / f"{operator}.json"
        write_report(benchmark(scale, deadline, operator), file)
        content["benchmarks"][operator] = json.loads(file.read_text())
    content["left_out"] = deadline.left_out
    content["wrong"] = _what_is_wrong(content)
    return content


def known_gpu(device: str) -> Gpu | None:
    """The published facts of the GPU, if its name is known."""
    return PUBLISHED.get(torch.cuda.get_device_name(device))


def predicted(size: Size, gpu: Gpu | None) -> dict[str, float]:
    """The native steps' least times as benchmarks/gpu_model.py predicts them; none for a GPU that it does not know."""
    if gpu is None:
        return {}
    sizes = Sizes(size.n, size.length, size.dim_x, 1, size.heads)
    return {f"native {name}": predict_step(name, sizes, gpu).seconds for name in ("sampled", "conditional")}


def benchmark(scale: Scale, deadline: Deadline, operator: str) -> bench.Report:
    """Every shape first without what is compiled, then, as long as there is time, with that too."""
    plan, shapes = scale.plan(operator), scale.shapes(operator)
    report = begin(plan)
    for shape in shapes:
        if deadline.allows(3, f"{operator} {shape}"):
            _say(f"{operator} {shape}")
            report.results.extend(_measured(plan, shape))
    compiled = replace(plan, only=COMPILED[operator], memory=False)
    for number, result in enumerate(report.results):
        what = f"compiled competitors at {operator} {result.shape} {result.dtype}"
        if scale.rehearsal:
            deadline.left_out.append(f"{what}: not in a rehearsal")
        elif deadline.allows(60, what):
            _say(what)
            for more in _measured(replace(compiled, dtypes=(result.dtype,)), result.shape):
                theirs = {name: entry for name, entry in more.entries.items() if name not in result.entries}
                report.results[number] = replace(result, entries={**result.entries, **theirs})
    return report


def _measured(plan: bench.Plan, shape: bench.shapes.Shape) -> Iterator[ShapeResult]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # competitors' words about themselves
        yield from measure(plan, [shape])


def _what_is_wrong(content: dict[str, Any]) -> list[str]:
    wrong = [f"test failed: {name}" for name in content["tests"]["failures"]]
    if content["tests"]["status"] not in (0, gpu_checks.LEFT_OUT) and not wrong:
        wrong.append(f"the tests ended with status {content['tests']['status']}")
    for tool, found in content["sanitizer"].items():
        if found["errors"] or found["status"] not in (0, gpu_checks.OUT_OF_TIME):
            wrong.append(f"compute-sanitizer {tool}: {found['errors']} errors, status {found['status']}")
    for operator, report in content["benchmarks"].items():
        for shape in report["shapes"]:
            reasons = shape["competitors"]["mhicl_fast"]["reasons"]
            wrong += [
                f"{operator} {shape['shape']} {shape['dtype']}, {part}: {reasons[part]}"
                for part in ("forward", "both")
                if part in reasons
            ]
    return wrong


def _say(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, …")
    parser.add_argument("--budget", type=float, default=420, help="seconds for everything (default: 420)")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: runs/gpu, or runs/gpu-rehearsal)")
    parser.add_argument("--table", type=Path, default=Path("docs/gpu.md"), help="the page (default: docs/gpu.md)")
    parser.add_argument("--rehearse", action="store_true", help="tiny and on the CPU; the page goes to the folder too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
