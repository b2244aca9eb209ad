"""What a benchmark found: values that go into a JSON file and come back equal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..train.storage import write_atomically
from .errors import BenchInputError
from .roofs import Roofs
from .shapes import OPERATORS, Shape
from .timing import Timing

PASSES = ("forward", "backward", "both")
OURS = "mhicl_fast"
NOT_ASKED = "not asked for"  # the reason of what is not told as missing
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One competitor at one shape.

    `times` in seconds by pass; `errors` of "output" and "gradient" (the worst one), relative to float64; `memory` in
    bytes at the peak of "forward" and "both", beyond the inputs; `reasons` say by pass, or for "memory", why there is
    no number. `cold` are times like `times` that find a GPU's level-2 cache without their data, where they were taken.
    """

    times: Mapping[str, Timing]
    errors: Mapping[str, float]
    memory: Mapping[str, int]
    reasons: Mapping[str, str]
    cold: Mapping[str, Timing] = field(default_factory=dict)


@dataclass(frozen=True)
class ShapeResult:
    """All competitors at one shape and dtype."""

    shape: Shape
    dtype: str
    entries: Mapping[str, Entry]

    def ratio(self, name: str, part: str) -> float:
        """A competitor's median time in terms of ours; NaN where one of them is missing."""
        ours, theirs = self.entries[OURS].times.get(part), self.entries[name].times.get(part)
        return theirs.median / ours.median if ours and theirs else math.nan

    def best(self, part: str) -> str | None:
        """The fastest competitor; None where there is none, or no time of ours."""
        rivals = [name for name in self.entries if not math.isnan(self.ratio(name, part)) and name != OURS]
        return min(rivals, key=lambda name: self.ratio(name, part), default=None)


@dataclass(frozen=True)
class Report:
    """Results with the machine that they were found on: facts in words, and its two roofs by dtype, as measured and, of
    GPUs that are known by name, as published."""

    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    roofs: Mapping[str, Roofs]
    results: list[ShapeResult]
    published: Mapping[str, Roofs] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, Any]]:
        """By pass: geometric mean over shapes of the best competitor's time in terms of ours, and the worst shape."""
        return {part: found for part in PASSES if (found := self._summary_of(part))}

    def _summary_of(self, part: str) -> dict[str, Any]:
        compared = [(result, best) for result in self.results if (best := result.best(part))]
        if not compared:
            return {}
        ratios = [result.ratio(best, part) for result, best in compared]
        worst = min(range(len(ratios)), key=ratios.__getitem__)
        result, best = compared[worst]
        return {
            "geometric_mean": math.exp(sum(map(math.log, ratios)) / len(ratios)),
            "shapes": len(ratios),
            "worst": ratios[worst],
            "worst_shape": str(result.shape),
            "worst_dtype": result.dtype,
            "worst_against": best,
        }


def rates(result: ShapeResult, name: str, part: str, roofs: Roofs) -> dict[str, float] | None:
    """Prompts, useful operations and bytes per second of a pass, and the shares of the roofs; None without a time."""
    timing = result.entries[name].times.get(part)
    if timing is None:
        return None
    operations = getattr(result.shape.operations, part) / timing.median
    moved = getattr(result.shape.elements, part) * _bytes_of(result.dtype) / timing.median
    return {
        "prompts_per_s": result.shape.prompts / timing.median,
        "operations_per_s": operations,
        "share_of_peak": operations / roofs.peak,
        "bytes_per_s": moved,
        "share_of_bandwidth": moved / roofs.bandwidth,
    }


def _bytes_of(dtype: str) -> int:
    return {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[dtype]


def write_report(report: Report, file: Path) -> None:
    """Write a report as JSON, rates and summary included; the file is replaced atomically."""
    shapes = [
        {
            "operator": result.shape.operator,
            "shape": str(result.shape),
            "dtype": result.dtype,
            "prompts": result.shape.prompts,
            "operations": result.shape.operations._asdict(),
            "bytes": {k: v * _bytes_of(result.dtype) for k, v in result.shape.elements._asdict().items()},
            "competitors": {name: _entry_json(report, result, name) for name in result.entries},
        }
        for result in report.results
    ]
    content = {
        "format": _FORMAT,
        "machine": dict(report.machine),
        "settings": dict(report.settings),
        "roofs": {dtype: roofs._asdict() for dtype, roofs in report.roofs.items()},
        "published_roofs": {dtype: roofs._asdict() for dtype, roofs in report.published.items()},
        "summary": report.summary(),
        "shapes": shapes,
    }
    write_atomically(file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _entry_json(report: Report, result: ShapeResult, name: str) -> dict[str, Any]:
    entry = result.entries[name]
    rated = {part: rates(result, name, part, report.roofs[result.dtype]) for part in entry.times}
    cold = {"seconds_cold": {part: timing._asdict() for part, timing in entry.cold.items()}} if entry.cold else {}
    return {
        "seconds": {part: timing._asdict() for part, timing in entry.times.items()},
        **cold,
        "rates": rated,
        "errors": {what: value if math.isfinite(value) else str(value) for what, value in entry.errors.items()},
        "peak_bytes": dict(entry.memory),
        "reasons": dict(entry.reasons),
    }


def read_report(file: Path) -> Report:
    """A report that `write_report` wrote; BenchInputError for any other file."""
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != _FORMAT:
            raise BenchInputError(f"{file} has format {content['format']}; this version reads {_FORMAT}")
        return Report(
            content["machine"],
            content["settings"],
            {dtype: Roofs(**roofs) for dtype, roofs in content["roofs"].items()},
            [_result_from(shape) for shape in content["shapes"]],
            {dtype: Roofs(**roofs) for dtype, roofs in content.get("published_roofs", {}).items()},
        )
    except OSError as error:
        raise BenchInputError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BenchInputError):
            raise
        raise BenchInputError(
            f"{file} is no result of `mhicl bench --json` ({type(error).__name__}: {error})"
        ) from error


def _result_from(content: Mapping[str, Any]) -> ShapeResult:
    number: Callable[[Any], float] = float
    entries = {
        name: Entry(
            {part: Timing(**timing) for part, timing in entry["seconds"].items()},
            {what: number(value) for what, value in entry["errors"].items()},
            entry["peak_bytes"],
            entry["reasons"],
            {part: Timing(**timing) for part, timing in entry.get("seconds_cold", {}).items()},
        )
        for name, entry in content["competitors"].items()
    }
    return ShapeResult(OPERATORS[content["operator"]].parse(content["shape"]), content["dtype"], entries)
