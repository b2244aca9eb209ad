"""The run folder: what it holds, who may write to it, and when a new run may start in it.

config.json        the full configuration with versions
metrics.csv        a row every `record_every` steps
checkpoints/       the last two states
trajectories.npz   the ODEs from the same start, where the study has any
figures/           pictures
summary.json       the results
timing.json        seconds spent so far; whether the run is complete; the machine
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import scipy
import torch

from .._version import __version__
from .settings import FIRST_STUDY, ConfigError, RunSettings
from .storage import reported, write_atomically

FORMAT = 1
_LOCK_EVERY = 0.05  # seconds between two attempts at a lock


class FolderError(RuntimeError):
    """A folder that cannot be used for what was asked."""


class LockedFolder:
    """A folder that is locked for this process while open. Use as a context manager."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Let others have the folder."""
        os.close(self._lock)

    def __enter__(self: Folder) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


Folder = TypeVar("Folder", bound=LockedFolder)
Config = TypeVar("Config", bound=RunSettings)


def make_locked(
    path: Path, refuse_occupied: Callable[[], None], parts: Iterable[str], file: str, content: Mapping[str, Any]
) -> int:
    """Make a new folder with empty `parts` and the file that says what it is; returns its lock.

    FolderError where it cannot be made or written to, or `refuse_occupied` raises one; nothing is changed then.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"cannot make the folder {path}: {error.strerror}") from error
    lock = lock_folder(path)
    try:
        refuse_occupied()
        if not os.access(path, os.W_OK | os.X_OK):
            raise FolderError(f"the folder {path} is not writable")
        with reported(path):
            for name in parts:
                (path / name).mkdir(exist_ok=True)
        write_json(path / file, content)
    except BaseException:
        os.close(lock)
        raise
    return lock


class RunFolder(LockedFolder, Generic[Config]):
    """A run's folder."""

    def __init__(self, path: Path, config: Config, lock: int) -> None:
        super().__init__(path, lock)
        self.config = config

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder[Config]:
        """Make the folder of a new run. FolderError where it holds anything already; nothing is changed then."""
        content = {"format": FORMAT, "study": config.study, "versions": versions(), "config": config.to_dict()}
        parts = ("checkpoints", "figures")
        lock = make_locked(path, lambda: _refuse_occupied(path, config), parts, "config.json", content)
        return cls(path, config, lock)

    @classmethod
    def open(cls, path: Path, kind: type[Config]) -> RunFolder[Config]:
        """Open the folder of a run of this kind to go on with it.

        FolderError where there is none, or another process has it.
        """
        config, stored = read_config(path, kind)
        lock = lock_folder(path)
        compare_versions(path, stored)
        for unfinished in path.rglob(".*.tmp"):  # of a process that was killed while writing
            unfinished.unlink()
        return cls(path, config, lock)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "mhicl_fast": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }


def compare_versions(path: Path, stored: Mapping[str, str]) -> None:
    """Warn where the work in a folder was started with other versions than the present ones."""
    changed = [
        f"{name} {stored.get(name)} then, {now} now" for name, now in versions().items() if stored.get(name) != now
    ]
    if changed:
        warnings.warn(
            f"{path} was started with other versions ({'; '.join(changed)}): the results may differ in "
            "rounding from those of an unbroken run",
            RuntimeWarning,
            stacklevel=3,
        )


def read_config(path: Path, kind: type[Config]) -> tuple[Config, dict[str, str]]:
    """The configuration and the versions of the run in a folder; FolderError where there is none of this kind."""
    content = _read_start(path)
    if content["study"] != kind.study:
        raise FolderError(f"{path} holds a run of another study, {_study(content['study'])}; not {_study(kind.study)}")
    file = path / "config.json"
    try:
        return kind.from_dict(content["config"]), dict(content["versions"])
    except ConfigError as error:
        raise FolderError(f"{file}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _no_configuration(file, error) from error


def read_study(path: Path) -> str:
    """The study of which a folder holds a run; FolderError where there is none."""
    return str(_read_start(path)["study"])


def _read_start(path: Path) -> dict[str, Any]:
    """What config.json holds. Those of runs from before there were several studies name none."""
    file = path / "config.json"
    try:
        content = {"study": FIRST_STUDY, **json.loads(file.read_text())}
        if content["format"] != FORMAT:
            raise FolderError(f"{file} has format {content['format']}, this version reads {FORMAT}")
        if not isinstance(content["study"], str):
            raise TypeError(f"a study has a name, got {content['study']!r}")
    except FileNotFoundError:
        raise FolderError(f"{path} is not a run folder: it has no config.json") from None
    except OSError as error:
        raise FolderError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _no_configuration(file, error) from error
    return content


def _study(name: str) -> str:
    """A study's name, with where to go with its runs if this version has it."""
    where = {FIRST_STUDY: "mhicl_fast.train, mhicl --help", "sparse": "mhicl_fast.sparse, mhicl sparse --help"}
    return f"{name} ({where[name]})" if name in where else name


def _no_configuration(file: Path, error: Exception) -> FolderError:
    return FolderError(f"{file} is not a run's configuration: {error!r}")


def holds(path: Path, config: RunSettings) -> bool:
    """Whether the run in a folder, if there is one, is that of a configuration."""
    return (path / "config.json").exists() and read_config(path, type(config))[0] == config


def is_complete(path: Path) -> bool:
    """Whether the run in a folder is finished, results and figures included. One that lost its results is not."""
    return bool((read_json(path / "timing.json") or {}).get("complete")) and (path / "summary.json").exists()


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    """The object in a JSON file of a run, None where there is no such file.

    Raises FolderError where it cannot be read, is no JSON object, or lacks one of the `needed` keys.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FolderError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise FolderError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FolderError(f"{path} is damaged: it must hold a JSON object, got {type(content).__name__}")
    missing = [key for key in needed if key not in content]
    if missing:
        several = f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        raise FolderError(f"{path} is damaged or of another version: it has no {several}")
    return content


def lock_folder(path: Path, patience: float = 0.0) -> int:
    """Lock the folder itself, until the descriptor is closed or the process ends, however it ends.

    Returns the descriptor; FolderError where another process has the folder, and still has it after `patience` seconds.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FolderError(f"cannot open the folder {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path, time.monotonic() + patience)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                raise FolderError(f"another process is running in {path}") from None
            time.sleep(_LOCK_EVERY)
        else:
            return


def _refuse_occupied(path: Path, config: RunSettings) -> None:
    """FolderError unless the folder is empty, but for what a start killed before it stored its configuration left."""
    if (path / "config.json").exists():
        present, _ = read_config(path, type(config))
        if present == config:
            raise FolderError(f"{path} holds this very run already; go on with it: mhicl resume {path}")
        old, new = present.to_dict(), config.to_dict()
        differences = ", ".join(f"{key} {old[key]} there, {new[key]} here" for key in old if old[key] != new[key])
        raise FolderError(f"{path} holds another run ({differences}); choose another folder")
    leftovers = {".config.json.tmp", "checkpoints", "figures"}
    found = sorted(entry.name for entry in path.iterdir())
    occupied = [name for name in found if name not in leftovers]
    occupied += [
        f"{name}/{entry.name}"
        for name in ("checkpoints", "figures")
        if name in found
        for entry in (path / name).iterdir()
    ]
    if occupied:
        raise FolderError(
            f"{path} is not empty and not a run folder (it has {', '.join(occupied[:3])}"
            f"{', …' if len(occupied) > 3 else ''}); choose another folder"
        )
