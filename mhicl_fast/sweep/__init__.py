"""Sweeps: lists of runs, each of its own shape, on all cores, with one table and a figure for each axis.

    from mhicl_fast.presets import preset
    from mhicl_fast.sweep import expand, run_sweep

    runs = expand(preset("demo"), ["n_heads=1,3", "noise_std=0,0.3,1"], ["n_prompts=256"])  # or any list of RunConfigs
    sweep = run_sweep(runs, "sweeps/noise")
    sweep.rows                               # the table; sweep.run(3) is the fourth run

On the command line, with three sweeps to start from: one head against many, 1/L, emergence against the start:

    mhicl sweep demo --vary n_heads=1,2,3,4 n_tasks/dim_x=1/10,2/20,3/30 --out sweeps/separation
    mhicl sweep demo --vary n_heads=1,3 context_length=100,200,400,800,1600 --out sweeps/lengths
    mhicl sweep demo --vary start_size=0.01,0.02,0.05,0.1 seed=0:5 --out sweeps/emergence

The processes that torchrun starts, on one machine or on several with the same file system, share the runs:

    torchrun --nproc-per-node 2 --no-python mhicl sweep demo --vary n_heads=1,3 seed=0:5 --out sweeps/heads

Each run has the folder and the bits of a plain run of its configuration. A sweep killed at any moment goes on with
`resume_sweep`; what has finished is not run again.
"""

from __future__ import annotations

from .axes import Axis, expand, parse_axis
from .folder import is_sweep, read_sweep
from .follow import follow_sweep
from .loop import SweepObserver, resume_sweep, run_sweep
from .progress import SweepBar
from .results import LoadedSweep, SweepError, load_sweep, sweep_table

__all__ = [
    "Axis",
    "LoadedSweep",
    "SweepBar",
    "SweepError",
    "SweepObserver",
    "expand",
    "follow_sweep",
    "is_sweep",
    "load_sweep",
    "parse_axis",
    "read_sweep",
    "resume_sweep",
    "run_sweep",
    "sweep_table",
]
