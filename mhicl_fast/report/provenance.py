"""What a reader needs to repeat the run: the configuration, versions, hardware, and the command."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..presets import PRESETS
from ..train.config import RunConfig, describe_options
from ..train.folder import FolderError, read_config, read_json
from .content import Block, Code, Paragraph, Section, Table
from .findings import Findings


def configuration(found: Findings) -> Section:
    """Every setting with its meaning."""
    meanings = {"preset": "the preset that the run started from", **dict(describe_options())}
    base = PRESETS.get(found.config.preset)
    rows = []
    for key, value in found.config.to_dict().items():
        meaning = meanings[key]
        if base is not None and value != getattr(base, key):
            meaning += f" (preset: {_written(getattr(base, key))})"
        rows.append((key, _written(value), meaning))
    caption = "All settings of the run; where one differs from its preset, the preset's is given too."
    return Section("configuration", "Configuration", [Table(caption, ("Setting", "Value", "Meaning"), rows)])


def _written(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def reproduction(found: Findings) -> Section:
    """Versions, machine and command."""
    _, versions = read_config(found.run.path)
    machine = _machine(found.run.path / "timing.json")
    blocks: list[Block] = [
        Paragraph("This command repeats the run. Results are the same to the bit for any number of threads on the "
                  "same kind of processor with the same versions, and to rounding elsewhere."),
        Code(command(found.config)),
        Table("Versions that the run was started with.", ("Software", "Version"), list(versions.items())),
        Table("The machine that trained it; if it was stopped and resumed, the last one.",
              ("What", "Value"), list(machine.items())),
    ]  # fmt: skip
    return Section("reproduction", "How to repeat it", blocks)


def _machine(file: Path) -> dict[str, str]:
    """The machine of the run's last session; FolderError where the file is damaged."""
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
    changes = [
        f"{key}={_written(value)}"
        for key, value in config.to_dict().items()
        if value != getattr(base, key) and key not in ("seed", "gradient_error")  # n_prompts is what it chose
    ]
    words = ["mhicl", "run", config.preset]
    if changes:
        words += ["--set", *changes]
    if config.seed != base.seed:
        words += ["--seed", str(config.seed)]
    return shlex.join([*words, "--out", "DIR"])


def _default(key: str) -> object:
    return RunConfig.__dataclass_fields__[key].default
