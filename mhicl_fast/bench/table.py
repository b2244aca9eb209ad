"""A report as text, at most 120 columns wide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from ..train.wording import number
from .results import NOT_ASKED, OURS, PASSES, Report, ShapeResult, rates
from .roofs import Roofs
from .timing import Timing

_WIDTH = 120
_MIB = 2**20
_NAMES = {"forward": "forward", "backward": "backward", "both": "forward + backward"}
NONE = "–"
_BUSY = 0.2  # a spread that an idle machine does not show


def report_table(report: Report) -> str:
    """Everything: the machine, a block per shape, the summary."""
    return "\n\n".join([heading(report), *(shape_block(report, result) for result in report.results), closing(report)])


def heading(report: Report) -> str:
    """The machine and its roofs."""
    facts = report.machine
    gpu = [f"{fact}: {facts[fact]}" for fact in ("driver", "CUDA", "largest clock", "power limit") if fact in facts]
    lines = [
        *(["; ".join([facts["GPU"], *gpu])] if "GPU" in facts else []),
        f"{facts['processor']}, {facts['instruction set']}, threads: {facts['threads']}; {facts['platform']}",
        f"mhicl_fast {facts['mhicl_fast']}, torch {facts['torch']}, {facts['compiler']}; {facts['date']}",
    ]
    lines += [
        f"{which} roofs: {_roofs_in_words(roofs)}"
        for which, roofs in (("measured", report.roofs), ("published", report.published))
        if roofs
    ]
    return "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in lines)


def _roofs_in_words(roofs: Mapping[str, Roofs]) -> str:
    peaks = ", ".join(f"{number(one.peak / 1e9, 3)} GFLOP/s in {dtype}" for dtype, one in roofs.items())
    return f"{peaks}; memory {number(next(iter(roofs.values())).bandwidth / 1e9, 3)} GB/s"


def shape_block(report: Report, result: ShapeResult) -> str:
    """Our rates by pass, then the times of all, then the reasons for what is missing.

    Times with a cold cache, where they were taken, and shares of the published roofs stand in parentheses.
    """
    operations = result.shape.operations
    title = (
        f"{result.shape.operator} {result.shape} {result.dtype}: useful operations "
        f"{number(operations.forward / 1e6, 3)} + {number(operations.backward / 1e6, 3)} million"
    )
    roofs, published = report.roofs[result.dtype], report.published.get(result.dtype)
    ours = aligned([_RATE_HEADS, *(_rate_row(result, part, roofs, published) for part in PASSES)])
    all_times = aligned([_TIME_HEADS, *(_time_row(result, name) for name in result.entries)])
    return "\n".join([title, ours, all_times, *_reasons(result)])


def closing(report: Report) -> str:
    """Ours against the best competitor, by pass."""
    lines = [
        f"{_NAMES[part]}: {number(found['geometric_mean'], 3)} times as fast as the best competitor (geometric mean of "
        f"{found['shapes']})\n  worst: {number(found['worst'], 3)} at {found['worst_shape']} {found['worst_dtype']} "
        f"against {found['worst_against']}"
        for part, found in report.summary().items()
        if part != "backward"
    ] or ["nothing to compare: no competitor and mhicl_fast both have times at any shape"]
    entries = [entry for result in report.results for entry in result.entries.values()]
    timings = [timing for entry in entries for timing in entry.times.values()]
    wide = sum(_half_spread(timing) > _BUSY for timing in timings)
    if wide:
        lines.append(
            f"{wide} of {len(timings)} medians have quartiles beyond ±{_BUSY:.0%}: the machine did other work too"
        )
    return "\n".join(lines)


_RATE_HEADS = ("mhicl_fast", "ms", "quartiles", "prompts/s", "GFLOP/s", "of peak", "GB/s", "of memory")
_TIME_HEADS = ("", "forward ms", "×", "backward ms", "×", "both ms", "×", "MiB fwd", "both", "error")


def _rate_row(result: ShapeResult, part: str, roofs: Roofs, published: Roofs | None) -> tuple[str, ...]:
    rated, timing = rates(result, OURS, part, roofs), result.entries[OURS].times.get(part)
    if rated is None or timing is None:
        return (f"  {_NAMES[part]}", *[NONE] * 7)
    prompts = rated["prompts_per_s"]
    named = None if published is None else rates(result, OURS, part, published)

    def share(of: str) -> str:
        return f"{rated[of]:.0%}" + (f" ({named[of]:.0%})" if named else "")

    return (
        f"  {_NAMES[part]}",
        _milliseconds(timing.median),
        _quartiles(timing),
        f"{float(f'{prompts:.3g}'):,.0f}",
        number(rated["operations_per_s"] / 1e9, 3),
        share("share_of_peak"),
        number(rated["bytes_per_s"] / 1e9, 3),
        share("share_of_bandwidth"),
    )


def _time_row(result: ShapeResult, name: str) -> tuple[str, ...]:
    entry = result.entries[name]
    cells = [f"  {name}"]
    for part in PASSES:
        timing = entry.times.get(part)
        cold = f" ({_milliseconds(entry.cold[part].median)})" if part in entry.cold else ""
        cells.append(f"{_milliseconds(timing.median)} {_spread(timing)}{cold}" if timing else NONE)
        ratio = result.ratio(name, part)
        cells.append(NONE if math.isnan(ratio) else f"{ratio:.2f}")
    cells += [f"{entry.memory[part] / _MIB:.1f}" if part in entry.memory else NONE for part in ("forward", "both")]
    return (*cells, f"{max(entry.errors.values()):.0e}" if entry.errors else NONE)


def _reasons(result: ShapeResult) -> list[str]:
    """A line for each competitor that lacks a pass."""
    lines = []
    for name, entry in result.entries.items():
        by_reason: dict[str, list[str]] = {}
        for part, reason in entry.reasons.items():
            if reason != NOT_ASKED:
                by_reason.setdefault(reason, []).append("forward + backward" if part == "both" else part)
        for reason, parts in by_reason.items():
            line = f"  {name}, no {' or '.join(parts)}: {reason}"
            lines.append(textwrap.shorten(line.strip(), 2 * _WIDTH, placeholder=" …"))
    return [textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines]


def _milliseconds(seconds: float) -> str:
    return number(seconds * 1e3, 3)


def _quartiles(timing: Timing) -> str:
    return f"{_milliseconds(timing.low)}–{_milliseconds(timing.high)}"


def _spread(timing: Timing) -> str:
    return f"±{_half_spread(timing):.0%}"


def _half_spread(timing: Timing) -> float:
    """Half the distance between the quartiles, relative to the median."""
    return (timing.high - timing.low) / 2 / timing.median


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right, each as wide as its widest entry."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    )
