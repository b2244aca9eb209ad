"""Predicts how long the kernels take on an H100 and an A100, and what bounds them. Nothing here was measured.

    python benchmarks/gpu_model.py            # prints the tables
    python benchmarks/gpu_model.py --write    # puts them into docs/cuda.md

A kernel's instructions are those of its hottest loops (benchmarks/gpu_counts.json, from the disassembly), as often as
the sizes say (gpu_workloads.py). Each unit of a multiprocessor takes its share of the clocks, and so does issuing; the
one that takes longest bounds the kernel, or memory does. That is a least time: waits for memory and at barriers, what
stands outside of the loops and launches are left out. PyTorch's own operations are taken at the published peaks, each
reading and writing memory once, which is a least time too, and a kinder one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu_counts import COUNTS
from gpu_workloads import (
    FORMULAS,
    AttentionSizes,
    Operation,
    Phase,
    Sizes,
    Work,
    conditional_step,
    drawn_prompts,
    eager_absorbed,
    eager_attention,
    eager_prompts,
    general_attention,
    given_prompts,
    sampled_step,
    sdpa_absorbed,
    sdpa_attention,
)

from mhicl_fast.bench.gpus import A100, H100, Gpu
from mhicl_fast.train.wording import number

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cuda.md"
BEGIN, END = "<!-- written by benchmarks/gpu_model.py -->", "<!-- end of what it wrote -->"
MACHINES = {"sm_90": H100, "sm_80": A100}
ISSUED, LANES = 4, 32  # instructions of warps that a multiprocessor issues in a clock; lanes of a warp
STUDY = Sizes(10_000, 100, 50, 1, 8)
PROMPTS = (STUDY, Sizes(2000, 100, 50, 1, 8), Sizes(1000, 200, 30, 3, 4), Sizes(100_000, 40, 5, 1, 8))
ATTENTION = (
    AttentionSizes(64, 8, 8, 81, 81, 32, True), AttentionSizes(256, 4, 4, 21, 21, 64),
    AttentionSizes(2000, 8, 1, 1, 100, 51), AttentionSizes(16, 8, 8, 512, 512, 64),
)  # fmt: skip
Counts = Mapping[str, Mapping[str, Any]]  # of one architecture, by kernel and kind of loop


class Clocks(NamedTuple):
    """What a pass of a warp through a loop takes of a multiprocessor, by unit."""

    units: Mapping[str, float]

    @property
    def bound(self) -> str:
        """The unit that takes longest."""
        return max(self.units, key=lambda unit: self.units[unit])

    @property
    def most(self) -> float:
        return self.units[self.bound]


def clocks_of(loop: Mapping[str, Any], gpu: Gpu) -> Clocks:
    """Of a loop's counts. Multiplications of integers run on lanes that multiply-adds use too."""
    mix = loop["mix"]
    floats, products = mix.get("multiply-add", 0), mix.get("integer product", 0)
    return Clocks({
        "issue": loop["slots"] / ISSUED,
        "multiply-add": (floats + products) * LANES / gpu.float_lanes,
        "integer": max(mix.get("integer", 0), products) * LANES / gpu.integer_lanes,
        "special": mix.get("special", 0) * LANES / gpu.special_lanes,
        "shared memory": float(mix.get("shared", 0)),  # a wavefront each: no conflicts, wide reads are of one address
    })  # fmt: skip


def clocks_each(phase: Phase, counts: Counts, kernel: str, gpu: Gpu) -> Clocks:
    """Of one of a phase's passes: a whole loop, one multiply-add of it, or an exponential of it, which is the same code
    in all kernels, but not in a loop of its own in each."""
    kind = "products" if phase.kind == "multiply-adds" else phase.kind
    loop = counts[kernel].get(kind) or counts["sampled step"][kind]
    parts = {"multiply-adds": loop["mix"].get("multiply-add", 1), "exponentials": loop["special_each"]}
    return Clocks({unit: c / (parts.get(phase.kind) or 1) for unit, c in clocks_of(loop, gpu).units.items()})


