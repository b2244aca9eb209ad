"""What the parsers of all commands are made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


class CommandParser(argparse.ArgumentParser):
    """A command's parser; `reference` makes what stands below the examples when its help is shown."""

    reference: Callable[[], str] | None = None

    def format_help(self) -> str:
        text = super().format_help()
        return text if self.reference is None else f"{text}\n{self.reference()}\n"


def add_command(
    commands: Commands, name: str, execute: Callable[[argparse.Namespace], None], description: str, *shown: str
) -> CommandParser:
    command = commands.add_parser(
        name,
        help=description,
        description=description + ".",
        epilog=examples(*shown),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(execute=execute)
    return command


def add_jobs(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--jobs", metavar="J", type=int, help=what)


def add_timeout(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=300.0,
        help="under torchrun, seconds without an answer after which a process counts as lost (default: 300)",
    )


def add_folder(command: argparse.ArgumentParser, what: str = "the run's folder") -> None:
    command.add_argument("folder", metavar="DIR", type=Path, help=what)


def add_configuration(command: CommandParser, reference: Callable[[], str]) -> None:
    """A preset with changes, and the reference of both below the examples."""
    command.reference = reference
    command.add_argument("preset", metavar="PRESET", help="the settings to start from, see below")
    add_settings(command, "change settings of the preset", "seed of the start and of the prompts")


def add_settings(command: CommandParser, what: str, what_seed: str) -> None:
    """Changes of settings, and of the seed among them."""
    command.add_argument(
        "--set",
        dest="settings",
        metavar="key=value",
        nargs="+",
        action="extend",
        default=[],
        help=f"{what}; several pairs may follow",
    )
    command.add_argument("--seed", metavar="S", help=f"{what_seed}, as --set seed=S")


def examples(*lines: str) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)


def add_out(command: CommandParser, what: str) -> None:
    """The new folder that a command writes into."""
    command.add_argument("--out", dest="folder", metavar="DIR", type=Path, required=True, help=what)


def reference(presets: Iterable[tuple[str, str]], keys: Iterable[tuple[str, str]]) -> str:
    """The presets and the keys that can be set, a line each."""
    return f"{_listed('presets', presets)}\n\n{key_reference(keys)}"


def key_reference(keys: Iterable[tuple[str, str]]) -> str:
    """The keys that can be set, a line each."""
    return _listed("keys of --set", keys)


def _listed(title: str, rows: Iterable[tuple[str, str]]) -> str:
    from ..train.wording import align

    return f"{title}:\n" + align((f"  {name}", description) for name, description in rows)
