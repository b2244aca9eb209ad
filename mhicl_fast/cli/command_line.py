"""The commands of `mhicl` and their options."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._version import __version__
from . import commands as do
from .parsers import (
    CommandParser,
    Commands,
    add_command,
    add_configuration,
    add_folder,
    add_jobs,
    add_out,
    add_timeout,
    examples,
    reference,
)
from .sparse_line import add_sparse


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mhicl",
        description="How the heads of softmax attention learn linear regression in context.",
        epilog=examples(
            "mhicl run demo --out runs/demo",
            "mhicl report runs/demo",
            "mhicl ode demo --set n_heads=4",
            "mhicl sparse demo --out runs/study",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mhicl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)
    for add in (
        _add_run,
        _add_sweep,
        _add_resume,
        _add_report,
        _add_ode,
        _add_theory,
        _add_explore,
        _add_bench,
        add_sparse,
        _add_info,
    ):
        add(commands)
    return parser


def _add_run(commands: Commands) -> None:
    command = add_command(
        commands,
        "run",
        do.run_command,
        "train a preset in a new folder, evaluate it, compare it with the ODE and draw it",
        "mhicl run demo --out runs/demo",
        "mhicl run multi-task --set n_heads=4 steps=2e4 dtype=float64 --seed 1 --out runs/four",
        "mhicl run single-task --device cuda --out runs/gpu",
        "torchrun --nproc-per-node 4 --no-python mhicl run single-task --out runs/shared",
    )
    add_configuration(command, _reference)
    command.add_argument(
        "--gradient-error",
        metavar="ERROR",
        help="choose the prompts per step by this relative error of the gradient at the start, as 0.05",
    )
    command.add_argument(
        "--device", metavar="D", help="where it trains, as --set device=D: auto (default), cpu, cuda, cuda:1"
    )
    add_timeout(command)
    add_out(command, "the new run's folder")


def _add_sweep(commands: Commands) -> None:
    command = add_command(
        commands,
        "sweep",
        do.sweep_command,
        "do many runs of a preset on all cores, with one table, and one figure for each axis, in a new folder",
        "mhicl sweep demo --vary n_heads=1,2,3,4 n_tasks/dim_x=1/10,2/20,3/30 --out sweeps/separation",
        "mhicl sweep demo --vary n_heads=1,3 context_length=100,200,400,800,1600 --out sweeps/lengths",
        "mhicl sweep demo --vary start_size=0.01,0.02,0.05,0.1 seed=0:5 --out sweeps/emergence",
        "mhicl sweep demo --vary 'signal=1;1,2,0.5' --set n_prompts=256 --jobs 2 --out sweeps/signal",
        "torchrun --nproc-per-node 2 --no-python mhicl sweep demo --vary n_heads=1,3 seed=0:5 --out sweeps/heads",
    )
    add_configuration(command, _reference)
    command.add_argument(
        "--vary",
        dest="axes",
        metavar="key=v1,v2,…",
        nargs="+",
        action="extend",
        required=True,
        help="the axes, each with each: values separated by commas (those of support, signal and covariance by ;), "
        "first:end for integers without the end, key/key=v/v,w/w for keys that vary together",
    )
    add_jobs(command, "cores to use (default: all; under torchrun for each process, its part of them)")
    add_timeout(command)
    add_out(command, "the new sweep's folder")


def _add_resume(commands: Commands) -> None:
    command = add_command(
        commands,
        "resume",
        do.resume_command,
        "go on with a run, a sweep or a study that was stopped; it ends as if it had never been",
        "mhicl resume runs/demo",
        "mhicl resume sweeps/separation",
    )
    add_folder(command, "the folder of the run, the sweep or the study")
    add_jobs(command, "cores to use for a sweep or a study (default: all; under torchrun for each process, its part)")
    add_timeout(command)
    command.add_argument(
        "--device", metavar="D", help="where a run goes on: auto, cpu, cuda, cuda:1 (default: as it was set)"
    )


def _add_report(commands: Commands) -> None:
    command = add_command(
        commands,
        "report",
        do.report_command,
        "write one self-contained HTML page about a finished run, of either study, into its folder",
        "mhicl report runs/demo",
    )
    add_folder(command)


def _add_ode(commands: Commands) -> None:
    command = add_command(
        commands,
        "ode",
        do.ode_command,
        "integrate the spectral ODE from a preset's start, without training",
        "mhicl ode demo",
        "mhicl ode demo --set n_heads=4 start_size=0.001 --t-end 500",
    )
    add_configuration(command, _reference)
    command.add_argument("--order", choices=("leading", "first"), help="order in 1/L (default: that of the preset)")
    command.add_argument("--t-end", metavar="TIME", type=float, help="flow time (default: all steps at full length)")


def _add_theory(commands: Commands) -> None:
    command = add_command(
        commands,
        "theory",
        do.theory_command,
        "print what theory says about a preset's task: limits, optima, Bayes risk",
        "mhicl theory demo",
        "mhicl theory demo --set n_heads=2 context_length=1000 signal=1,2,0.5",
    )
    add_configuration(command, _reference)


def _add_explore(commands: Commands) -> None:
    command = add_command(
        commands,
        "explore",
        do.explore_command,
        "serve a page with sliders that redraw the ODE's trajectories and phases, to this machine only",
        "mhicl explore",
        "mhicl explore --port 5006 --no-browser",
    )
    command.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    command.add_argument(
        "--no-browser", dest="open_browser", action="store_false", help="print the address, open nothing"
    )


def _add_bench(commands: Commands) -> None:
    command = add_command(
        commands,
        "bench",
        do.bench_command,
        "time the operators against PyTorch's own ways, after checking the results",
        "mhicl bench",
        "mhicl bench --shapes 64,8,81,81,32,causal 2000,8/1,1,100,51 --only eager sdpa",
        "mhicl bench --random 20 --seed 3 --json today.json --figure today.png --compare yesterday.json",
        "mhicl bench --operator prompt_attention --dtype float32 float64 --threads 2",
    )
    option = command.add_argument
    option("--operator", choices=("attention", "prompt_attention"), default="attention", help="default: attention")
    option(
        "--shapes",
        metavar="SHAPE",
        nargs="+",
        action="extend",
        default=[],
        help="B,H,Lq,L,E[,Ev][,causal] where H is heads or heads/key heads, for prompt_attention N,L,d,H,I; or files "
        "of such lines (default: shapes of public code)",
    )
    option("--random", metavar="K", type=int, help="draw K shapes from the range of in-context learning")
    option("--seed", metavar="S", type=int, default=0, help="seed of the drawn shapes (default: 0)")
    option("--dtype", metavar="D", nargs="+", default=["float32"], help="float32 (default), float64, bfloat16, float16")
    option("--only", metavar="NAME", nargs="+", help="competitors to measure (default: all)")
    option("--seconds", metavar="T", type=float, help="time for each competitor and pass (default: 1)")
    option("--rounds", metavar="R", type=int, help="rounds of turns, whatever time they take, in place of --seconds")
    option("--threads", metavar="J", type=int, help="PyTorch's threads (default: as it starts)")
    option("--device", metavar="D", default="cpu", help="cpu (default), or a GPU: cuda, cuda:1, …")
    option("--quick", action="store_true", help="0.1 s, nothing that is compiled, no memory")
    option("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    option("--json", metavar="FILE", type=Path, help="write everything that was measured there")
    option("--figure", metavar="FILE", type=Path, help="draw the ratios into this PNG file")
    option("--compare", metavar="FILE", type=Path, help="set the times against those of an earlier --json file")


def _add_info(commands: Commands) -> None:
    add_command(commands, "info", do.info_command, "show what was built and what will run here", "mhicl info")


def _reference() -> str:
    from ..presets import PRESETS
    from ..train.config import RunConfig

    presets = (
        (
            name,
            f"d={config.dim_x}, I={config.n_tasks}, L={config.context_length}, H={config.n_heads}, "
            f"{config.estimator} over {config.n_prompts} prompts, {config.optimizer}, "
            f"{config.steps} steps",
        )
        for name, config in PRESETS.items()
    )
    return reference(presets, RunConfig.describe())
