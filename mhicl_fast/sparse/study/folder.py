"""The folder of a study: what it holds, and who may write to it.

study.json                              what is trained and measured, with versions
runs/heads-H-seed-S                     the folder of each run, with importance.json; with several heads pruning.json;
                                        of the fewest and most heads probes.json, contents.json, correspondence.json
runs/heads-H-seed-S-pruned              the run that goes on after its pruning
risk-seed-S.json                        excess risk of all models of a seed and of other estimators, on the same prompts
summary.json                            what holds of the study's claims, and what failed
timing.json                             seconds that each stage took
"""

from __future__ import annotations

from pathlib import Path

from ...train.folder import (
    FolderError,
    LockedFolder,
    compare_versions,
    lock_folder,
    make_locked,
    read_json,
    versions,
)
from ...train.settings import ConfigError
from .config import Study

FORMAT = 1
_FILE = "study.json"


class StudyFolder(LockedFolder):
    """A study's folder."""

    def __init__(self, path: Path, study: Study, lock: int) -> None:
        super().__init__(path, lock)
        self.study = study

    @classmethod
    def create(cls, path: Path, study: Study) -> StudyFolder:
        """Make the folder of a new study. FolderError where it holds anything already; nothing is changed then."""
        content = {"format": FORMAT, "versions": versions(), **study.to_dict()}
        lock = make_locked(path, lambda: _refuse_occupied(path, study), ("runs",), _FILE, content)
        return cls(path, study, lock)

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        """Open the folder of a study to go on with it; FolderError where there is none or another process has it."""
        study, stored = _read(path)
        lock = lock_folder(path)
        compare_versions(path, stored)
        for unfinished in path.glob(".*.tmp"):  # of a process that was killed while writing
            unfinished.unlink()
        return cls(path, study, lock)


def is_study(path: Path) -> bool:
    """Whether a folder is a study's."""
    return (path / _FILE).exists()


def read_study(path: Path) -> Study:
    """The study in a folder; FolderError where there is none."""
    return _read(path)[0]


def run_path(path: Path, name: str) -> Path:
    """The folder of a run of the study in `path`."""
    return path / "runs" / name


def risk_file(seed: int) -> str:
    """The file with the risks of all models of a seed."""
    return f"risk-seed-{seed}.json"


def pruned_path(run: Path) -> Path:
    """The folder, beside that of a run, in which training goes on after its pruning."""
    return run.with_name(f"{run.name}-pruned")


def _read(path: Path) -> tuple[Study, dict[str, str]]:
    file = path / _FILE
    content = read_json(file, ("format", "versions", "config", "run"))
    if content is None:
        raise FolderError(f"{path} is not a study's folder: it has no {_FILE}")
    if content["format"] != FORMAT:
        raise FolderError(f"{file} has format {content['format']}, this version reads {FORMAT}")
    try:
        return Study.from_dict(content), dict(content["versions"])
    except (ConfigError, TypeError, ValueError) as error:
        raise FolderError(f"{file}: {error}") from error


def _refuse_occupied(path: Path, study: Study) -> None:
    """FolderError unless the folder is empty, but for what a start killed before it stored its plan left."""
    if is_study(path):
        raise FolderError(
            f"{path} holds this very study already; go on with it: mhicl resume {path}"
            if read_study(path) == study
            else f"{path} holds another study; choose another folder"
        )
    leftovers = {f".{_FILE}.tmp", "runs"}
    occupied = sorted(entry.name for entry in path.iterdir() if entry.name not in leftovers)
    occupied += [f"runs/{entry.name}" for entry in path.glob("runs/*")]
    if occupied:
        several = f"{', '.join(occupied[:3])}{', …' if len(occupied) > 3 else ''}"
        raise FolderError(f"{path} is not empty and not a study's folder (it has {several}); choose another folder")
