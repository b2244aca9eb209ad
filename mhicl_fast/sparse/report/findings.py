"""What a folder has of the study: what every section of its page draws from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...train.folder import FolderError, read_json
from ..analysis.assess import HeadImportance
from ..analysis.contents import LayerContents
from ..analysis.correspondence import Correspondence
from ..analysis.probe import Probes
from ..analysis.prune import Comparison
from ..analysis.record import Record
from ..config import SparseConfig
from ..figures.panels import Models, listed
from ..loaded import SparseRun, load_run
from ..study.config import Study
from ..study.experiments import Pruning
from ..study.folder import run_path
from ..study.measurement import read_result
from ..study.plan import CONTENTS, CORRESPONDENCE, IMPORTANCE, PROBES, PRUNING
from ..study.results import load_study

T = TypeVar("T")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, eq=False)
class Findings:
    """The runs of a study, or a single one, and what was measured of them; what is not there is left out.

    runs, importance, pruning, probes, contents, correspondence: by number of heads, by seed. risk: by seed. summary:
    what summary.json of a finished study holds. comparison: the results of `mhicl sparse algorithm`.
    """

    path: Path
    runs: Models[SparseRun]
    importance: Models[HeadImportance]
    pruning: Models[Pruning]
    probes: Models[Probes]
    contents: Models[LayerContents]
    correspondence: Models[Correspondence]
    risk: Mapping[int, Comparison]
    study: Study | None = None
    summary: Mapping[str, Any] | None = None
    comparison: Mapping[str, Any] | None = None

    @property
    def config(self) -> SparseConfig:
        """The settings, which all runs share but for the number of heads and the seed."""
        return listed(self.runs)[0].config

    @property
    def setting(self) -> str:
        """What all models share, as subtitles of figures have it."""
        c = self.config
        return f"d = {c.dim_x}, s = {c.sparsity}, {c.n_layers} layers of width {c.width}, {c.activation} attention"


def findings_of_study(path: Path) -> Findings:
    """Those of a study's folder, finished or not; FolderError where no run of it has begun."""
    loaded = load_study(path)
    configs = loaded.study.runs()

    def keyed(found: Mapping[str, T]) -> dict[int, dict[int, T]]:
        heads: dict[int, dict[int, T]] = {}
        for name, each in sorted(found.items(), key=lambda item: (configs[item[0]].n_heads, configs[item[0]].seed)):
            heads.setdefault(configs[name].n_heads, {})[configs[name].seed] = each
        return heads

    runs = {name: load_run(folder) for name in configs if (folder := run_path(path, name)).exists()}
    if not runs:
        raise FolderError(f"no run of the study in {path} has begun; go on with it: mhicl resume {path}")
    return Findings(
        path,
        keyed(runs),
        keyed(loaded.importance),
        keyed(loaded.pruning),
        keyed(loaded.probes),
        keyed(loaded.contents),
        keyed(loaded.correspondence),
        loaded.risk,
        loaded.study,
        loaded.summary,
        read_json(path / "algorithm" / "results.json"),
    )


def findings_of_run(path: Path) -> Findings:
    """Those of a run's folder, finished or not."""
    run = load_run(path)

    def found(file: str, kind: type[R]) -> dict[int, dict[int, R]]:
        if not (path / file).exists():
            return {}
        return {run.config.n_heads: {run.config.seed: read_result(path / file, kind)}}

    return Findings(
        path,
        {run.config.n_heads: {run.config.seed: run}},
        found(IMPORTANCE, HeadImportance),
        found(PRUNING, Pruning),
        found(PROBES, Probes),
        found(CONTENTS, LayerContents),
        found(CORRESPONDENCE, Correspondence),
        {},
    )
