"""Settings that every test shares."""

from __future__ import annotations

import torch
from hypothesis import settings

# Two threads at most: enough to run the parallel code, few enough for a machine that does other work too.
torch.set_num_threads(min(2, torch.get_num_threads()))

# The same examples on every run, however slow the machine is.
settings.register_profile("mhicl_fast", deadline=None, derandomize=True)
settings.load_profile("mhicl_fast")
