"""The `mhicl` command.

What a command needs is imported when it is executed or its help is shown, as the libraries take a while.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ._version import __version__

if TYPE_CHECKING:
    from .sweep import LoadedSweep
    from .train.config import RunConfig

Commands: TypeAlias = "argparse._SubParsersAction[_CommandParser]"

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for bad input, 1 for a run that failed, 130 on Ctrl-C."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"mhicl: warning: {message}", file=sys.stderr)
        try:
            options.execute(options)
        except KeyboardInterrupt:
            return _complain(_how_to_go_on(options), INTERRUPTED)
        except Exception as error:
            status = _status(error)
            if status is None:
                raise
            return _complain(error, status)
    return 0


def _status(error: Exception) -> int | None:
    """The exit status of an error whose message says what is wrong; None for one that should not have been."""
    from .bench.errors import BenchFailedError, BenchInputError
    from .explore import ExploreError
    from .sweep import SweepError
    from .train.checkpoints import CheckpointError
    from .train.config import ConfigError
    from .train.folder import FolderError
    from .train.odes import OdeError
    from .train.stepping import TrainingError
    from .train.storage import StorageError

    if isinstance(error, (ConfigError, FolderError, OdeError, BenchInputError)):
        return BAD_INPUT
    failures = (StorageError, CheckpointError, TrainingError, ExploreError, SweepError, BenchFailedError)
    return FAILED if isinstance(error, failures) else None


def _run(options: argparse.Namespace) -> None:
    from .progress import ProgressBar
    from .train.loop import run
    from .train.table import results_table

    config = _with_chosen_prompts(options, _configuration(options))
    with ProgressBar(config) as bar:
        finished = run(config, options.folder, bar)
    print(results_table(finished))


def _with_chosen_prompts(options: argparse.Namespace, config: RunConfig) -> RunConfig:
    """The configuration with the number of prompts that its gradient_error takes, which it says; itself without one."""
    if config.gradient_error is None:
        return config
    from .train.config import ConfigError
    from .train.precision import choose_prompts

    if any(setting.startswith("n_prompts=") for setting in options.settings):
        raise ConfigError("gradient_error chooses n_prompts: give one of the two")
    chosen, noise = choose_prompts(config)
    error = noise.trained.error(chosen.n_prompts)
    print(
        f"{chosen.n_prompts} prompts per step: measured at the start, the {chosen.estimator} gradient has a relative "
        f"error of {error:.3g} ± {noise.trained.standard_error / chosen.n_prompts**0.5:.1g}"
    )
    return chosen


def _resume(options: argparse.Namespace) -> None:
    if (options.folder / "sweep.json").exists():
        _resume_sweep(options)
        return
    from .progress import ProgressBar
    from .train.config import ConfigError
    from .train.folder import is_complete, read_config
    from .train.loop import resume
    from .train.table import results_table

    if options.jobs is not None:
        raise ConfigError(f"--jobs is for sweeps, {options.folder} is none")
    if is_complete(options.folder):
        nothing = "" if options.device is None else ", so --device changes nothing"
        print(f"the run in {options.folder} is finished already{nothing}:")
    with ProgressBar(read_config(options.folder)[0]) as bar:
        finished = resume(options.folder, bar, device=options.device)
    print(results_table(finished))


def _sweep(options: argparse.Namespace) -> None:
    from .presets import preset
    from .sweep import SweepBar, expand, run_sweep

    configs = expand(preset(options.preset), options.axes, _settings(options))
    with SweepBar(configs) as bar:
        sweep = run_sweep(configs, options.folder, jobs=options.jobs, observer=bar)
    _tell(sweep)


def _resume_sweep(options: argparse.Namespace) -> None:
    from .sweep import SweepBar, read_sweep, resume_sweep
    from .train.config import ConfigError

    if options.device is not None:
        raise ConfigError(
            f"--device is for runs, {options.folder} is a sweep: its device is fixed; start another (--set device=)"
        )
    with SweepBar(read_sweep(options.folder)[0]) as bar:
        sweep = resume_sweep(options.folder, jobs=options.jobs, observer=bar)
    _tell(sweep)


def _tell(sweep: LoadedSweep) -> None:
    """The table; SweepError where runs failed."""
    from .sweep import SweepError, sweep_table

    print(sweep_table(sweep))
    print(f"table and figures: {sweep.path / 'table.csv'}, {sweep.path / 'figures'}")
    if sweep.failures:
        raise SweepError(
            f"{len(sweep.failures)} of {len(sweep.rows)} runs failed; try them again with: mhicl resume {sweep.path}"
        )


def _ode(options: argparse.Namespace) -> None:
    from .train.odes import solve_ode
    from .train.table import ode_table

    config = _configuration(options)
    order = options.order or config.order
    print(ode_table(config, order, solve_ode(config, order, options.t_end)))


def _report(options: argparse.Namespace) -> None:
    from .report import write_report

    print(f"report: {write_report(options.folder)}")


def _theory(options: argparse.Namespace) -> None:
    from .train.table import theory_table

    config = _configuration(options)
    print(theory_table(config.task(), config.n_heads))


def _explore(options: argparse.Namespace) -> None:
    from .explore import serve

    serve(port=options.port, open_browser=options.open_browser)


def _bench(options: argparse.Namespace) -> None:
    from .bench.command import bench

    bench(options)


def _info(options: argparse.Namespace) -> None:
    from ._extension import build_info, format_build_info

    print(format_build_info(build_info()))


def _configuration(options: argparse.Namespace) -> RunConfig:
    """The preset with the settings and the seed of the command line."""
    from .presets import preset

    return preset(options.preset).with_settings(_settings(options))


def _settings(options: argparse.Namespace) -> list[str]:
    """The settings of the command line, those with options of their own too."""
    given = {"seed": options.seed, "gradient_error": getattr(options, "gradient_error", None)}
    return [*options.settings, *(f"{key}={value}" for key, value in given.items() if value is not None)]


def _complain(message: object, status: int) -> int:
    print(f"mhicl: {message}", file=sys.stderr)
    return status


def _how_to_go_on(options: argparse.Namespace) -> str:
    folder = getattr(options, "folder", None)
    if folder is None or not any((folder / name).exists() for name in ("config.json", "sweep.json")):
        return "interrupted"
    return f"interrupted; go on with: mhicl resume {folder}"


class _CommandParser(argparse.ArgumentParser):
    """A command's parser; `reference` makes what stands below the examples when its help is shown."""

    reference: Callable[[], str] | None = None

    def format_help(self) -> str:
        text = super().format_help()
        return text if self.reference is None else f"{text}\n{self.reference()}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mhicl",
        description="How the heads of softmax attention learn linear regression in context.",
        epilog=_examples("mhicl run demo --out runs/demo", "mhicl report runs/demo", "mhicl ode demo --set n_heads=4"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mhicl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser)
    for add in (
        _add_run,
        _add_sweep,
        _add_resume,
        _add_report,
        _add_ode,
        _add_theory,
        _add_explore,
        _add_bench,
        _add_info,
    ):
        add(commands)
    return parser


