"""The commands of `mhicl sparse` and their options."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import sparse as do
from .parsers import (
    CommandParser,
    Commands,
    add_command,
    add_configuration,
    add_folder,
    add_jobs,
    add_out,
    add_settings,
    examples,
    key_reference,
    reference,
)

_WHAT = "the study of sparse linear regression by transformers of several layers"


def add_sparse(commands: Commands) -> None:
    """`mhicl sparse` with its own commands."""
    group = commands.add_parser(
        "sparse",
        help=_WHAT,
        description=_WHAT[0].upper() + _WHAT[1:] + ".",
        epilog=examples(
            "mhicl sparse demo --out runs/study",
            "mhicl sparse train small --out runs/sparse",
            "mhicl resume runs/sparse",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = group.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)
    for add in (_add_train, _add_demo, _add_assess, _add_prune, _add_probe, _add_algorithm, _add_report):
        add(inner)


def _add_train(commands: Commands) -> None:
    command = add_command(
        commands,
        "train",
        do.train_command,
        "train a transformer in a new folder and measure its excess risk",
        "mhicl sparse train small --out runs/sparse",
        "mhicl sparse train small --set n_heads=4 steps=2e4 --seed 1 --out runs/four",
        "mhicl sparse train full --device cuda --out runs/full",
    )
    add_configuration(command, _reference)
    command.add_argument(
        "--device", metavar="D", help="where it trains, as --set device=D: auto (default), cpu, cuda, cuda:1"
    )
    add_out(command, "the new run's folder")


def _add_demo(commands: Commands) -> None:
    command = add_command(
        commands,
        "demo",
        do.demo_command,
        "train models with several numbers of heads, measure them all and say what holds, in a new folder",
        "mhicl sparse demo --out runs/study",
        "mhicl sparse demo --heads 1,4 --seeds 3 --set steps=2000 risk_prompts=1000 --out runs/quick",
        "mhicl sparse demo --preset full --set device=cuda --out runs/full",
    )
    command.reference = _study_reference
    command.add_argument("--preset", metavar="P", default="demo", help="demo (default), small or full")
    add_settings(command, "change settings of the runs and of their measurements", "the first seed of the runs")
    command.add_argument("--heads", metavar="H1,H2,…", help="numbers of heads (default: 1,2,4,8)")
    command.add_argument("--seeds", metavar="K", help="models of each number of heads (default: 2)")
    add_jobs(command, "runs and measurements at a time (default: one for each core; on a GPU one)")
    add_out(command, "the new study's folder")


def _add_assess(commands: Commands) -> None:
    command = add_command(
        commands,
        "assess",
        do.assess_command,
        "measure how much the risk of a finished run rises when one of its heads is masked",
        "mhicl sparse assess runs/sparse",
    )
    _add_measured(command, "prompts at each noise variance, twice: to choose heads and to measure")


def _add_prune(commands: Commands) -> None:
    command = add_command(
        commands,
        "prune",
        do.prune_command,
        "keep the dominant head alone in each later layer of a finished run, and compare the risks",
        "mhicl sparse prune runs/sparse",
        "mhicl sparse prune runs/sparse --fine-tune 1000 --against runs/single",
    )
    _add_measured(command, "prompts at each n and noise variance")
    command.add_argument(
        "--fine-tune", metavar="STEPS", type=int, help="train the pruned model on, in a run's folder: DIR-pruned"
    )
    command.add_argument("--against", metavar="RUN", type=Path, help="another run's folder, as one with a single head")
    command.add_argument("--lengths", metavar="N1,N2,…", help="numbers n of context examples")


def _add_probe(commands: Commands) -> None:
    command = add_command(
        commands,
        "probe",
        do.probe_command,
        "fit maps of a finished run's hidden states on which gradient descent predicts, and compare layers with steps",
        "mhicl sparse probe runs/sparse",
        "mhicl sparse probe runs/sparse --steps 1,5,20 --fit 1000",
    )
    _add_measured(command, "prompts to measure probes on")
    command.add_argument("--fit", metavar="N", help="prompts to fit maps on")
    command.add_argument("--steps", metavar="T1,T2,…", help="numbers of gradient steps")


def _add_measured(command: CommandParser, prompts: str) -> None:
    """The folder of a run that is measured on some prompts, again from the start after an interruption."""
    command.set_defaults(repeatable=True)
    add_folder(command)
    command.add_argument("--prompts", metavar="N", help=prompts)


def _study_reference() -> str:
    from ..sparse.config import SparseConfig
    from ..sparse.study import StudyConfig

    return key_reference([*StudyConfig.describe(), *SparseConfig.describe()])


def _add_algorithm(commands: Commands) -> None:
    command = add_command(
        commands,
        "algorithm",
        do.algorithm_command,
        "compare the preprocess-then-optimise algorithm with other estimators: a table, curves, maps of where it wins",
        "mhicl sparse algorithm --out runs/algorithm",
        "mhicl sparse algorithm --set n_prompts=1000 curve_prompts=300 map_prompts=200 --out runs/quick",
        "mhicl sparse algorithm --set dim_x=32 context_length=60 --seed 1 --out runs/wide",
    )
    command.reference = _comparison_reference
    command.set_defaults(repeatable=True)
    add_settings(command, "change settings", "seed of the prompts")
    add_out(command, "the new folder of results")


def _add_report(commands: Commands) -> None:
    command = add_command(
        commands,
        "report",
        do.report_command,
        "write one self-contained HTML page, with its figures, about a study, a run or a comparison of the algorithm",
        "mhicl sparse report runs/study",
        "mhicl sparse report runs/sparse",
        "mhicl sparse report runs/algorithm",
    )
    add_folder(command, "the folder that demo, train or algorithm wrote")


def _comparison_reference() -> str:
    from ..sparse.comparison import ComparisonConfig

    return key_reference(ComparisonConfig.describe())


def _reference() -> str:
    from ..sparse.config import SparseConfig
    from ..sparse.presets import PRESETS

    presets = (
        (
            name,
            f"d={config.dim_x}, s={config.sparsity}, n={config.context_length}, {config.n_layers} layers of "
            f"{config.n_heads} heads, width {config.width}, {config.n_prompts} prompts of {config.n_queries} queries, "
            f"{config.steps} steps",
        )
        for name, config in PRESETS.items()
    )
    return reference(presets, SparseConfig.describe())
