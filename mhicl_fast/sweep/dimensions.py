"""What varies in a list of runs, and the runs that differ by their seed alone as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..train.config import RunConfig

SEED = "seed"
_FIRST = ("n_heads", "n_tasks", "context_length", "start_size", "noise_std")  # stands for what varies with it
_KEYS = (*_FIRST, *(f.name for f in fields(RunConfig) if f.name not in (*_FIRST, SEED)), SEED)


@dataclass(frozen=True)
class Dimension:
    """A key that varies, with those that vary together with it, one value for each of its values."""

    key: str
    tied: tuple[str, ...]


def varied_keys(configs: Sequence[RunConfig]) -> list[str]:
    """The keys that differ between the runs, in the order of a configuration."""
    return [f.name for f in fields(RunConfig) if len({getattr(config, f.name) for config in configs}) > 1]


def dimensions(configs: Sequence[RunConfig]) -> list[Dimension]:
    """The keys that vary independently of each other; the seed comes last, and stands for no other key."""
    varied = varied_keys(configs)
    found: dict[str, list[str]] = {}
    for key in (key for key in _KEYS if key in varied):
        leader = next((other for other in found if _one_to_one(configs, key, other)), None)
        if leader is None:
            found[key] = []
        else:
            found[leader].append(key)
    return [Dimension(key, tuple(tied)) for key, tied in found.items()]


def _one_to_one(configs: Sequence[RunConfig], one: str, other: str) -> bool:
    pairs = {(getattr(config, one), getattr(config, other)) for config in configs}
    return len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs})


@dataclass(frozen=True, eq=False)
class Group:
    """Finished runs that differ by their seed alone: `values` of the other keys that vary, a row of results each."""

    values: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    def known(self, column: str) -> list[float]:
        """The numbers in a column, of the runs that have one."""
        return [float(row[column]) for row in self.rows if row[column] is not None]

    def mean(self, column: str) -> tuple[float, float] | None:
        """Mean of a column and its standard error, None where no run has a number.

        The error is that of the mean over the seeds; for a single run that of its evaluation, nan where it has none.
        """
        numbers = self.known(column)
        if not numbers:
            return None
        if len(numbers) > 1:
            return float(np.mean(numbers)), float(np.std(numbers, ddof=1) / math.sqrt(len(numbers)))
        evaluated = column in ("eval_loss", "excess")
        return numbers[0], float(self.rows[0]["eval_loss_se"]) if evaluated else math.nan


def groups(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[Group]:
    """The finished runs among `rows`, gathered by the values of `keys`, in the order of the rows."""
    gathered: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "finished":
            gathered.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [Group(dict(zip(keys, values)), members) for values, members in gathered.items()]


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The power of x that y falls or grows with, by least squares in the logarithms; None for fewer than two points."""
    pairs = [(a, b) for a, b in zip(x, y) if a > 0 and b > 0]
    if len({a for a, _ in pairs}) < 2:
        return None
    logarithms = np.log(np.array(pairs))
    return float(np.polyfit(logarithms[:, 0], logarithms[:, 1], 1)[0])


def lines(found: Sequence[Group], x: str) -> Iterator[tuple[dict[str, Any], list[Group]]]:
    """The groups that differ in `x` alone, in its order, with what they have in common."""

    def rest(group: Group) -> dict[str, Any]:
        return {key: value for key, value in group.values.items() if key != x}

    places = ordered(group.values[x] for group in found)
    keyed: dict[tuple[Any, ...], list[Group]] = {}
    for group in found:
        keyed.setdefault(tuple(rest(group).values()), []).append(group)
    for members in keyed.values():
        yield rest(members[0]), sorted(members, key=lambda group: places.index(group.values[x]))


def ordered(values: Iterable[Any]) -> list[Any]:
    """Different values: numbers by size, others as they come."""
    different = list(dict.fromkeys(values))
    return sorted(different) if all(is_number(value) for value in different) else different


def is_number(value: Any) -> bool:
    """Whether a value can stand on an axis of numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
