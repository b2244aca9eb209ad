"""A measurement of models: what it is of, and the file that holds its result.

A file is a JSON object with the experiment, the folders of the models and the options that it was made with, the
configurations of the models' runs, and the result. Of the same, a measurement is made once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from ...train.folder import FolderError, is_complete, read_config, read_json, write_json
from ..analysis.record import Record
from ..config import SparseConfig
from ..loaded import SparseRun, load_run
from . import experiments

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Measurement:
    """An experiment on models.

    experiment: one of EXPERIMENTS. file: its name, in the folder that the measurement is of. models: run folders by the
    name of the model, relative to that folder. options: of the experiment, as JSON can hold them.
    """

    study: ClassVar[str] = "sparse-measurement"

    experiment: str
    file: str
    models: Mapping[str, str]
    options: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "experiment": self.experiment,
            "file": self.file,
            "models": dict(self.models),
            "options": dict(self.options),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_dict`."""
        return cls(**values)

    def is_done(self, path: Path) -> bool:
        """Whether the folder has the result of this very measurement."""
        try:
            content = read_json(path / self.file)
            return content is not None and "result" in content and {**content, "result": None} == self._content(path)
        except FolderError:
            return False

    def perform(self, path: Path) -> None:
        """Measure, and write the file into a folder, unless it is there already.

        Raises FolderError where a model's run is not finished, ValueError for options that do not fit the models.
        """
        if self.is_done(path):
            return
        runs = {name: finished_run(_run(path, folder)) for name, folder in self.models.items()}
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # the results of some operators depend on it
        try:
            result = experiments.EXPERIMENTS[self.experiment].measure(runs, dict(self.options))
        finally:
            torch.set_num_threads(before)
        write_json(path / self.file, {**self._content(path), "result": result.to_dict()})

    def result(self, path: Path, kind: type[R]) -> R:
        """`perform`, and what that has found."""
        self.perform(path)
        return read_result(path / self.file, kind)

    def _content(self, path: Path) -> dict[str, Any]:
        """All of the file but the result; FolderError where a run is not there."""
        configs = {name: read_config(_run(path, folder), SparseConfig)[0] for name, folder in self.models.items()}
        return {
            **self.to_dict(),
            "configs": {name: config.to_dict() for name, config in configs.items()},
            "result": None,
        }


def _run(path: Path, folder: str) -> Path:
    """The folder of a run, from that of the measurement."""
    return Path(os.path.normpath(path / folder))


def read_result(file: Path, kind: type[R]) -> R:
    """The result in a measurement's file; FolderError where there is none of this kind or it is damaged."""
    content = read_json(file, ("experiment", "result"))
    if content is None:
        raise FolderError(f"{file} is missing")
    try:
        if experiments.EXPERIMENTS[content["experiment"]].kind is not kind:
            raise ValueError(f"its experiment is {content['experiment']}")
        return kind.from_dict(content["result"])
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(f"{file} is damaged or of another version: {error}") from error


def finished_run(path: Path) -> SparseRun:
    """The run in a folder; FolderError where it is not finished."""
    run = load_run(path)
    if not is_complete(path):
        raise FolderError(f"the run in {path} is not finished; go on with it: mhicl resume {path}")
    return run
