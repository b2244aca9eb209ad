"""The file of a noise-free flow: the solver's state, the records so far, and which flow they belong to."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...spectral._inputs import Floats
from ...tasks import MultiTaskRegression
from ..checkpoints import CheckpointError
from ..parameters import Factored, Parameters
from ..storage import write_atomically
from .records import FlowRecords
from .solver import SolverState
from .velocity import Objective

_SAME_LOSS = 1e-9  # relative: what threads and instruction sets may change in the loss of one and the same function


class StoredFlow(NamedTuple):
    """How far a flow has come."""

    state: SolverState
    records: FlowRecords


def flow_identity(
    objective: Objective, parameters: Parameters, start: Floats, order: str, loss: float, rtol: float, atol: float,
    record_every: int,
) -> dict[str, Any]:  # fmt: skip
    """What makes two flows the same one, as JSON takes it; a function is known by its loss at the start."""
    task = objective if isinstance(objective, MultiTaskRegression) else None
    return {
        "task": None if task is None else task.to_dict(),
        "order": None if task is None else order,
        "parameters": type(parameters).__name__,
        "scale": parameters.logit_scale if isinstance(parameters, Factored) else None,
        "start": hashlib.sha256(start.tobytes()).hexdigest(),
        "rtol": rtol,
        "atol": atol,
        "record_every": record_every,
        "loss at the start": loss,
    }


class FlowFile:
    """The checkpoint of the flow that `identity` names."""

    def __init__(self, path: Path, identity: Mapping[str, Any], seconds: float) -> None:
        self._path, self._identity, self._seconds = path, identity, seconds
        self._saved_at = time.monotonic()
        self._saved_steps = -1

    def is_due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved_at >= self._seconds

    def save(self, flow: StoredFlow) -> None:
        """Replace the file, unless it holds this state already; StorageError leaves the old one."""
        state, records = flow
        if state.steps == self._saved_steps:
            return
        arrays: dict[str, Any] = {f"state.{field.name}": getattr(state, field.name) for field in fields(state)}
        buffer = io.BytesIO()
        identity = np.array(json.dumps(self._identity))
        arrays |= {f"records.{field.name}": np.array(getattr(records, field.name)) for field in fields(records)}
        np.savez(buffer, allow_pickle=False, identity=identity, **arrays)
        write_atomically(self._path, buffer.getvalue())
        self._saved_at, self._saved_steps = time.monotonic(), state.steps

    def load(self) -> StoredFlow | None:
        """What the file holds, None where there is none; CheckpointError where it is damaged or of another flow."""
        try:
            with np.load(self._path, allow_pickle=False) as file:
                arrays = dict(file)
            self._require_same(json.loads(str(arrays["identity"])))
            state = SolverState(**{field.name: _plain(arrays[f"state.{field.name}"]) for field in fields(SolverState)})
            kept = {field.name: arrays[f"records.{field.name}"] for field in fields(FlowRecords)}
            records = FlowRecords(
                kept["t"].tolist(), kept["loss"].tolist(), kept["start"], kept["moving"], list(kept["rows"])
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self._path} is not a usable checkpoint of a flow: {error}") from error
        self._saved_steps = state.steps
        return StoredFlow(state, records)

    def _require_same(self, other: Mapping[str, Any]) -> None:
        differing = []
        for key, mine in self._identity.items():
            theirs = other.get(key)
            if key == "loss at the start" and theirs is not None:
                same = abs(mine - theirs) <= _SAME_LOSS * abs(mine)
            else:
                same = mine == theirs
            if not same:
                differing.append(f"{key} is {theirs} there and {mine} here")
        if differing:
            raise CheckpointError(f"{self._path} is the checkpoint of another flow: {'; '.join(differing)}")


def _plain(array: np.ndarray) -> Any:
    """Numbers for arrays without dimensions."""
    return array if array.ndim else array.item()
