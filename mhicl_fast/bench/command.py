"""What `mhicl bench` does: measures on, tells as it goes, and keeps what there is when it is interrupted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ..plots import save_png
from .comparison import check_comparable, compare_reports, in_both
from .errors import BenchFailedError, BenchInputError
from .figure import bench_figure
from .measuring import Plan, begin, measure, without_compiled
from .random_shapes import random_shapes
from .results import OURS, Report, read_report, write_report
from .shapes import Shape, default_shapes, read_shapes
from .table import closing, heading, shape_block

_QUICK_SECONDS = 0.1


def bench(options: argparse.Namespace) -> None:
    """Measure, print, write the files. BenchInputError before anything runs; BenchFailedError at the end where
    mhicl_fast has a wrong result or none."""
    plan, shapes = _plan(options), _shapes(options)
    for file in (options.json, options.figure):
        if file is not None and not file.absolute().parent.is_dir():
            raise BenchInputError(f"there is no folder {file.absolute().parent} to write {file.name} into")
    if options.figure is not None and options.figure.suffix.lower() != ".png":
        raise BenchInputError(f"the figure is drawn as PNG, so its file must be named so; got {options.figure.name}")
    earlier = None if options.compare is None else read_report(options.compare)
    if earlier is not None:
        check_comparable(earlier, shapes, plan.dtypes)
    with _threads(options.threads), tqdm(total=len(shapes) * len(plan.dtypes), disable=None, leave=False) as bar:
        report = begin(plan, bar.set_postfix_str)
        _say(bar, heading(report))
        try:
            for result in measure(plan, shapes, bar.set_postfix_str):
                report.results.append(result)
                _say(bar, f"\n{shape_block(report, result)}")
                bar.update()
        finally:
            bar.close()
            if report.results:
                _conclude(report, earlier, options.json, options.figure)
    _fail_on_wrong_results(report)


def _plan(options: argparse.Namespace) -> Plan:
    only, seconds = options.only, options.seconds
    if options.quick:
        only = without_compiled(options.operator, options.device) if only is None else only
        seconds = _QUICK_SECONDS if seconds is None else seconds
    return Plan(
        operator=options.operator,
        dtypes=tuple(options.dtype),
        only=only,
        seconds=Plan.seconds if seconds is None else seconds,
        rounds=options.rounds,
        memory=options.memory and not options.quick,
        device=options.device,
    )


def _shapes(options: argparse.Namespace) -> list[Shape]:
    """Those given, then those drawn; the default ones where neither is asked for."""
    shapes = read_shapes(options.operator, options.shapes)
    if options.random is not None:
        shapes += random_shapes(options.operator, options.random, options.seed)
    return shapes or default_shapes(options.operator)


def _say(bar: tqdm, text: str) -> None:
    """Above the bar, at once: what is piped may be watched too."""
    bar.write(text)
    sys.stdout.flush()


def _conclude(report: Report, earlier: Report | None, json_file: Path | None, figure_file: Path | None) -> None:
    """The summary, the files, the comparison of what both reports have: nothing yet, maybe, after an interruption."""
    print(f"\n{closing(report)}")
    if json_file is not None:
        write_report(report, json_file)
    if figure_file is not None:
        save_png(bench_figure(report), figure_file)
    if earlier is not None and in_both(report, earlier):
        print(f"\n{compare_reports(report, earlier)}")


def _fail_on_wrong_results(report: Report) -> None:
    bad = [
        f"{result.shape} {result.dtype}"
        for result in report.results
        if {"forward", "both"} & set(result.entries[OURS].reasons)
    ]
    if bad:
        raise BenchFailedError(f"mhicl_fast failed, for reasons given above, at {', '.join(bad)}")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch on so many threads within the block."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise BenchInputError(f"threads must be positive, got {count}")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
