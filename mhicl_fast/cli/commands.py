"""What each command of `mhicl` does with its options."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import sparse
from .exit_status import FAILED, INTERRUPTED
from .settings import settings

if TYPE_CHECKING:
    from ..processes import Processes
    from ..sweep import LoadedSweep
    from ..train.config import RunConfig


class Followed(Exception):
    """A process that followed ends as its leader does, which says why."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@contextmanager
def _launched(options: argparse.Namespace) -> Iterator[Processes]:
    """The processes that do a command together; those that follow are silent about what the leader says as well."""
    from ..processes import launched
    from ..train.settings import ConfigError
    from ..train.stepping import TrainingError

    if not 0 < options.timeout < float("inf"):
        raise ConfigError(f"--timeout must be a positive number of seconds, got {options.timeout:g}")
    with launched(options.timeout) as processes:
        if processes.leads:
            yield processes
            return
        warnings.simplefilter("ignore")
        try:
            yield processes
        except KeyboardInterrupt:
            raise Followed(INTERRUPTED) from None
        except TrainingError:
            raise Followed(FAILED) from None
        except ConfigError as error:
            raise ConfigError(f"{processes.name}: {error}") from error


def run_command(options: argparse.Namespace) -> None:
    """Train in a new folder and print the table of results."""
    from ..progress import ProgressBar
    from ..train.loop import follow, run
    from ..train.table import results_table

    with _launched(options) as processes:
        if not processes.leads:
            follow(processes)
            return
        config = _with_chosen_prompts(options, _configuration(options))
        with ProgressBar(config) as bar:
            finished = run(config, options.folder, bar, processes=processes)
        print(results_table(finished))


def _with_chosen_prompts(options: argparse.Namespace, config: RunConfig) -> RunConfig:
    """The configuration with the number of prompts that its gradient_error takes, which it says; itself without one."""
    if config.gradient_error is None:
        return config
    from ..train.precision import choose_prompts
    from ..train.settings import ConfigError

    if any(setting.startswith("n_prompts=") for setting in options.settings):
        raise ConfigError("gradient_error chooses n_prompts: give one of the two")
    chosen, noise = choose_prompts(config)
    error = noise.trained.error(chosen.n_prompts)
    print(
        f"{chosen.n_prompts} prompts per step: measured at the start, the {chosen.estimator} gradient has a relative "
        f"error of {error:.3g} ± {noise.trained.standard_error / chosen.n_prompts**0.5:.1g}"
    )
    return chosen


def resume_command(options: argparse.Namespace) -> None:
    """Go on with a run or a sweep."""
    with _launched(options) as processes:
        if _is_sweep(options.folder, processes):
            _resume_sweep(options, processes)
        else:
            _resume_run(options, processes)


def _is_sweep(folder: Path, processes: Processes) -> bool:
    """What the leader finds in the folder, which others may not see."""
    if processes.leads:
        found = (folder / "sweep.json").exists()
        processes.tell({"sweep": found})
        return found
    word = processes.hear()
    if "sweep" not in word:
        raise Followed(0)
    return bool(word["sweep"])


def _resume_run(options: argparse.Namespace, processes: Processes) -> None:
    from ..progress import ProgressBar
    from ..sparse.config import SparseConfig
    from ..sparse.study.folder import is_study
    from ..train.config import RunConfig
    from ..train.folder import is_complete, read_config, read_study
    from ..train.loop import follow, resume
    from ..train.settings import ConfigError
    from ..train.table import results_table

    if not processes.leads:
        follow(processes)
        return
    if is_study(options.folder):
        if options.device is not None:
            raise ConfigError(f"--device is for runs, {options.folder} is a study: its device is fixed")
        sparse.resume_study(options.folder, options.jobs)
        return
    if options.jobs is not None:
        raise ConfigError(f"--jobs is for sweeps and studies, {options.folder} is none")
    if is_complete(options.folder):
        nothing = "" if options.device is None else ", so --device changes nothing"
        print(f"the run in {options.folder} is finished already{nothing}:")
    if read_study(options.folder) == SparseConfig.study:
        sparse.resume_run(options.folder, options.device)
        return
    with ProgressBar(read_config(options.folder, RunConfig)[0]) as bar:
        finished = resume(options.folder, bar, device=options.device, processes=processes)
    print(results_table(finished))


def sweep_command(options: argparse.Namespace) -> None:
    """Do the runs of a sweep in a new folder and print its table."""
    from ..presets import preset
    from ..sweep import SweepBar, expand, follow_sweep, run_sweep

    with _launched(options) as processes:
        if not processes.leads:
            follow_sweep(processes, jobs=options.jobs)
            return
        configs = expand(preset(options.preset), options.axes, settings(options))
        with SweepBar(configs) as bar:
            sweep = run_sweep(configs, options.folder, jobs=options.jobs, observer=bar, processes=processes)
    _tell(sweep)


def _resume_sweep(options: argparse.Namespace, processes: Processes) -> None:
    from ..sweep import SweepBar, follow_sweep, read_sweep, resume_sweep
    from ..train.settings import ConfigError

    if not processes.leads:
        follow_sweep(processes, jobs=options.jobs)
        return
    if options.device is not None:
        raise ConfigError(
            f"--device is for runs, {options.folder} is a sweep: its device is fixed; start another (--set device=)"
        )
    with SweepBar(read_sweep(options.folder)[0]) as bar:
        sweep = resume_sweep(options.folder, jobs=options.jobs, observer=bar, processes=processes)
    _tell(sweep)


def _tell(sweep: LoadedSweep) -> None:
    """The table; SweepError where runs failed."""
    from ..sweep import SweepError, sweep_table

    print(sweep_table(sweep))
    print(f"table and figures: {sweep.path / 'table.csv'}, {sweep.path / 'figures'}")
    if sweep.failures:
        raise SweepError(
            f"{len(sweep.failures)} of {len(sweep.rows)} runs failed; try them again with: mhicl resume {sweep.path}"
        )


def ode_command(options: argparse.Namespace) -> None:
    """Integrate the spectral ODE and print what it comes to."""
    from ..train.odes import solve_ode
    from ..train.table import ode_table

    config = _configuration(options)
    order = options.order or config.order
    print(ode_table(config, order, solve_ode(config, order, options.t_end)))


def report_command(options: argparse.Namespace) -> None:
    """Write the page about a run, of either study."""
    from ..report import write_report
    from ..sparse.report.page import is_reported

    if is_reported(options.folder):
        sparse.report_command(options)
        return
    print(f"report: {write_report(options.folder)}")


def theory_command(options: argparse.Namespace) -> None:
    """Print what is known of a task."""
    from ..train.table import theory_table

    config = _configuration(options)
    print(theory_table(config.task(), config.n_heads))


def explore_command(options: argparse.Namespace) -> None:
    """Serve the page with sliders until Ctrl-C."""
    from ..explore import serve

    serve(port=options.port, open_browser=options.open_browser)


def bench_command(options: argparse.Namespace) -> None:
    """Check and time the operators."""
    from ..bench.command import bench

    bench(options)


def info_command(options: argparse.Namespace) -> None:
    """Print what was built."""
    from .._extension import build_info, format_build_info

    print(format_build_info(build_info()))


def _configuration(options: argparse.Namespace) -> RunConfig:
    """The preset with the settings and the seed of the command line."""
    from ..presets import preset

    return preset(options.preset).with_settings(settings(options))
