"""One self-contained HTML page about a study, a run of it, or the comparison of the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from ...plots import save_png
from ...report.content import Section
from ...report.page import render
from ...train.folder import FolderError, read_json, read_study
from ...train.storage import write_atomically
from ...train.wording import count
from ..comparison.config import ComparisonConfig
from ..config import SparseConfig
from ..figures.correspondence import contents_figure, steps_figure
from ..figures.importance import dominance_figure, importance_figure
from ..figures.panels import listed
from ..figures.probing import probing_figure
from ..figures.pruning import pruning_figure
from ..figures.risk import risk_figure
from ..figures.training import training_figure, trainings_figure
from ..study.folder import is_study
from .algorithm import algorithm, comparison_section
from .claims import claims, headline
from .correspondence import correspondence
from .findings import Findings, findings_of_run, findings_of_study
from .heads import importance, pruning
from .probes import probes
from .provenance import comparison_sections, configuration, reproduction
from .risks import risk_curves, risks
from .setup import setup

_COMPARISON = "comparison.json"
_SECTIONS: tuple[Callable[[Findings], Section | None], ...] = (
    setup,
    risks,
    importance,
    pruning,
    probes,
    correspondence,
    algorithm,
    claims,
    configuration,
    reproduction,
)


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.png` into the folder of a study, a run of it or a comparison of the algorithm.

    Returns the page's path. A study or a run need not be finished: the page has what is there. It holds all its figures
    and styles and needs neither a network nor JavaScript. The same results give the same bytes. Raises FolderError for
    another folder or one whose files are damaged, StorageError where a file cannot be written.
    """
    folder = Path(folder)
    if (folder / _COMPARISON).exists():
        page = _page_of_comparison(folder)
    else:
        found = findings_of_study(folder) if is_study(folder) else findings_of_run(folder)
        page = _page(found)
        save_figures(found)
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def is_reported(folder: Path) -> bool:
    """Whether a folder is one of which `write_report` makes a page."""
    if is_study(folder) or (folder / _COMPARISON).exists():
        return True
    return (folder / "config.json").exists() and read_study(folder) == SparseConfig.study


def save_figures(found: Findings) -> list[Path]:
    """Draw every figure for which there are results into the folder's `figures` as PNG and return the files' paths."""
    return [save_png(figure, found.path / "figures" / f"{name}.png") for name, figure in _figures(found)]


def _figures(found: Findings) -> Iterator[tuple[str, Figure]]:
    runs, setting = listed(found.runs), found.setting
    yield "training", training_figure(runs[0], setting) if len(runs) == 1 else trainings_figure(found.runs, setting)
    curves = risk_curves(found)
    if curves is not None:
        yield "risk", risk_figure(curves, setting)
    if found.importance:
        yield "importance", importance_figure(found.importance, setting)
    if max(found.importance, default=1) > 1:
        yield "dominance", dominance_figure(found.importance, setting)
    if found.pruning:
        yield "pruning", pruning_figure(found.pruning, setting)
    if found.probes:
        yield "probing", probing_figure(found.probes, setting)
    if found.contents:
        yield "contents", contents_figure(found.contents, setting)
    if found.correspondence:
        yield "steps", steps_figure(found.correspondence, setting)


def _page(found: Findings) -> str:
    sections = [made for make in _SECTIONS if (made := make(found)) is not None]
    if found.study is not None:
        title = f"Sparse linear regression, study {found.study.config.preset}"
        kind = f"Report of a study of {count(len(listed(found.runs)), 'model')}"
    else:
        title, kind = f"{found.config.preset}, seed {found.config.seed}", "Report of a training run"
    return render(title, kind, headline(found), sections)


def _page_of_comparison(folder: Path) -> str:
    results = read_json(folder / "results.json", ("config", "table", "curves", "map", "theory"))
    if results is None:
        raise FolderError(f"the comparison in {folder} is not finished: it has no results.json; make another")
    config = ComparisonConfig.from_dict(results["config"])
    wins = [row["verdict"] for row in results["map"]]
    told = (
        f"Over the cells of the map, with all numbers of steps and rivals, the algorithm has less risk in "
        f"{wins.count(1)} of {len(wins)} comparisons, more in {wins.count(-1)}, and {wins.count(0)} are undecided."
    )
    start = read_json(folder / _COMPARISON, ("versions",)) or {}
    sections = [comparison_section(results), *comparison_sections(config, start["versions"])]
    return render("The preprocess-then-optimise algorithm", "Report of a comparison of estimators", told, sections)
