"""The `mhicl` command."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from ._extension import build_info, format_build_info
from ._version import __version__
from .presets import PRESETS, preset
from .progress import ProgressBar
from .train.checkpoints import CheckpointError
from .train.config import ConfigError, RunConfig, describe_options
from .train.folder import FolderError, read_config
from .train.loop import TrainingError, resume, run
from .train.odes import OdeError, solve_ode
from .train.storage import StorageError
from .train.table import align, ode_table, results_table

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for bad input, 1 for a run that failed, 130 on Ctrl-C."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"mhicl: warning: {message}", file=sys.stderr)
        try:
            options.execute(options)
        except (ConfigError, FolderError, OdeError) as error:
            return _complain(error, BAD_INPUT)
        except (StorageError, CheckpointError, TrainingError) as error:
            return _complain(error, FAILED)
        except KeyboardInterrupt:
            return _complain(_how_to_go_on(options), INTERRUPTED)
    return 0


def _run(options: argparse.Namespace) -> None:
    config = _configuration(options)
    with ProgressBar(config) as bar:
        finished = run(config, options.folder, bar)
    print(results_table(finished))


def _resume(options: argparse.Namespace) -> None:
    with ProgressBar(read_config(options.folder)[0]) as bar:
        finished = resume(options.folder, bar)
    print(results_table(finished))


def _ode(options: argparse.Namespace) -> None:
    config = _configuration(options)
    order = options.order or config.order
    print(ode_table(config, order, solve_ode(config, order, options.t_end)))


def _info(options: argparse.Namespace) -> None:
    print(format_build_info(build_info()))


def _configuration(options: argparse.Namespace) -> RunConfig:
    """The preset with the settings and the seed of the command line."""
    settings = list(options.settings)
    if options.seed is not None:
        settings.append(f"seed={options.seed}")
    return preset(options.preset).with_settings(settings)


def _complain(message: object, status: int) -> int:
    print(f"mhicl: {message}", file=sys.stderr)
    return status


def _how_to_go_on(options: argparse.Namespace) -> str:
    folder = getattr(options, "folder", None)
    if folder is None or not (folder / "config.json").exists():
        return "interrupted"
    return f"interrupted; go on with: mhicl resume {folder}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mhicl",
        description="How the heads of softmax attention learn linear regression in context.",
        epilog=_examples("mhicl run demo --out runs/demo", "mhicl resume runs/demo", "mhicl ode demo --set n_heads=4"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mhicl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str,
        execute: Callable[[argparse.Namespace], None],
        description: str,
        epilog: str,
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=description,
            description=description + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(execute=execute)
        return command

    reference = f"presets:\n{_presets()}\n\nkeys of --set:\n{_keys()}"
    command = add(
        "run",
        _run,
        "train a preset in a new folder, evaluate it, compare it with the ODE and draw it",
        _examples(
            "mhicl run demo --out runs/demo",
            "mhicl run multi-task --set n_heads=4 steps=2e4 dtype=float64 --seed 1 --out runs/four",
        )
        + "\n\n"
        + reference,
    )
    _add_configuration(command)
    command.add_argument("--out", dest="folder", metavar="DIR", type=Path, required=True, help="the new run's folder")

    command = add(
        "resume",
        _resume,
        "go on with a run that was stopped; it ends as if it had never been",
        _examples("mhicl resume runs/demo"),
    )
    command.add_argument("folder", metavar="DIR", type=Path, help="the run's folder")

    command = add(
        "ode",
        _ode,
        "integrate the spectral ODE from a preset's start, without training",
        _examples("mhicl ode demo", "mhicl ode demo --set n_heads=4 start_size=0.001 --t-end 500") + "\n\n" + reference,
    )
    _add_configuration(command)
    command.add_argument("--order", choices=("leading", "first"), help="order in 1/L (default: that of the preset)")
    command.add_argument("--t-end", metavar="TIME", type=float, help="flow time (default: all steps at full length)")

    add("info", _info, "show what was built and what will run here", _examples("mhicl info"))
    return parser


def _add_configuration(command: argparse.ArgumentParser) -> None:
    command.add_argument("preset", metavar="PRESET", help=", ".join(PRESETS))
    command.add_argument(
        "--set",
        dest="settings",
        metavar="key=value",
        nargs="+",
        action="extend",
        default=[],
        help="change settings of the preset; several pairs may follow",
    )
    command.add_argument("--seed", metavar="S", help="seed of the start and of the prompts, as --set seed=S")


def _examples(*lines: str) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)


def _presets() -> str:
    return align(
        (
            f"  {name}",
            f"d={config.dim_x}, I={config.n_tasks}, L={config.context_length}, H={config.n_heads}, "
            f"{config.estimator} over {config.n_prompts} prompts, {config.optimizer}, "
            f"{config.steps} steps",
        )
        for name, config in PRESETS.items()
    )


def _keys() -> str:
    return align((f"  {key}", description) for key, description in describe_options())
