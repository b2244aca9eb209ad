"""Axes of a sweep: texts such as `n_heads=1,2,4`, and the configurations of their cartesian product.

n_heads=1,2,4               the values, separated by commas
seed=0:5                    for integers first:end or first:end:step, without the end: 0, 1, 2, 3, 4
support=all;blocks          support, signal and covariance, which may hold commas themselves, are separated by ;
n_tasks/dim_x=1/10,2/20     keys that vary together, not each with each
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..train.config import RunConfig
from ..train.settings import ConfigError

MOST_RUNS = 10_000  # their folders have numbers of four digits

_TEXTS = [option for option in fields(RunConfig) if RunConfig.type_of(option.name) is str]
_FREE_TEXT = {option.name for option in _TEXTS if not option.metadata["choices"]} - {"preset"}


@dataclass(frozen=True)
class Axis:
    """Keys that vary together, and the values that they take: one for each key."""

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


def parse_axis(text: str) -> Axis:
    """The axis that `text` stands for; ConfigError with the nearest valid key or value for a bad one."""
    names, separator, values = text.partition("=")
    if not separator:
        raise ConfigError(f"an axis must be key=value,value,…, got {text!r}")
    keys = tuple(names.split("/"))
    free_text = [key for key in keys if key in _FREE_TEXT]
    if free_text and len(keys) > 1:
        raise ConfigError(f"{free_text[0]} cannot vary together with other keys, got {text!r}")
    entries = values.split(";" if free_text else ",")
    found = list(itertools.chain.from_iterable(_values(keys, entry) for entry in entries))
    seen: set[tuple[Any, ...]] = set()
    for value in found:
        if value in seen:
            raise ConfigError(f"{names} has the value {'/'.join(map(str, value))} twice, got {text!r}")
        seen.add(value)
    return Axis(keys, tuple(found))


def expand(base: RunConfig, vary: Iterable[str], settings: Iterable[str] = ()) -> list[RunConfig]:
    """`base` with the `key=value` settings, once for each combination of the axes' values; the last axis turns fastest.

    Raises ConfigError for a bad axis or setting, and for a combination that cannot run, which it names.
    """
    axes = [parse_axis(text) for text in vary]
    common = dict(RunConfig.parse(setting) for setting in settings)
    keys = [key for axis in axes for key in axis.keys]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key} is varied twice")
        if key in common:
            raise ConfigError(f"{key} is both set and varied")
    if "device" in keys:
        raise ConfigError("device is where the runs of a sweep train, not what they are: set it, as --set device=cpu")
    if "gradient_error" in keys or common.get("gradient_error") is not None:
        raise ConfigError("only `mhicl run` chooses n_prompts by gradient_error; in a sweep set or vary n_prompts")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_RUNS:
        raise ConfigError(f"a sweep has at most {MOST_RUNS} runs, these axes have {count} combinations")
    return [_configuration(base, common, axes, values) for values in itertools.product(*(a.values for a in axes))]


def _configuration(
    base: RunConfig, common: dict[str, Any], axes: Sequence[Axis], values: Sequence[tuple[Any, ...]]
) -> RunConfig:
    changes = {key: value for axis, entry in zip(axes, values) for key, value in zip(axis.keys, entry)}
    try:
        return replace(base, **common, **changes)
    except ConfigError as error:
        which = ", ".join(f"{key}={value}" for key, value in changes.items())
        commas = [key for key, value in changes.items() if key in _FREE_TEXT and "," in value]
        hint = f" (several values of {commas[0]} are separated by ;)" if commas else ""
        raise ConfigError(f"the run with {which}: {error}{hint}") from error


def _values(keys: Sequence[str], entry: str) -> Iterator[tuple[Any, ...]]:
    """What an entry between separators stands for: one value for each key, or a range."""
    if len(keys) == 1 and RunConfig.type_of(keys[0]) is int and ":" in entry:
        yield from ((RunConfig.parse(f"{keys[0]}={number}")[1],) for number in _range(keys[0], entry))
        return
    texts = entry.split("/") if len(keys) > 1 else [entry]
    if len(texts) != len(keys):
        raise ConfigError(f"{'/'.join(keys)} needs {len(keys)} values joined by /, got {entry!r}")
    yield tuple(RunConfig.parse(f"{key}={text}")[1] for key, text in zip(keys, texts))


def _range(key: str, text: str) -> range:
    pieces = text.split(":")
    if not all(piece.isdecimal() for piece in pieces) or len(pieces) > 3:
        raise ConfigError(f"a range of {key} must be first:end or first:end:step, such as 0:5, got {text!r}")
    first, end, step = (*map(int, pieces), 1)[:3]
    if not (first < end and step > 0):
        raise ConfigError(f"a range of {key} must have first < end and a positive step, got {text!r}")
    numbers = range(first, end, step)
    if len(numbers) > MOST_RUNS:
        raise ConfigError(f"a sweep has at most {MOST_RUNS} runs, {text} are {len(numbers)} values of {key}")
    return numbers
