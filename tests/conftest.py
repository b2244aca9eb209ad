"""Settings that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Two threads at most: enough to run the parallel code, few enough for a machine that does other work too.
torch.set_num_threads(min(2, torch.get_num_threads()))

# The same examples on every run, however slow the machine is.
settings.register_profile("mhicl_fast", deadline=None, derandomize=True)
settings.load_profile("mhicl_fast")


def pytest_configure(config: pytest.Config) -> None:
    """Where there is a GPU, runs would train on it. Only the tests of tests/gpu want that: others, and the processes
    that they start, see none."""
    ours = Path(__file__).resolve().parent / "gpu"
    places = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    if not all(place.is_relative_to(ours) for place in places):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
