"""The settings that a command line makes."""

from __future__ import annotations

import argparse


def settings(options: argparse.Namespace) -> list[str]:
    """The settings of the command line, those with options of their own too."""
    given = {key: getattr(options, key, None) for key in ("seed", "gradient_error", "device")}
    return [*options.settings, *(f"{key}={value}" for key, value in given.items() if value is not None)]
