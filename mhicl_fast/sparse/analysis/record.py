"""Results as frozen dataclasses that JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, eq=False)
class Record:
    """Base of results: fields are numbers, text, arrays, other records, and tuples and dicts (by text) of these.

    In an array NaN stands for what is undefined; JSON has null there.
    """

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them, floats exactly."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any]) -> R:
        """What `to_dict` was called on. ValueError where the names are not those of the fields."""
        names = [field.name for field in fields(cls)]
        if set(values) != set(names):
            raise ValueError(f"{cls.__name__} has the fields {', '.join(names)}, got {', '.join(map(str, values))}")
        hints = get_type_hints(cls)
        return cls(**{name: _restored(values[name], hints[name]) for name in names})


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def _restored(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict(value)
    if origin is np.ndarray:
        return np.array(value, dtype=get_args(arguments[1])[0])  # None becomes NaN
    if origin is tuple:
        return tuple(_restored(item, arguments[0]) for item in value)
    if origin is dict:
        return {key: _restored(item, arguments[1]) for key, item in value.items()}
    return value