class Prediction(NamedTuple):
    """Seconds and what bounds them."""

    seconds: float
    bound: str


def predict(works: Iterable[Work], counts: Counts, gpu: Gpu) -> Prediction:
    """Of kernels one after another; the bound is that of the one that takes longest."""
    each = [_predict_one(work, counts, gpu) for work in works]
    return Prediction(sum(one.seconds for one in each), max(each).bound)


def _predict_one(work: Work, counts: Counts, gpu: Gpu) -> Prediction:
    units: dict[str, float] = {}
    for phase in work.phases:
        for unit, clocks in clocks_each(phase, counts, work.kernel, gpu).units.items():
            units[unit] = units.get(unit, 0.0) + clocks * phase.passes
    seconds = {unit: clocks / gpu.multiprocessors / gpu.clock for unit, clocks in units.items()}
    seconds["memory"] = work.bytes / gpu.bandwidth
    bound = max(seconds, key=lambda unit: seconds[unit])
    return Prediction(seconds[bound], bound)


def predict_step(estimator: str, sizes: Sizes, gpu: Gpu) -> Prediction:
    """A fused step's least time on a GPU of either generation, by the committed counts."""
    counts = json.loads(COUNTS.read_text())["sm_80" if gpu.float_lanes == A100.float_lanes else "sm_90"]
    return predict((sampled_step if estimator == "sampled" else conditional_step)(sizes), counts, gpu)


def at_the_roofs(operations: Iterable[Operation], gpu: Gpu) -> float:
    """Seconds of PyTorch's operations one after another, each at the peak that bounds it."""
    return sum(max(4 * one.elements / gpu.bandwidth, one.operations / gpu.float32) for one in operations)


def tables(counts: Mapping[str, Counts]) -> str:
    """The whole of what the page holds."""
    parts = [
        "*Everything in this section is a prediction; none of it was measured.*",
        _formulas(),
        _loops(counts),
        _phases(counts),
        _times(counts),
    ]
    return "\n\n".join(parts)


def _formulas() -> str:
    heads = ("kernel", "bytes that must move (float32)", "multiply-adds", "special functions", "integer work")
    note = "q and k are the elements of the queries and of the keys, pairs counts each row's seen keys in all heads."
    return f"What each kernel does:\n\n{_table(heads, FORMULAS)}\n\n{note}"


def _loops(counts: Mapping[str, Counts]) -> str:
    rows = []
    for kernel, kinds in counts["sm_90"].items():
        for kind, loop in kinds.items():
            mix = loop["mix"]
            clocks = {name: clocks_of(c[kernel][kind], MACHINES[name]) for name, c in counts.items() if kernel in c}
            cells = [mix.get(name, 0) for name in ("multiply-add", "integer product", "integer", "special", "shared")]
            bounds = [
                f"{number(clocks[name].most, 3)} ({clocks[name].bound})" if name in clocks else "–" for name in MACHINES
            ]
            rows.append((kernel, kind, loop["slots"], *cells, *bounds))
    heads = (
        "kernel",
        "loop",
        "instructions",
        "multiply-add",
        "IMAD",
        "other integer",
        "special",
        "shared",
        "H100",
        "A100",
    )
    return (
        "Instructions of the hottest loops, by class (sm_90), and the clocks that a multiprocessor takes for a warp's "
        "pass, with what bounds it. A pass of *normals* draws four of them a lane, one of *exponentials* as many as "
        "there are special functions. The A100's clocks are of its own code (sm_80), whose loops may be unrolled "
        f"otherwise.\n\n{_table(heads, rows)}"
    )


