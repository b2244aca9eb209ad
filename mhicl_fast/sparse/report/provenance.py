"""What a reader needs to repeat it: the settings, versions, hardware, and the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ...report.content import Block, Section, Table
from ...report.provenance import SAME_BITS, changed_settings, machine_of, repeated, settings_table
from ...train.folder import read_config, read_json
from ...train.wording import number
from ..comparison.config import ComparisonConfig
from ..config import SparseConfig
from ..figures.panels import listed
from ..presets import PRESETS
from ..study.config import STUDIES, Study
from .findings import Findings

_OF_THE_STUDY = ("n_heads", "seed")  # settings in which the runs differ


def configuration(found: Findings) -> Section:
    """All settings, those of the measurements too where there is a study."""
    tables: list[Block] = [settings_table(found.config, PRESETS.get(found.config.preset))]
    if found.study is not None:
        tables.append(settings_table(found.study.config, STUDIES.get(found.study.config.preset)))
    return Section("configuration", "Configuration", tables)


def reproduction(found: Findings) -> Section:
    """Versions, machine, times and command."""
    run = listed(found.runs)[0]
    versions = read_config(run.path, SparseConfig)[1]
    what = f"This command repeats {'the run' if found.study is None else 'the study'}. {SAME_BITS}"
    code = run_command(run.config) if found.study is None else study_command(found.study)
    blocks = repeated(what, code, versions, machine_of(run.path))
    times = {} if found.study is None else read_json(found.path / "timing.json") or {}
    seconds = {stage: taken for stage, taken in times.items() if isinstance(taken, float)}
    if seconds:
        rows = [(stage, f"{number(taken, 3)} s") for stage, taken in seconds.items()]
        rows.append(("all", f"{number(sum(seconds.values()), 3)} s"))
        blocks.append(Table("The time that the study took.", ("Stage", "Time"), rows, numeric=True))
    return Section("reproduction", "How to repeat it", blocks)


def comparison_sections(config: ComparisonConfig, versions: Mapping[str, str]) -> list[Section]:
    """The settings of a comparison of the algorithm, and the command that repeats it."""
    usual = ComparisonConfig()
    code = _words(["algorithm"], changed_settings(config, usual, ("seed", "preset")), config.seed, usual.seed)
    return [
        Section("configuration", "Configuration", [settings_table(config, usual)]),
        Section("reproduction", "How to repeat it", repeated(f"This repeats it. {SAME_BITS}", code, versions, None)),
    ]


def run_command(config: SparseConfig) -> str:
    """The shell command that repeats a run in a new folder; of one that started from a preset that is none, all its
    settings."""
    name, base = _preset(config)
    return _words(["train", name], changed_settings(config, base, ("seed", "preset")), config.seed, base.seed)


def study_command(study: Study) -> str:
    """The shell command that repeats a study in a new folder."""
    name, base = _preset(study.run)
    plan = STUDIES.get(study.config.preset, STUDIES["demo"])
    changes = [
        *changed_settings(study.config, plan, ("preset",)),
        *changed_settings(study.run, base, (*_OF_THE_STUDY, "preset")),
    ]
    return _words(["demo", *([] if name == "demo" else ["--preset", name])], changes, study.run.seed, base.seed)


def _preset(config: SparseConfig) -> tuple[str, SparseConfig]:
    name = config.preset if config.preset in PRESETS else next(iter(PRESETS))
    return name, PRESETS[name]


def _words(start: Sequence[str], changes: Sequence[str], seed: int, usual: int) -> str:
    words = ["mhicl", "sparse", *start]
    if changes:
        words += ["--set", *changes]
    if seed != usual:
        words += ["--seed", str(seed)]
    return shlex.join([*words, "--out", "DIR"])
