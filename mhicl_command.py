"""Where the `mhicl` command starts: outside the package, so that Ctrl-C while that loads PyTorch ends it quietly."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command; returns its exit status."""
    try:
        from mhicl_fast.cli import main
    except KeyboardInterrupt:
        print("mhicl: interrupted", file=sys.stderr)
        return 130
    return main()
