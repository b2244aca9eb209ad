"""What configurations are made of: flat, validated, JSON-able records of settings that can be typed as `key=value`."""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import torch

from ..devices import NAMED, DeviceError, best_device, named_device

FIRST_STUDY = "multi-task"  # that of configurations which name none
MAX_SEED = 2**62 - 1  # the bits above are left to the streams of prompts that do not train
_EVALUATION_STREAM = 1 << 62
DTYPES = {"float32": torch.float32, "float64": torch.float64}

Kind = TypeVar("Kind", bound="Settings")


class ConfigError(ValueError):
    """A configuration, or a `key=value` for one, that cannot be."""


def option(
    help: str,
    default: Any = MISSING,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    compare: bool = True,
) -> Any:
    """A field with its description and its valid range: low ≤ value ≤ high, above < value < below.

    compare: whether configurations that differ in it alone are different ones.
    """
    metadata = {"help": help, "choices": choices, "low": low, "above": above, "high": high, "below": below}
    return field(default=default, metadata=metadata, compare=compare)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration, whose fields are made by `option`. Raises ConfigError for a value out of range."""

    study: ClassVar[str]  # the name of what is configured, by which folders tell studies apart

    preset: str = option("the preset it came from", "custom")

    def __post_init__(self) -> None:
        for name, key in _keys(type(self)).items():
            object.__setattr__(self, name, _checked(key, getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """All values by key."""
        return {name: getattr(self, name) for name in _keys(type(self))}

    def to_json(self) -> str:
        """A JSON object, one key a line."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
        """The inverse of `to_dict`; ConfigError for unknown or missing keys and for bad values."""
        for key in values:
            _key(cls, key)
        missing = [option.name for option in fields(cls) if option.default is MISSING and option.name not in values]
        if missing:
            raise ConfigError(f"the configuration lacks {', '.join(missing)}")
        return cls(**values)

    def with_settings(self: Kind, settings: Iterable[str]) -> Kind:
        """This configuration with `key=value` texts applied; ConfigError with the nearest valid one for a bad one."""
        return replace(self, **dict(self.parse(setting) for setting in settings))

    @classmethod
    def parse(cls, setting: str) -> tuple[str, Any]:
        """(key, value) of a `key=value` text; ConfigError with the nearest valid one for a bad one."""
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"expected key=value, got {setting!r}")
        found = _key(cls, key)
        if key == "preset":
            raise ConfigError("preset names the preset that a run starts from and cannot be set")
        return key, _parsed(found, text)

    @classmethod
    def describe(cls) -> list[tuple[str, str]]:
        """(key, description) of every key that can be set."""
        described = []
        for option in fields(cls)[1:]:
            choices = option.metadata["choices"]
            described.append((option.name, option.metadata["help"] + (f" ({' | '.join(choices)})" if choices else "")))
        return described

    @classmethod
    def type_of(cls, key: str) -> type:
        """The declared type of a key, None apart; ConfigError for an unknown one."""
        return _key(cls, key).kind


class _Trains:
    """The keys that every run has, each with the description and the limits of its own configuration."""

    steps: int
    record_every: int
    checkpoint_every: int
    dtype: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings, _Trains):
    """The configuration of a run."""

    @property
    def evaluation_seed(self) -> int:
        """The seed of prompts that no step trains on."""
        return self.seed | _EVALUATION_STREAM

    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return DTYPES[self.dtype]


def check_device_name(name: str) -> None:
    """ConfigError for what no device is called."""
    if name != "auto" and not NAMED.fullmatch(name):
        raise ConfigError(f"device must be auto, cpu, cuda, or cuda with a number as cuda:1, got {name!r}")


def resolve_device(name: str, operator: str) -> torch.device:
    """The device that a name stands for, for steps that need an operator's kernels; "auto" is a GPU if there is one.

    ConfigError where it cannot be had.
    """
    if name == "auto":
        return best_device(operator)
    try:
        return named_device(name, operator)
    except DeviceError as error:
        raise ConfigError(f"{error}; or choose cpu") from error


