"""What benchmarks/gpu.py found, as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mhicl_fast.train.wording import number

PASSES = {"forward": "forward", "both": "forward + backward"}
NONE = "–"


def page(content: Mapping[str, Any]) -> str:
    """Markdown: the machine, the checks, the step, the benchmarks, what was left out."""
    reports = content["benchmarks"]
    machine = next(iter(reports.values()))["machine"]
    title = "# Measured on a GPU"
    if content["rehearsal"]:
        title = "# Rehearsal on the CPU: these numbers mean nothing"
    parts = [
        title,
        "Written by `make gpu`; do not edit.",
        _table(("what", "value"), machine.items()),
        "## Checks",
        _table(("what", "outcome"), _checks(content)),
        *([_list(content["wrong"])] if content["wrong"] else []),
        "## A training step on fresh prompts",
        *_step(content["step"], next(iter(reports.values()))),
    ]
    for operator, report in reports.items():
        parts += [f"## `{operator}`", _roofs(report), *_shapes(report)]
    parts += ["## Left out", _list(content["left_out"]) if content["left_out"] else "Nothing."]
    return "\n\n".join(parts) + "\n"


def _checks(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    tests = content["tests"]
    counts = ", ".join(f"{count} {kind}" for kind, count in tests["counts"].items())
    sanitizer = [
        (f"compute-sanitizer {tool}", f"{found['errors']} errors (status {found['status']})")
        for tool, found in content["sanitizer"].items()
    ]
    return [("tests", counts), *tests["shown"].items(), *sanitizer]


def _step(step: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    size, own = step["size"], step["seconds"].get("native sampled")
    peak = report["roofs"]["float32"]["peak"]
    rows = []
    for name, timing in step["seconds"].items():
        median = timing["median"]
        ratio = f"{median / own['median']:.2f}" if own and own["median"] else NONE
        share = f"{step['useful_operations'] / median / peak:.0%}" if median else NONE
        least = step["predicted_seconds"].get(name)
        cells = (ratio, share, NONE if least is None else _ms(least))
        rows.append((name, f"{_ms(median)} ({_ms(timing['low'])}–{_ms(timing['high'])})", *cells))
    sizes = f"N={size['n']}, L={size['length']}, d={size['dim_x']}, I=1, H={size['heads']}, float32; data included."
    heads = ("step", "ms (quartiles)", "times the native one", "of the measured peak", "predicted least ms")
    return [sizes, _table(heads, rows)]


def _roofs(report: Mapping[str, Any]) -> str:
    lines = []
    for which in ("roofs", "published_roofs"):
        words = [
            f"{number(roofs['peak'] / 1e12, 3)} TFLOP/s in {dtype}, {number(roofs['bandwidth'] / 1e12, 3)} TB/s"
            for dtype, roofs in report[which].items()
        ]
        if words:
            lines.append(f"{'Published' if 'published' in which else 'Measured'} roofs: {'; '.join(words)}.")
    return "\n".join(lines)


def _shapes(report: Mapping[str, Any]) -> list[str]:
    """A table of times for each pass: ours with its shares of the roofs, and every competitor."""
    parts = []
    for part, title in PASSES.items():
        rows = [_row(report, shape, part) for shape in report["shapes"]]
        heads = (
            title,
            "warm ms ± half the quartiles",
            "cold ms",
            "of peak",
            "of memory",
            "competitors: × ours, warm (cold)",
        )
        parts.append(_table(heads, rows))
    return parts


def _row(report: Mapping[str, Any], shape: Mapping[str, Any], part: str) -> tuple[str, ...]:
    own = shape["competitors"]["mhicl_fast"]
    name = f"{shape['shape']} {shape['dtype']}"
    warm, cold = own["seconds"].get(part), own.get("seconds_cold", {}).get(part)
    if warm is None:
        return name, own["reasons"].get(part, NONE), NONE, NONE, NONE, NONE
    spread = (warm["high"] - warm["low"]) / 2 / warm["median"]
    shares = [_share(report, shape, part, warm["median"], what) for what in ("operations", "bytes")]
    others = [
        f"{rival} {_ratios(entry, warm, cold, part)}"
        for rival, entry in shape["competitors"].items()
        if rival != "mhicl_fast" and part in entry["seconds"]
    ]
    return (
        name,
        f"{_ms(warm['median'])} ± {spread:.0%}",
        _ms(cold["median"]) if cold else NONE,
        *shares,
        ", ".join(others),
    )


def _share(report: Mapping[str, Any], shape: Mapping[str, Any], part: str, seconds: float, what: str) -> str:
    """Of the measured roof, and of the published one in parentheses."""
    work, roof = shape[what], "peak" if what == "operations" else "bandwidth"
    total = work["forward"] + (work["backward"] if part == "both" else 0)
    shares = [
        f"{total / seconds / report[which][shape['dtype']][roof]:.0%}"
        for which in ("roofs", "published_roofs")
        if shape["dtype"] in report[which]
    ]
    return shares[0] + (f" ({shares[1]})" if len(shares) > 1 else "")


def _ratios(entry: Mapping[str, Any], warm: Mapping[str, float], cold: Mapping[str, float] | None, part: str) -> str:
    ratio = f"{entry['seconds'][part]['median'] / warm['median']:.2f}"
    theirs = entry.get("seconds_cold", {}).get(part)
    return f"{ratio} ({theirs['median'] / cold['median']:.2f})" if theirs and cold else ratio


def _ms(seconds: float) -> str:
    return number(seconds * 1e3, 3)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _list(entries: Iterable[str]) -> str:
    return "\n".join(f"* {entry}" for entry in entries)
