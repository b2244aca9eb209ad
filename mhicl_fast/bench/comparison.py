"""Two reports side by side: what became faster or slower, beyond the spread of both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

from ..train.wording import number
from .errors import BenchInputError
from .results import OURS, PASSES, Report, ShapeResult
from .shapes import Shape
from .table import NONE, aligned
from .timing import Timing


class Change(NamedTuple):
    """New time in terms of the old one: of the medians, and the extremes that both pairs of quartiles allow."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, new: Timing, old: Timing) -> Change:
        return cls(new.median / old.median, new.low / old.high, new.high / old.low)

    def verdict(self, drift: float) -> str:
        """ "faster" or "slower" where the extremes, in terms of the machine's drift, exclude 1, else nothing."""
        return "faster" if self.high / drift < 1 else "slower" if self.low / drift > 1 else ""


def changes(new: ShapeResult, old: ShapeResult, name: str) -> dict[str, Change]:
    """By pass, of a competitor that both results have times of."""
    if name not in new.entries or name not in old.entries:
        return {}
    now, then = new.entries[name].times, old.entries[name].times
    return {part: Change.of(now[part], then[part]) for part in PASSES if part in now and part in then}


def check_comparable(old: Report, shapes: Iterable[Shape], dtypes: Iterable[str]) -> None:
    """BenchInputError unless the old report has at least one of the shapes in one of the dtypes."""
    if not {(result.shape, result.dtype) for result in old.results} & set(product(shapes, dtypes)):
        raise BenchInputError("the earlier report has none of these shapes in these dtypes, so there is no comparison")


def in_both(new: Report, old: Report) -> list[tuple[ShapeResult, ShapeResult]]:
    """The results of shapes and dtypes that both reports have."""
    before = {(result.shape, result.dtype): result for result in old.results}
    return [(result, before[key]) for result in new.results if (key := (result.shape, result.dtype)) in before]


def compare_reports(new: Report, old: Report) -> str:
    """A table of mhicl_fast's new times in terms of the old ones, at the shapes that both reports have.

    Beside them stands what became of the competitors' times (forward + backward, geometric mean): they are the same
    code, unless torch differs, so that is the machine's drift, and "faster" and "slower" are said in terms of it. Then
    come the shapes that one report alone has, and facts of the machine that differ. BenchInputError where no shape is
    in both.
    """
    pairs = in_both(new, old)
    if not pairs:
        raise BenchInputError("the two reports have no shape and dtype in common")
    rows = [("new time / old time", *PASSES, "competitors"), *(_row(result, then) for result, then in pairs)]
    facts = {fact: (old.machine.get(fact, NONE), value) for fact, value in new.machine.items() if fact != "date"}
    different = [f"{fact}: {then}, now {now}" for fact, (then, now) in facts.items() if then != now]
    return "\n".join([aligned(rows), *_alone("new", new, old), *_alone("earlier", old, new), *different])


def _alone(which: str, report: Report, other: Report) -> list[str]:
    """A line with the shapes that the other report does not have, or none."""
    partners = {(result.shape, result.dtype) for result in other.results}
    lonely = [f"{r.shape} {r.dtype}" for r in report.results if (r.shape, r.dtype) not in partners]
    return [f"in the {which} report alone: {'; '.join(lonely)}"] if lonely else []


def _row(new: ShapeResult, old: ShapeResult) -> tuple[str, ...]:
    ours, drift = changes(new, old, OURS), _drift(new, old)
    cells = []
    for part in PASSES:
        change = ours.get(part)
        cells.append(
            f"{change.verdict(drift or 1)} {change.ratio:.2f} ({change.low:.2f}–{change.high:.2f})".strip()
            if change
            else NONE
        )
    return (f"  {new.shape} {new.dtype}", *cells, number(drift, 3) if drift else NONE)


def _drift(new: ShapeResult, old: ShapeResult) -> float | None:
    """What became of the competitors' times; None where no competitor has both."""
    found = [changes(new, old, name).get("both") for name in new.entries if name != OURS]
    logs = [math.log(change.ratio) for change in found if change]
    return math.exp(sum(logs) / len(logs)) if logs else None
