"""Multi-head softmax attention over in-context-learning prompts: fused kernels, and how the heads learn.

`attention` and `prompt_attention` are the operators, `build_info` tells what was built. The rest lives in submodules,
imported when first used: `nn` (modules and places to drop the operators in), `bench` (times beside PyTorch's own ways),
`tasks` (prompt distributions), `spectral` (theory), `train` (runs), `plots` (figures), `report` (every measurement on
some weights, and pages about runs), `sweep` (lists of runs) and `explore` (a page with sliders).
"""

from __future__ import annotations

import importlib
from types import ModuleType

from mhicl_fast._extension import build_info  # first: this loads the compiled module, which registers the operators
from mhicl_fast._version import __version__
from mhicl_fast.ops import attention, prompt_attention

_SUBMODULES = ("bench", "explore", "nn", "plots", "reference", "report", "spectral", "sweep", "tasks", "train")

__all__ = ["__version__", "attention", "build_info", "prompt_attention"]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"mhicl_fast.{name}")
    raise AttributeError(f"module 'mhicl_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
