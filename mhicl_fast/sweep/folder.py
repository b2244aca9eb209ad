"""The folder of a sweep: what it holds, and who may write to it.

sweep.json     the configurations of all runs, with versions
runs/0000 …    the folder of each run
table.csv      a row for each run
figures/       pictures, one for each axis
summary.json   means over the seeds, and what failed
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..train.config import RunConfig
from ..train.folder import (
    FolderError,
    LockedFolder,
    compare_versions,
    is_complete,
    lock_folder,
    make_locked,
    read_json,
    versions,
)
from ..train.settings import ConfigError
from .axes import MOST_RUNS

FORMAT = 1
_FILE = "sweep.json"


class SweepFolder(LockedFolder):
    """A sweep's folder."""

    def __init__(self, path: Path, configs: Sequence[RunConfig], lock: int) -> None:
        super().__init__(path, lock)
        self.configs = list(configs)

    @classmethod
    def create(cls, path: Path, configs: Sequence[RunConfig]) -> SweepFolder:
        """Make the folder of a new sweep.

        Raises FolderError where it holds anything already, ConfigError for a list of runs that is empty, too long, or
        holds a run twice; nothing is changed then.
        """
        configs = list(configs)
        _check_runs(configs)
        runs = [config.to_dict() for config in configs]
        content = {"format": FORMAT, "versions": versions(), "runs": runs}
        lock = make_locked(path, lambda: _refuse_occupied(path, configs), ("runs", "figures"), _FILE, content)
        return cls(path, configs, lock)

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """Open the folder of a sweep to go on with it; FolderError where there is none or another process has it."""
        configs, stored = read_sweep(path)
        lock = lock_folder(path)
        compare_versions(path, stored)
        for place in (path, path / "figures"):
            for unfinished in place.glob(".*.tmp"):  # of a process that was killed while writing
                unfinished.unlink()
        return cls(path, configs, lock)

    def unfinished(self) -> list[int]:
        """The numbers of the runs that are not complete."""
        return [number for number in range(len(self.configs)) if not has_finished(run_path(self.path, number))]


def definition(path: Path) -> Path:
    """The file that makes a folder a sweep's, written once."""
    return path / _FILE


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's."""
    return definition(path).exists()


def holds(path: Path, configs: Sequence[RunConfig]) -> bool:
    """Whether a folder is that of a sweep of these very runs; FolderError where it is a damaged one's."""
    return is_sweep(path) and read_sweep(path)[0] == list(configs)


def run_path(path: Path, number: int) -> Path:
    """The folder of a run of the sweep in `path`."""
    return path / "runs" / f"{number:04d}"


def has_finished(path: Path) -> bool:
    """Whether the run in a folder is complete. One whose files are damaged is not, and says so when it goes on."""
    try:
        return is_complete(path)
    except FolderError:
        return False


def read_sweep(path: Path) -> tuple[list[RunConfig], dict[str, str]]:
    """The configurations and the versions of the sweep in a folder; FolderError where there is none."""
    file = definition(path)
    content = read_json(file, ("format", "versions", "runs"))
    if content is None:
        raise FolderError(f"{path} is not a sweep's folder: it has no {_FILE}")
    if content["format"] != FORMAT:
        raise FolderError(f"{file} has format {content['format']}, this version reads {FORMAT}")
    try:
        return [RunConfig.from_dict(run) for run in content["runs"]], dict(content["versions"])
    except (ConfigError, TypeError, ValueError) as error:
        raise FolderError(f"{file}: {error}") from error


def _check_runs(configs: Sequence[RunConfig]) -> None:
    if not configs:
        raise ConfigError("a sweep needs at least one run, got none")
    if len(configs) > MOST_RUNS:
        raise ConfigError(f"a sweep has at most {MOST_RUNS} runs, got {len(configs)}")
    first: dict[RunConfig, int] = {}
    for number, config in enumerate(configs):
        if not isinstance(config, RunConfig):
            raise TypeError(f"runs must be RunConfigs, number {number} is of type {type(config).__name__}")
        config.resolved_device()  # one that cannot be had is an error before there is a folder
        if first.setdefault(config, number) != number:
            raise ConfigError(f"runs {first[config]} and {number} of the sweep are the same")


def _refuse_occupied(path: Path, configs: Sequence[RunConfig]) -> None:
    """FolderError unless the folder is empty, but for what a start killed before it stored its runs left."""
    if is_sweep(path):
        raise FolderError(
            f"{path} holds this very sweep already; go on with it: mhicl resume {path}"
            if holds(path, configs)
            else f"{path} holds another sweep; choose another folder"
        )
    leftovers = {f".{_FILE}.tmp", "runs", "figures"}
    found = sorted(entry.name for entry in path.iterdir())
    occupied = [name for name in found if name not in leftovers]
    occupied += [f"{name}/…" for name in ("runs", "figures") if name in found and any((path / name).iterdir())]
    if occupied:
        raise FolderError(
            f"{path} is not empty and not a sweep's folder (it has {', '.join(occupied[:3])}"
            f"{', …' if len(occupied) > 3 else ''}); choose another folder"
        )
