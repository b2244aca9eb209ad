"""Settings that hold several numbers, as text with commas between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ..train.settings import ConfigError, Settings, option


def numbers(help: str, default: str, *, whole: bool = True, low: float = 0) -> Any:
    """A field that holds one number or more, `whole` ones or any, of at least `low`."""
    made = option(f"{help}, separated by commas", default)
    return field(default=default, metadata={**made.metadata, "whole": whole, "least": low})


@dataclass(frozen=True, kw_only=True)
class NumberLists(Settings):
    """A configuration with such fields; raises ConfigError where one holds other things."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for entry in fields(self):
            if "least" in entry.metadata:
                self._check_numbers(entry.name, entry.metadata["whole"], entry.metadata["least"])

    def numbers(self, key: str) -> list[float]:
        """The numbers that a key holds; ConfigError where it holds other things."""
        try:
            return [float(text) for text in getattr(self, key).split(",")]
        except ValueError:
            raise ConfigError(f"{key} must be numbers separated by commas, got {getattr(self, key)!r}") from None

    def integers(self, key: str) -> list[int]:
        """The numbers that a key holds, as integers."""
        return [int(value) for value in self.numbers(key)]

    def _check_numbers(self, key: str, whole: bool, least: float) -> None:
        values = self.numbers(key)
        if not all(math.isfinite(value) and value >= least and (not whole or value == int(value)) for value in values):
            kind = "integers" if whole else "numbers"
            raise ConfigError(f"{key} must be {kind} of at least {least:g}, got {getattr(self, key)!r}")
