"""What a reader needs to repeat the run: the configuration, versions, hardware, and the command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..presets import PRESETS
from ..train.config import RunConfig
from ..train.folder import FolderError, read_config, read_json
from ..train.settings import Settings
from .content import Block, Code, Paragraph, Section, Table
from .findings import Findings

SAME_BITS = (
    "Results are the same to the bit for any number of threads on the same kind of processor with the same versions, "
    "and to rounding elsewhere."
)


def configuration(found: Findings) -> Section:
    """Every setting with its meaning."""
    return Section("configuration", "Configuration", [settings_table(found.config, PRESETS.get(found.config.preset))])


def settings_table(config: Settings, base: Settings | None) -> Table:
    """Every setting with its meaning, and the preset's value where it is another."""
    meanings = {"preset": "the preset that it started from", **dict(config.describe())}
    rows = []
    for key, value in config.to_dict().items():
        meaning = meanings[key]
        if base is not None and value != getattr(base, key):
            meaning += f" (preset: {written(getattr(base, key))})"
        rows.append((key, written(value), meaning))
    caption = "All settings; where one differs from its preset, the preset's is given too."
    return Table(caption, ("Setting", "Value", "Meaning"), rows)


def written(value: object) -> str:
    """The value of a setting as the command line has it."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def reproduction(found: Findings) -> Section:
    """Versions, machine and command."""
    _, versions = read_config(found.run.path, RunConfig)
    what = "This command repeats the run. " + SAME_BITS
    return Section(
        "reproduction", "How to repeat it", repeated(what, command(found.config), versions, machine_of(found.run.path))
    )


def repeated(what: str, code: str, versions: Mapping[str, str], machine: Mapping[str, str] | None) -> list[Block]:
    """What is to be typed, with the software and, where it is known, the machine that gave the results."""
    blocks: list[Block] = [
        Paragraph(what),
        Code(code),
        Table("Versions that it was started with.", ("Software", "Version"), list(versions.items())),
    ]
    if machine is not None:
        caption = "The machine that trained; after a stop, that on which training went on."
        blocks.append(Table(caption, ("What", "Value"), list(machine.items())))
    return blocks


def changed_settings(config: Settings, base: Settings, besides: Iterable[str]) -> list[str]:
    """`key=value` of what differs from a preset, but for some keys."""
    left_out = set(besides)
    return [
        f"{key}={written(value)}"
        for key, value in config.to_dict().items()
        if value != getattr(base, key) and key not in left_out
    ]


def machine_of(run: Path) -> dict[str, str]:
    """The machine of the last session of the run in a folder; FolderError where its file is damaged."""
    file = run / "timing.json"
    timing = read_json(file) or {}
    machine = timing.get("machine", {"machine": "not recorded"})
    if not (isinstance(machine, dict) and all(isinstance(value, str) for value in machine.values())):
        raise FolderError(f"{file} is damaged: machine must be an object of texts, got {machine!r}")
    return machine


def command(config: RunConfig) -> str:
    """The shell command that repeats a run in a new folder; by Python where no preset leads to it."""
    base = PRESETS.get(config.preset)
    if base is None:
        settings = {key: value for key, value in config.to_dict().items() if value != _default(key)}
        arguments = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        code = f"from mhicl_fast.train import RunConfig, run; run(RunConfig({arguments}), 'DIR')"
        return f"python -c {shlex.quote(code)}"
    changes = changed_settings(config, base, ("seed", "gradient_error"))  # n_prompts is what the error chose
    words = ["mhicl", "run", config.preset]
    if changes:
        words += ["--set", *changes]
    if config.seed != base.seed:
        words += ["--seed", str(config.seed)]
    return shlex.join([*words, "--out", "DIR"])


def _default(key: str) -> object:
    return RunConfig.__dataclass_fields__[key].default
