"""One self-contained HTML page about a finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..train.folder import FolderError
from ..train.loaded import load_run
from ..train.storage import write_atomically
from . import content
from .analysis import analyse_run
from .differences import differences
from .findings import Findings
from .heads import decomposition, examples, roles, values, weights
from .optimality import lengths, optimality
from .overview import key_numbers, sentence, trained
from .page import render
from .provenance import configuration, reproduction
from .story import phases, winners

_SECTIONS: tuple[Callable[[Findings], content.Section], ...] = (
    key_numbers,
    trained,
    phases,
    winners,
    values,
    decomposition,
    roles,
    examples,
    optimality,
    lengths,
    differences,
    weights,
    configuration,
    reproduction,
)


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a finished run and return its path.

    The page holds all its figures and styles and needs neither a network nor JavaScript. The same run on the same
    machine gives the same bytes. The weights are measured anew: some seconds. Raises FolderError where there is no run
    or it is not finished, StorageError where the file cannot be written.
    """
    run = load_run(folder)
    if run.summary is None:
        raise FolderError(f"the run in {run.path} is not finished; go on with it: mhicl resume {run.path}")
    found = Findings(run, run.summary, analyse_run(run))
    title = f"{found.config.preset}, seed {found.config.seed}"
    page = render(title, "Report of a training run", sentence(found), [section(found) for section in _SECTIONS])
    path = run.path / "report.html"
    write_atomically(path, page.encode())
    return path