def _phases(counts: Mapping[str, Counts]) -> str:
    """The fused step of the study, phase by phase."""
    rows = []
    for name, gpu in MACHINES.items():
        for work in sampled_step(STUDY):
            for phase in work.phases:
                clocks = clocks_each(phase, counts[name], work.kernel, gpu)
                seconds = clocks.most * phase.passes / gpu.multiprocessors / gpu.clock
                rows.append((gpu.name, work.kernel, phase.what, _microseconds(seconds), clocks.bound))
    lines = []
    for name, gpu in MACHINES.items():
        step = predict(sampled_step(STUDY), counts[name], gpu)
        traffic = sum(w.bytes for w in sampled_step(STUDY)) / gpu.bandwidth
        useful = (8 * STUDY.heads * STUDY.length * STUDY.dim + 4 * STUDY.heads * STUDY.dim**2) * STUDY.n
        lines.append(
            f"* {gpu.name}: **{_milliseconds(step.seconds)} ms** a step, bound by {step.bound}. Its "
            f"{useful / 1e9:.2f} GFLOP alone take {_milliseconds(useful / gpu.float32)} ms at the published peak, its "
            f"traffic at most {_milliseconds(traffic)} ms."
        )
    heads = ("GPU", "kernel", "phase", "µs", "bound by")
    return (
        f"The fused step with prompts drawn inside, {STUDY}, float32:\n\n"
        + "\n".join(lines)
        + "\n\n"
        + _table(heads, rows)
    )


def _times(counts: Mapping[str, Counts]) -> str:
    rows: list[tuple[str, ...]] = []
    for sizes in PROMPTS:
        for title, make, draws in (
            ("step, `sampled`", sampled_step, True),
            ("step, `conditional`", conditional_step, True),
            (
                "`prompt_attention`, both passes",
                lambda s: [w for part in given_prompts(s).values() for w in part],
                False,
            ),
        ):
            rivals = (eager_absorbed(sizes, draws=draws), sdpa_absorbed(sizes, draws=draws))
            rows.append((title, str(sizes), *_compared(make(sizes), rivals, counts)))
    if "sampler" in counts["sm_90"]:
        rows.append(("`sample`", str(STUDY), *_compared(drawn_prompts(STUDY), [eager_prompts(STUDY)], counts)))
    for shape in ATTENTION:
        works, eager, sdpa = (f(shape) for f in (general_attention, eager_attention, sdpa_attention))
        both = [[one for part in parts.values() for one in part] for parts in (works, eager, sdpa)]
        if all(work.kernel in counts["sm_90"] for work in both[0]):
            rows.append(("`attention`, both passes", str(shape), *_compared(both[0], both[1:], counts)))
    heads = ("what", "sizes", *(f"{gpu.name}: here / eager / SDPA, ms" for gpu in MACHINES.values()), "bound by")
    return (
        "Predicted least times beside those of PyTorch, which stand at the published peaks (eager: the absorbed form, "
        f"or scores, softmax and sum; for steps the drawing of the prompts included):\n\n{_table(heads, rows)}"
    )


def _compared(works: list[Work], rivals: Sequence[list[Operation]], counts: Mapping[str, Counts]) -> list[str]:
    cells, bounds = [], []
    for name, gpu in MACHINES.items():
        ours = predict(works, counts[name], gpu)
        bounds.append(ours.bound)
        theirs = (_milliseconds(at_the_roofs(operations, gpu)) for operations in rivals)
        cells.append(" / ".join([f"**{_milliseconds(ours.seconds)}**", *theirs]))
    return [*cells, ", ".join(dict.fromkeys(bounds))]


def _milliseconds(seconds: float) -> str:
    return number(seconds * 1e3, 2)


def _microseconds(seconds: float) -> str:
    return number(seconds * 1e6, 2)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def with_tables(page: str, text: str) -> str:
    """The page with the tables between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"the page lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/cuda.md")
    options = parser.parse_args()
    text = tables(json.loads(COUNTS.read_text()))
    if options.write:
        PAGE.write_text(with_tables(PAGE.read_text(), text))
    else:
        print(text)


if __name__ == "__main__":
    main()