def chosen(presets: Mapping[str, Kind], name: str) -> Kind:
    """The preset called `name`; ConfigError naming the nearest one where there is none."""
    if name not in presets:
        raise ConfigError(
            f"unknown preset {name!r}; the nearest one is {nearest(name, presets)!r} (there are {', '.join(presets)})"
        )
    return presets[name]


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The candidate most like `word`."""
    candidates = list(candidates)
    return max(
        candidates,
        key=lambda candidate: (
            candidate.startswith(word),
            difflib.SequenceMatcher(None, word.lower(), candidate.lower()).ratio(),
        ),
    )


@dataclass(frozen=True)
class _Key:
    """A key with its declared type and whether it can be None."""

    name: str
    kind: type
    optional: bool
    default: Any
    limits: Mapping[str, Any]

    @classmethod
    def of(cls, found: Field[Any], declared: Any) -> _Key:
        optional = isinstance(declared, types.UnionType)
        kind = next(t for t in typing.get_args(declared) if t is not types.NoneType) if optional else declared
        return cls(found.name, kind, optional, found.default, found.metadata)


_KEYS: dict[type[Any], dict[str, _Key]] = {}


def _keys(configuration: type[Any]) -> dict[str, _Key]:
    if configuration not in _KEYS:
        declared = typing.get_type_hints(configuration)
        _KEYS[configuration] = {found.name: _Key.of(found, declared[found.name]) for found in fields(configuration)}
    return _KEYS[configuration]


def _key(configuration: type[Settings], name: str) -> _Key:
    keys = _keys(configuration)
    if name not in keys:
        raise ConfigError(f"unknown key {name!r}; the nearest valid one is {nearest(name, list(keys)[1:])!r}")
    return keys[name]


def _parsed(key: _Key, text: str) -> Any:
    """The value that `text` stands for, by the key's declared type."""
    if key.optional and text.lower() == "none":
        return None
    if key.kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ConfigError(
                f"{key.name} must be true or false, got {text!r}; the nearest valid value is "
                f"{nearest(text, ('true', 'false'))}"
            )
        return words[text.lower()]
    if key.kind is str:
        return text
    try:
        return int(text) if key.kind is int else float(text)
    except ValueError:
        pass  # an integer may be written as 1e5; anything else is answered below
    try:
        number = float(text)
    except ValueError:
        what = "an integer" if key.kind is int else "a number"
        hint = f", such as {key.default}" if isinstance(key.default, (int, float)) else ""
        raise ConfigError(f"{key.name} must be {what}{hint}, got {text!r}") from None
    return _checked(key, number)


def _checked(key: _Key, value: Any) -> Any:
    """`value` in the key's type, or ConfigError."""
    kind = key.kind
    if value is None and key.optional:
        return None
    if kind is str and isinstance(value, str):
        choices = key.limits["choices"]
        if choices and value not in choices:
            raise ConfigError(
                f"{key.name} must be one of {', '.join(choices)}, got {value!r}; "
                f"the nearest valid value is {nearest(value, choices)}"
            )
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{key.name} must be finite, got {value}")
        if kind is int and value != int(value):
            raise ConfigError(f"{key.name} must be an integer, got {value}; the nearest valid value is {round(value)}")
        return _in_range(key, kind(value))
    raise ConfigError(f"{key.name} must be of type {kind.__name__}, got {value!r}")


def _in_range(key: _Key, value: Any) -> Any:
    """`value` if it lies in the key's range, or ConfigError with the bound that it misses."""
    low, above, high, below = (key.limits[name] for name in ("low", "above", "high", "below"))
    if low is not None and value < low:
        raise ConfigError(f"{key.name} must be at least {low}, got {value}; the nearest valid value is {low}")
    if high is not None and value > high:
        raise ConfigError(f"{key.name} must be at most {high}, got {value}; the nearest valid value is {high}")
    if above is not None and value <= above:
        raise ConfigError(f"{key.name} must be greater than {above}, got {value}")
    if below is not None and value >= below:
        raise ConfigError(f"{key.name} must be less than {below}, got {value}")
    return value
