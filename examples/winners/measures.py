"""How well predictions of winners and times do: confusion, accuracy, time errors, misses, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from winners import Race

MARGINS = (0, 0.02, 0.05, 0.1, 0.2, np.inf)

Cell = Callable[[Sequence["Race"]], str]


def confusion(races: Sequence[Race], observed: str) -> np.ndarray:
    """Counts (H, H + 1) of predicted against observed head, the last column for none; `observed` names a field."""
    n_heads = 1 + max(head or 0 for race in races for head in (race.integrated_head, race.ode_head, race.trained_head))
    counts = np.zeros((n_heads, n_heads + 1), dtype=int)
    for race in races:
        if getattr(race, observed) is not None:
            counts[race.integrated_head, getattr(race, observed)] += 1
    return counts


def accuracy(races: Sequence[Race], predicted: str, observed: str) -> float:
    """Share of races in which two fields agree, of those where the second is known."""
    known = [race for race in races if getattr(race, observed) is not None]
    return float(np.mean([getattr(race, predicted) == getattr(race, observed) for race in known])) if known else np.nan


def time_ratios(races: Sequence[Race], predicted: str, observed: str) -> np.ndarray:
    """Observed over predicted time where both are finite, whoever won."""
    known = [(getattr(r, predicted), getattr(r, observed)) for r in races if getattr(r, observed) is not None]
    pairs = np.array(known, dtype=float).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    return pairs[:, 1] / pairs[:, 0]


def by_margin(races: Sequence[Race], observed: str) -> list[tuple[int, int]]:
    """(right, all) of the integrated form's predictions in each of the MARGINS."""
    counts = []
    for low, high in pairwise(MARGINS):
        inside = [r for r in races if low <= r.margin < high and getattr(r, observed) is not None]
        counts.append((sum(r.integrated_head == getattr(r, observed) for r in inside), len(inside)))
    return counts


def percent(predicted: str, observed: str) -> Cell:
    return lambda races: "–" if np.isnan(x := accuracy(races, predicted, observed)) else f"{100 * x:.1f} %"


def errors(predicted: str, observed: str) -> Cell:
    """Median, quartiles and worst of observed / predicted − 1."""

    def cell(races: Sequence[Race]) -> str:
        off = 100 * (time_ratios(races, predicted, observed) - 1)
        if not off.size:
            return "–"
        low, median, high = np.quantile(off, [0.25, 0.5, 0.75])
        return f"{median:+.1f} ({low:+.1f} to {high:+.1f}; worst {off[np.abs(off).argmax()]:+.1f})"

    return cell


def misses(observed: str) -> Cell:
    """How many predictions are wrong, how many of these name a head that was busy, and the widest margin among them."""

    def cell(races: Sequence[Race]) -> str:
        known = [r for r in races if getattr(r, observed) is not None]
        wrong = [r for r in known if r.integrated_head != getattr(r, observed)]
        widest = max((r.margin for r in wrong), default=0.0)
        return f"{len(wrong)} of {len(known)}: {sum(r.busy for r in wrong)} busy, margins ≤ {100 * widest:.1f} %"

    return cell


def shared_heads(races: Sequence[Race]) -> str:
    """In how many starts some head has several tasks, when they are learnt and at the end of the ODE."""
    counts = []
    for field in ("ode_head", "owner"):
        heads = [[getattr(r, field) for r in races if r.start == start] for start in sorted({r.start for r in races})]
        counts.append(sum(len(set(found)) < len(found) for found in heads))
    return f"{counts[0]} → {counts[1]}"


def delay(busy: bool) -> Cell:
    """Median relative delay of the ODE where the predicted head won, having learnt a task before or not."""

    def cell(races: Sequence[Race]) -> str:
        right = [r for r in races if r.integrated_head == r.ode_head and r.busy == busy]
        if not right:
            return "–"
        return f"{100 * np.median(time_ratios(right, 'integrated_time', 'ode_time') - 1):+.1f} % of {len(right)}"

    return cell


TABLES: dict[str, dict[str, Cell]] = {
    "Heads as predicted": {
        "starts": lambda races: str(len({r.start for r in races})),
        "ODE, short formula": percent("short_head", "ode_head"),
        "ODE, integrated form": percent("integrated_head", "ode_head"),
        "trained starts": lambda races: str(len({r.start for r in races if r.trained_head is not None})),
        "trained, short formula": percent("short_head", "trained_head"),
        "trained, integrated form": percent("integrated_head", "trained_head"),
        "trained, as in the ODE": percent("ode_head", "trained_head"),
    },
    "Times, observed later than predicted in %: median (quartiles; worst)": {
        "ODE, short formula": errors("short_time", "ode_time"),
        "ODE, integrated form": errors("integrated_time", "ode_time"),
        "trained, short formula": errors("short_time", "trained_time"),
        "trained, integrated form": errors("integrated_time", "trained_time"),
        "trained, the ODE": errors("ode_time", "trained_time"),
    },
    "Misses of the integrated form, delays in the ODE, and what becomes of the heads": {
        "misses, ODE": misses("ode_head"),
        "misses, training": misses("trained_head"),
        "time off, winner free": delay(False),
        "time off, winner busy": delay(True),
        "starts with a shared head, learnt → end": shared_heads,
        "winner keeps the task": percent("ode_head", "owner"),
    },
}

FAVOURED: dict[str, Cell] = {
    "starts": TABLES["Heads as predicted"]["starts"],
    "ODE, integrated form": percent("integrated_head", "ode_head"),
    "time off, %": errors("integrated_time", "ode_time"),
    "winner keeps the task": percent("ode_head", "owner"),
}


def markdown(title: str, columns: dict[str, Cell], by_size: dict[str, list[Race]]) -> str:
    """One of the TABLES as Markdown, a row for each size."""
    lines = [["size", *columns], ["---"] * (len(columns) + 1)]
    lines += [[size, *(cell(races) for cell in columns.values())] for size, races in by_size.items()]
    return f"{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def confusion_markdown(size: str, ode: np.ndarray, training: np.ndarray) -> str:
    """The confusion of a size as Markdown: predicted head in rows, observed in columns, "ODE / training"."""
    heads = len(ode)
    lines = [[f"{size}: predicted", *(f"observed {head}" for head in range(heads)), "none"], ["---"] * (heads + 2)]
    for head in range(heads):
        lines.append([f"head {head}", *(f"{a} / {b}" for a, b in zip(ode[head], training[head]))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def margin_labels() -> list[str]:
    """The MARGINS' names."""
    return [
        f"{100 * low:g}–{100 * high:g} %" if np.isfinite(high) else f"> {100 * low:g} %"
        for low, high in pairwise(MARGINS)
    ]
