"""metrics.csv: appended row by row while a run goes on, cut back to a checkpoint's length when it resumes."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .storage import reported, write_fully


class MetricsLog:
    """An open metrics.csv whose length and SHA-256 are known at any time."""

    def __init__(self, path: Path, columns: Sequence[str], length: int = 0) -> None:
        """Open or create the file and cut it to `length` bytes; at length 0 the header is written."""
        self._path = path
        self._columns = list(columns)
        with reported(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._descriptor, length)
        self._digest = hashlib.sha256(path.read_bytes())
        self.length = length
        if length == 0:
            self._write(",".join(self._columns))

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row. Numbers are written with all their digits."""
        self._write(",".join(repr(row[column]) for column in self._columns))

    def sync(self) -> None:
        """Make what was written durable."""
        with reported(self._path):
            os.fsync(self._descriptor)

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, line: str) -> None:
        data = (line + "\n").encode()
        with reported(self._path):
            write_fully(self._descriptor, data)
        self._digest.update(data)
        self.length += len(data)


def mismatch(path: Path, length: int, digest: str) -> str | None:
    """Why the first `length` bytes of a metrics file are not the ones with this SHA-256, or None if they are."""
    if length == 0:
        return None
    if not path.exists():
        return f"{path.name} is missing"
    with path.open("rb") as file:
        data = file.read(length)
    if len(data) < length:
        return f"{path.name} has {len(data)} bytes where {length} were recorded"
    if hashlib.sha256(data).hexdigest() != digest:
        return f"{path.name} was changed"
    return None


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The complete rows as float64 columns by name (counts int64); a row cut short is left out."""
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    header, *rows = csv.reader(lines)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    integers = ("step", "prompts_seen", "context_length")
    return {name: np.array(values, np.int64 if name in integers else np.float64) for name, values in columns.items()}
