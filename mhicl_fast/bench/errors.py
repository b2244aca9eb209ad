"""What can be wrong with a benchmark."""

from __future__ import annotations


class BenchInputError(ValueError):
    """A shape, a name or a file that the benchmark cannot use; the message says what was expected and what came."""


class BenchFailedError(RuntimeError):
    """The measurement was done, and mhicl_fast failed in it: a wrong result, or none."""
