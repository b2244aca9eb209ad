"""Checkpoints: the whole state of a run in one checked file, written atomically, the last two kept.

A file is a line with the payload's length and SHA-256, then the payload, an uncompressed `.npz`. It has no times, no
paths and no devices in it, so equal states make equal files, which load anywhere.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .storage import reported, sync_directory, write_atomically

KEPT = 2
_MAGIC = b"mhicl-checkpoint-1"


class CheckpointError(RuntimeError):
    """No checkpoint of a run can be used."""


@dataclass(frozen=True)
class Checkpoint:
    """A run's state just before step `step`.

    The rows of metrics for earlier steps are the first `metrics_bytes` bytes of metrics.csv; their SHA-256 is
    `metrics_digest`.
    """

    step: int
    flow_time: float
    step_size: float
    metrics_bytes: int
    metrics_digest: str
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]

    def to_bytes(self) -> bytes:
        """The content of a checkpoint's file."""
        arrays: dict[str, np.ndarray] = {
            "step": np.array(self.step),
            "flow_time": np.array(self.flow_time),
            "step_size": np.array(self.step_size),
            "metrics_bytes": np.array(self.metrics_bytes),
            "metrics_digest": np.array(self.metrics_digest),
        }
        for group, tensors in (("parameters", self.parameters), ("optimizer", self.optimizer)):
            arrays |= {f"{group}.{name}": tensor.cpu().numpy() for name, tensor in tensors.items()}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        payload = buffer.getvalue()
        digest = hashlib.sha256(payload).hexdigest().encode()
        return b"%s %d %s\n" % (_MAGIC, len(payload), digest) + payload

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """The inverse of `to_bytes`; CheckpointError for anything else."""
        header, separator, payload = data.partition(b"\n")
        words = header.split(b" ")
        if not separator or len(words) != 3 or words[0] != _MAGIC:
            raise CheckpointError("not a checkpoint, or its first line is damaged")
        if words[1] != b"%d" % len(payload):
            raise CheckpointError(f"{words[1].decode(errors='replace')} bytes expected, {len(payload)} found")
        if words[2] != hashlib.sha256(payload).hexdigest().encode():
            raise CheckpointError("its checksum does not match")
        try:
            with np.load(io.BytesIO(payload), allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"unreadable payload ({error})") from error
        groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "optimizer": {}}
        for key in [key for key in arrays if "." in key]:
            group, _, name = key.partition(".")
            groups[group][name] = torch.from_numpy(arrays.pop(key))
        return cls(
            step=int(arrays["step"]),
            flow_time=float(arrays["flow_time"]),
            step_size=float(arrays["step_size"]),
            metrics_bytes=int(arrays["metrics_bytes"]),
            metrics_digest=str(arrays["metrics_digest"]),
            **groups,
        )


class CheckpointStore:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, path: Path, every: int, last_step: int) -> None:
        self.path = path
        self._every = every
        self._last_step = last_step

    def save(self, checkpoint: Checkpoint) -> None:
        """Store durably, then drop what is no longer kept; StorageError leaves the earlier ones."""
        write_atomically(self._file(checkpoint.step), checkpoint.to_bytes())
        self.prune(checkpoint.step)

    def load_latest(self, accept: Callable[[Checkpoint], str | None]) -> Checkpoint | None:
        """The newest usable checkpoint, None where none was ever stored.

        `accept` gives the reason why an intact one cannot be used, or None. One that is passed over is named in a
        warning; CheckpointError where none is left.
        """
        reasons: list[str] = []
        for step in sorted(self.steps(), reverse=True):
            file = self._file(step)
            try:
                checkpoint = Checkpoint.from_bytes(file.read_bytes())
                reason = accept(checkpoint)
            except (CheckpointError, FileNotFoundError) as error:  # a running process may just have dropped it
                reason = str(error)
            if reason is None:
                for passed_over in reasons:
                    warnings.warn(f"{passed_over}; going on from {file.name}", RuntimeWarning, stacklevel=2)
                return checkpoint
            reasons.append(f"{file} cannot be used: {reason}")
        if reasons:
            raise CheckpointError("no usable checkpoint is left: " + "; ".join(reasons))
        return None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, unsorted."""
        if not self.path.is_dir():
            return []
        names = (re.fullmatch(r"step_(\d+)\.ckpt", entry.name) for entry in self.path.iterdir())
        return [int(match[1]) for match in names if match]

    def _file(self, step: int) -> Path:
        return self.path / f"step_{step:09d}.ckpt"

    def prune(self, newest: int) -> None:
        """Keep the last KEPT of the regular ones up to `newest`, and an irregular one, of an interruption, if newest.

        So an interrupted run ends with the same files as an unbroken one.
        """

        def regular(step: int) -> bool:
            return step % self._every == 0 or step == self._last_step

        kept = sorted(step for step in self.steps() if regular(step) and step <= newest)[-KEPT:]
        with reported(self.path):
            for step in self.steps():
                if step not in kept and step != newest:
                    self._file(step).unlink()
            sync_directory(self.path)
