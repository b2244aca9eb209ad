"""Names and numbers as tables, figures and reports write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The states of `spectral.Theory` that a run is compared with, in the order in which they are listed.
STATES = {
    "one_head_per_task_first_order": "one head per task, first order",
    "one_head_per_task": "one head per task, leading order",
    "single_head_first_order": "single head, first order",
    "single_head": "single head",
    "best_shared_heads": "best shared heads",
    "best_multi_head": "best multi-head (infimum)",
    "bayes": "Bayes risk",
}


def align(rows: Iterable[Sequence[str]]) -> str:
    """Columns padded to their widest entry, two spaces apart; a row may have fewer entries than the others."""
    rows = list(rows)
    widths = [max(len(row[k]) for row in rows if len(row) > k) for k in range(max(map(len, rows)))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows)


def number(value: float, digits: int = 4) -> str:
    """So many significant digits, without a power of ten where the number is neither tiny nor huge. The sign is −."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value <= 0:
        return "0" if value == 0 else f"−{number(-value, digits)}"
    if value == round(value) and value < 1e7:
        return f"{value:.0f}"
    value = float(f"{value:.{digits - 1}e}")
    if 1e-4 <= value < 1e7:
        return f"{value:.{max(0, digits - 1 - math.floor(math.log10(value)))}f}"
    return f"{value:.{digits - 1}e}".replace("e-", "e−")


def signed(value: float) -> str:
    """A number with its sign and one decimal."""
    return f"{value:+.1f}".replace("-", "−")


def uncertain(value: float, error: float) -> str:
    """A value with its standard error, both to the error's second digit; of a tiny error the size."""
    if not (math.isfinite(error) and error > 0):
        return number(value)
    if error < 1e-4 * abs(value):
        return f"{number(value, 5)} ± {number(error, 1)}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}".replace("-", "−")


def several(values: Any, digits: int = 4, most: int = 8) -> str:
    """Numbers in a row: once where all are the same to these digits, the first `most` where there are more."""
    texts = [number(float(value), digits) for value in values]
    if len(texts) > 1 and len(set(texts)) == 1:
        return f"{texts[0]} each"
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")


def whole(n: int) -> str:
    """A count with its thousands apart."""
    return f"{n:,}".replace(",", "\u202f")


def capitalised(text: str) -> str:
    """The text with its first letter large and the others as they are."""
    return text[:1].upper() + text[1:]


def count(n: int, thing: str) -> str:
    """As in 1 head, 3 heads."""
    return f"{whole(n)} {thing}{'s' * (n != 1)}"


def missing_states(theory: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(state, reason) for each state that `theory`, a `Theory.to_dict()`, leaves out."""
    return [(label, _named(theory["notes"][name])) for name, label in STATES.items() if theory.get(name, 0) is None]


def shared_heads(allocation: Sequence[int]) -> dict[int, list[int]]:
    """The heads that took several tasks, with those tasks."""
    taken = {head: [task for task, one in enumerate(allocation) if one == head] for head in sorted(set(allocation))}
    return {head: tasks for head, tasks in taken.items() if head >= 0 and len(tasks) > 1}


def state_label(name: str, state: Mapping[str, Any]) -> str:
    """The name of a known state of a `Theory.to_dict()`; it says where the infimum is bounded only."""
    if name == "best_multi_head" and state["source"] == "numerical":
        return "best multi-head found (upper bound on the infimum)"
    return STATES[name]


def is_elsewhere(theory: Mapping[str, Any], name: str) -> bool:
    """Whether a state is missing only because it is another one that is listed, as there are heads enough or one."""
    return theory[name] is None and ": see " in theory["notes"][name]


def state_source(state: Mapping[str, Any]) -> str:
    """How a state of a `Theory.to_dict()` was found."""
    source = str(state.get("source", "closed form"))
    return source + (f", {count(state['draws'], 'context')}" if state.get("draws") else "")


def ratio_label(name: str) -> str:
    """What is divided by what in a ratio named "what_over_what"."""
    above, below = name.split("_over_")
    return f"{_short(above)} / {_short(below)}"


def remarks(theory: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, remark) for the notes of a `Theory.to_dict()` that explain no missing state."""
    notes = theory["notes"].items()
    ratios = [(ratio_label(name), _named(text)) for name, text in notes if name in theory["ratios"]]
    return ratios + [(STATES[name], _named(text)) for name, text in notes if theory.get(name) is not None]


def _named(text: str) -> str:
    """A note with the states called by their labels rather than by the names of fields."""
    for name in sorted(STATES, key=len, reverse=True):
        text = text.replace(name, STATES[name])
    return text


def _short(state: str) -> str:
    return STATES[state].partition(",")[0].partition(" (")[0]
