"""What each command of `mhicl sparse` does with its options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .settings import settings

if TYPE_CHECKING:
    from ..sparse.study import LoadedStudy, StudyConfig


def train_command(options: argparse.Namespace) -> None:
    """Train in a new folder and print the table of results."""
    from ..progress import SparseBar
    from ..sparse.presets import preset
    from ..sparse.table import results_table
    from ..sparse.training import train

    _refuse_processes()
    config = preset(options.preset).with_settings(settings(options))
    with SparseBar(config) as bar:
        finished = train(config, options.folder, bar)
    print(results_table(finished))


def algorithm_command(options: argparse.Namespace) -> None:
    """Compare the algorithm with other estimators in a new folder and print the table and what the maps come to."""
    from ..sparse.comparison import ComparisonConfig, compare, comparison_table

    config = ComparisonConfig().with_settings(settings(options))
    print(comparison_table(config, compare(config, options.folder)))
    print(f"figures: {options.folder / 'figures'}")


def demo_command(options: argparse.Namespace) -> None:
    """Train and measure all models of the study in a new folder, and print what holds."""
    from ..sparse.study import StudyBar, run_study, study

    _refuse_processes()
    given = {key: getattr(options, key) for key in ("heads", "seeds")}
    chosen = [f"{key}={value}" for key, value in given.items() if value is not None]
    planned = study(options.preset, [*settings(options), *chosen])
    with StudyBar() as bar:
        _tell(run_study(planned, options.folder, jobs=options.jobs, observer=bar))


def resume_study(folder: Path, jobs: int | None) -> None:
    """Go on with a study and print what holds."""
    from ..sparse.study import StudyBar
    from ..sparse.study import resume_study as resume

    _refuse_processes()
    with StudyBar() as bar:
        _tell(resume(folder, jobs=jobs, observer=bar))


def assess_command(options: argparse.Namespace) -> None:
    """Measure the importance of a run's heads and print it."""
    from ..sparse.study import assess
    from ..sparse.study.tables import importance_table

    print(importance_table(assess(options.folder, _measuring(options, prompts="importance_prompts"))))
    print(f"\nwritten to {options.folder / 'importance.json'}")


def prune_command(options: argparse.Namespace) -> None:
    """Measure what is left of a run after pruning and print it."""
    from ..progress import SparseBar
    from ..sparse.config import SparseConfig
    from ..sparse.study import prune
    from ..sparse.study.tables import pruning_table
    from ..train.folder import read_config

    _refuse_processes()
    config = _measuring(options, prompts="pruning_prompts", lengths="pruning_lengths")
    trained = {"fine_tune": options.fine_tune, "against": options.against}
    if options.fine_tune is None:
        found = prune(options.folder, config, **trained)
    else:
        run = read_config(options.folder, SparseConfig)[0]
        with SparseBar(run.with_settings([f"steps={options.fine_tune}"])) as bar:
            found = prune(options.folder, config, **trained, observer=bar)
    print(pruning_table(found))
    print(f"\nwritten to {options.folder / 'pruning.json'}")


def probe_command(options: argparse.Namespace) -> None:
    """Probe a run's hidden states and print what was found."""
    from tqdm import tqdm

    from ..sparse.study import probe
    from ..sparse.study.tables import contents_table, correspondence_table, probes_table

    config = _measuring(options, prompts="probe_prompts", fit="probe_fit", steps="probe_steps")
    with tqdm(total=3, unit=" measurements", disable=None, dynamic_ncols=True) as bar:  # None: off unless a terminal
        probes, contents, correspondence = probe(options.folder, config, bar.update)
    print("Excess risk of gradient steps on features\n\n" + probes_table(probes))
    print("\nWhat hidden states hold\n\n" + contents_table(contents))
    print("\nLayers and gradient steps\n\n" + correspondence_table(correspondence))
    print(f"\nwritten to probes.json, contents.json and correspondence.json in {options.folder}")


def _measuring(options: argparse.Namespace, **keys: str) -> StudyConfig:
    """How a run is measured: the study's settings with those options that were given."""
    from ..sparse.study import StudyConfig

    given = {key: getattr(options, name) for name, key in keys.items()}
    return StudyConfig().with_settings(f"{key}={value}" for key, value in given.items() if value is not None)


def _tell(study: LoadedStudy) -> None:
    """What holds, and the page; StudyError where something failed."""
    from ..sparse.study import StudyError
    from ..sparse.study.tables import study_table

    print(study_table(study))
    print(f"\nresults: {study.path / 'summary.json'}")
    if study.failures:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in study.failures.items())
        several = f"{len(study.failures)} runs or measurements failed"
        raise StudyError(f"{several}; try them again with: mhicl resume {study.path}{reasons}")
    _report(study.path)


def report_command(options: argparse.Namespace) -> None:
    """Write the page about a study, a run or a comparison."""
    _report(options.folder)


def _report(folder: Path) -> None:
    from ..sparse.report import write_report

    print(f"report: {write_report(folder)}")


def resume_run(folder: Path, device: str | None) -> None:
    """Go on with a run and print the table of results."""
    from ..progress import SparseBar
    from ..sparse.config import SparseConfig
    from ..sparse.table import results_table
    from ..sparse.training import resume
    from ..train.folder import read_config

    _refuse_processes()
    with SparseBar(read_config(folder, SparseConfig)[0]) as bar:
        finished = resume(folder, bar, device=device)
    print(results_table(finished))


def _refuse_processes() -> None:
    """ConfigError where torchrun has started several."""
    from ..processes import launched_size
    from ..train.settings import ConfigError

    size = launched_size()
    if size > 1:
        raise ConfigError(
            f"a run of this study trains in one process, torchrun has started {size}: start mhicl without it"
        )
