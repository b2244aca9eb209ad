"""A study's folder back in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...train.folder import read_json
from ..analysis.assess import HeadImportance
from ..analysis.contents import LayerContents
from ..analysis.correspondence import Correspondence
from ..analysis.probe import Probes
from ..analysis.prune import Comparison
from ..analysis.record import Record
from .config import Study
from .experiments import Pruning
from .folder import read_study, risk_file, run_path
from .measurement import read_result
from .plan import CONTENTS, CORRESPONDENCE, IMPORTANCE, PROBES, PRUNING

R = TypeVar("R", bound=Record)


class StudyError(RuntimeError):
    """Runs or measurements of a study have failed."""


@dataclass(frozen=True, eq=False)
class LoadedStudy:
    """A study as its folder has it, finished or not. Results that are not there are left out.

    risk: by seed, of the models of that seed ("heads-H-seed-S") and of other estimators, relative to the model of the
    most heads. importance, pruning, probes, contents, correspondence: by the name of the run. summary: the content of
    summary.json, None until the study is finished.
    """

    path: Path
    study: Study
    risk: Mapping[int, Comparison]
    importance: Mapping[str, HeadImportance]
    pruning: Mapping[str, Pruning]
    probes: Mapping[str, Probes]
    contents: Mapping[str, LayerContents]
    correspondence: Mapping[str, Correspondence]
    summary: Mapping[str, Any] | None

    @property
    def failures(self) -> dict[str, str]:
        """Why runs and measurements failed, by name."""
        return {} if self.summary is None else dict(self.summary["failed"])

    def __repr__(self) -> str:
        return f"LoadedStudy({str(self.path)!r}, {'finished' if self.summary is not None else 'not finished'})"


def load_study(path: str | Path) -> LoadedStudy:
    """Read a study's folder, finished or not; FolderError where there is none or its files are damaged."""
    path = Path(path)
    study = read_study(path)
    names = list(study.runs())

    def of_runs(file: str, kind: type[R]) -> dict[str, R]:
        files = {name: run_path(path, name) / file for name in names}
        return {name: read_result(found, kind) for name, found in files.items() if found.exists()}

    risks = {seed: path / risk_file(seed) for seed in study.seeds}
    return LoadedStudy(
        path,
        study,
        {seed: read_result(file, Comparison) for seed, file in risks.items() if file.exists()},
        of_runs(IMPORTANCE, HeadImportance),
        of_runs(PRUNING, Pruning),
        of_runs(PROBES, Probes),
        of_runs(CONTENTS, LayerContents),
        of_runs(CORRESPONDENCE, Correspondence),
        read_json(path / "summary.json", ("claims", "risk", "failed")),
    )