def _add_run(commands: Commands) -> None:
    command = _add(
        commands,
        "run",
        _run,
        "train a preset in a new folder, evaluate it, compare it with the ODE and draw it",
        "mhicl run demo --out runs/demo",
        "mhicl run multi-task --set n_heads=4 steps=2e4 dtype=float64 --seed 1 --out runs/four",
    )
    _add_configuration(command)
    command.add_argument(
        "--gradient-error",
        metavar="ERROR",
        help="choose the prompts per step by this relative error of the gradient at the start, as 0.05",
    )
    command.add_argument("--out", dest="folder", metavar="DIR", type=Path, required=True, help="the new run's folder")


def _add_sweep(commands: Commands) -> None:
    command = _add(
        commands,
        "sweep",
        _sweep,
        "do many runs of a preset on all cores, with one table, and one figure for each axis, in a new folder",
        "mhicl sweep demo --vary n_heads=1,2,3,4 n_tasks/dim_x=1/10,2/20,3/30 --out sweeps/separation",
        "mhicl sweep demo --vary n_heads=1,3 context_length=100,200,400,800,1600 --out sweeps/lengths",
        "mhicl sweep demo --vary start_size=0.01,0.02,0.05,0.1 seed=0:5 --out sweeps/emergence",
        "mhicl sweep demo --vary 'signal=1;1,2,0.5' --set n_prompts=256 --jobs 2 --out sweeps/signal",
    )
    _add_configuration(command)
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
    _add_jobs(command, "cores to use (default: all)")
    command.add_argument("--out", dest="folder", metavar="DIR", type=Path, required=True, help="the new sweep's folder")


