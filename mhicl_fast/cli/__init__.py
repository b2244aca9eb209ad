"""The `mhicl` command: from its arguments to an exit status.

What a command needs is imported when it is executed or its help is shown, as the libraries take a while.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from .command_line import command_line
from .commands import Followed
from .exit_status import INTERRUPTED, exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for bad input, 1 for a run that failed, 130 on Ctrl-C
    and SIGTERM."""
    options = command_line().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"mhicl: warning: {message}", file=sys.stderr)
        try:
            options.execute(options)
        except KeyboardInterrupt:
            return _complain(_how_to_go_on(options), INTERRUPTED)
        except Followed as error:
            return error.status
        except Exception as error:
            status = exit_status(error)
            if status is None:
                raise
            return _complain(error, status)
    return 0


def _complain(message: object, status: int) -> int:
    print(f"mhicl: {message}", file=sys.stderr)
    return status


def _how_to_go_on(options: argparse.Namespace) -> str:
    if getattr(options, "repeatable", False):
        return "interrupted; give the same command again"
    folder = getattr(options, "folder", None)
    if folder is None or not any((folder / name).exists() for name in ("config.json", "sweep.json", "study.json")):
        return "interrupted"
    return f"interrupted; go on with: mhicl resume {folder}"
