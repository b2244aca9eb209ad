"""The study's measurements of one finished run, with files in its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...train.recorder import Observer
from ...train.settings import ConfigError
from ..analysis.assess import HeadImportance
from ..analysis.contents import LayerContents
from ..analysis.correspondence import Correspondence
from ..analysis.probe import Probes
from ..training import resume
from .config import StudyConfig
from .experiments import Pruning
from .finetune import pruned_run
from .folder import pruned_path
from .measurement import finished_run
from .plan import IMPORTANCE, begin_pruned, contents_of, correspondence_of, importance_of, probes_of, pruning_of

_DEFAULT = StudyConfig()


def assess(run: str | Path, config: StudyConfig = _DEFAULT) -> HeadImportance:
    """The importance of a run's heads, which importance.json in its folder then has.

    What was measured with the same options already is read. Raises FolderError where there is no finished run.
    """
    run = Path(run)
    return importance_of(config, _seed(run)).result(run, HeadImportance)


def prune(
    run: str | Path,
    config: StudyConfig = _DEFAULT,
    *,
    fine_tune: int | None = None,
    against: str | Path | None = None,
    observer: Observer | None = None,
) -> Pruning:
    """A run against what is left of it when each later layer keeps its dominant head alone; writes pruning.json.

    Args:
        run: its folder. Its heads are assessed first, unless importance.json is there.
        config: prompts and context lengths.
        fine_tune: steps of training after pruning, in a run folder beside the run's, with -pruned behind its name. One
            that was stopped goes on; without this, one that is finished is measured too.
        against: the folder of another finished run, as one with a single head.
        observer: hears how that training goes.

    Raises FolderError where there is no finished run, the runs have different tasks, or the folder of the training has
    another run; ConfigError for a run of one head and fine_tune < 1; and what `train` raises.
    """
    run = Path(run)
    settings = finished_run(run).config
    if settings.layers()[-1].heads == 1:
        raise ConfigError(f"the run in {run} has one head in each later layer: there is nothing to prune")
    if fine_tune is not None and fine_tune < 1:
        raise ConfigError(f"fine_tune must be at least 1 step, got {fine_tune}")
    if not (run / IMPORTANCE).exists():
        assess(run, config)
    others = {"trained on": pruned_path(run)}
    if against is not None:
        finished_run(Path(against))
        others["single"] = Path(against)
    if fine_tune is not None:
        begin_pruned(run, pruned_path(run), pruned_run(settings, fine_tune))
        resume(pruned_path(run), observer)
    return pruning_of(config, run, others, settings.evaluation_seed).result(run, Pruning)


def probe(
    run: str | Path, config: StudyConfig = _DEFAULT, tick: Callable[[], object] = lambda: None
) -> tuple[Probes, LayerContents, Correspondence]:
    """What a run's hidden states hold and how its layers go on; writes probes.json, contents.json, correspondence.json.

    What was measured with the same options already is read. `tick` is called after each of the three. Raises
    FolderError where there is no finished run.
    """
    run = Path(run)
    seed = _seed(run)
    probes = probes_of(config, seed).result(run, Probes)
    tick()
    contents = contents_of(config, seed).result(run, LayerContents)
    tick()
    correspondence = correspondence_of(config, seed).result(run, Correspondence)
    tick()
    return probes, contents, correspondence


def _seed(run: Path) -> int:
    return finished_run(run).config.evaluation_seed