def _add_resume(commands: Commands) -> None:
    command = _add(
        commands,
        "resume",
        _resume,
        "go on with a run or a sweep that was stopped; it ends as if it had never been",
        "mhicl resume runs/demo",
        "mhicl resume sweeps/separation",
    )
    _add_folder(command, "the run's or the sweep's folder")
    _add_jobs(command, "cores to use for a sweep (default: all)")
    command.add_argument(
        "--device", metavar="D", help="where a run goes on: auto, cpu, cuda, cuda:1 (default: as it was set)"
    )


def _add_report(commands: Commands) -> None:
    command = _add(
        commands,
        "report",
        _report,
        "write one self-contained HTML page about a finished run into its folder",
        "mhicl report runs/demo",
    )
    _add_folder(command)


def _add_ode(commands: Commands) -> None:
    command = _add(
        commands,
        "ode",
        _ode,
        "integrate the spectral ODE from a preset's start, without training",
        "mhicl ode demo",
        "mhicl ode demo --set n_heads=4 start_size=0.001 --t-end 500",
    )
    _add_configuration(command)
    command.add_argument("--order", choices=("leading", "first"), help="order in 1/L (default: that of the preset)")
    command.add_argument("--t-end", metavar="TIME", type=float, help="flow time (default: all steps at full length)")


def _add_theory(commands: Commands) -> None:
    command = _add(
        commands,
        "theory",
        _theory,
        "print what theory says about a preset's task: limits, optima, Bayes risk",
        "mhicl theory demo",
        "mhicl theory demo --set n_heads=2 context_length=1000 signal=1,2,0.5",
    )
    _add_configuration(command)


def _add_explore(commands: Commands) -> None:
    command = _add(
        commands,
        "explore",
        _explore,
        "serve a page with sliders that redraw the ODE's trajectories and phases, to this machine only",
        "mhicl explore",
        "mhicl explore --port 5006 --no-browser",
    )
    command.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    command.add_argument(
        "--no-browser", dest="open_browser", action="store_false", help="print the address, open nothing"
    )


def _add_bench(commands: Commands) -> None:
    command = _add(
        commands,
        "bench",
        _bench,
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
    _add(commands, "info", _info, "show what was built and what will run here", "mhicl info")


def _add(
    commands: Commands, name: str, execute: Callable[[argparse.Namespace], None], description: str, *examples: str
) -> _CommandParser:
    command = commands.add_parser(
        name,
        help=description,
        description=description + ".",
        epilog=_examples(*examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(execute=execute)
    return command


def _add_jobs(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--jobs", metavar="J", type=int, help=what)


def _add_folder(command: argparse.ArgumentParser, what: str = "the run's folder") -> None:
    command.add_argument("folder", metavar="DIR", type=Path, help=what)


def _add_configuration(command: _CommandParser) -> None:
    """A preset with changes, and the reference of both below the examples."""
    command.reference = _reference
    command.add_argument("preset", metavar="PRESET", help="the settings to start from, see below")
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


def _reference() -> str:
    """The presets and the keys that can be set, a line each."""
    from .presets import PRESETS
    from .train.config import describe_options
    from .train.wording import align

    presets = align(
        (
            f"  {name}",
            f"d={config.dim_x}, I={config.n_tasks}, L={config.context_length}, H={config.n_heads}, "
            f"{config.estimator} over {config.n_prompts} prompts, {config.optimizer}, "
            f"{config.steps} steps",
        )
        for name, config in PRESETS.items()
    )
    keys = align((f"  {key}", description) for key, description in describe_options())
    return f"presets:\n{presets}\n\nkeys of --set:\n{keys}"
