"""Whether to build the CUDA sources, with which toolkit and for which architectures.

`MHICL_CUDA` decides: `0` never, `1` always (anything missing is an error), `auto` (the default) when PyTorch is a CUDA
build and a toolkit of the same CUDA major version is found. No GPU has to be visible.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SWITCH = "MHICL_CUDA"
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"  # Ampere and Hopper, and PTX so that newer GPUs can compile it when they load it


class BuildError(Exception):
    """The extension cannot be built as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: the prefix that holds `bin`, `include` and `lib64`, and its version, as in "13.0"."""

    prefix: Path
    version: str


@dataclass(frozen=True)
class Torch:
    """The PyTorch to build against: its version, and the CUDA version it was built with (None for a CPU build)."""

    version: str
    cuda: str | None


@dataclass(frozen=True)
class CudaPlan:
    """The decision: the toolkit to build with, or None and the reason."""

    toolkit: Toolkit | None
    reason: str = ""


def read_switch(environ: Mapping[str, str]) -> str:
    """`MHICL_CUDA` as "auto", "0" or "1"; raises BuildError for anything else."""
    value = environ.get(SWITCH, "auto")
    if value not in ("auto", "0", "1"):
        raise BuildError(f"{SWITCH} must be auto, 0 or 1, got {value!r}")
    return value


def architectures(environ: Mapping[str, str]) -> str:
    """The architectures to compile for: `TORCH_CUDA_ARCH_LIST` where it is set, in PyTorch's notation."""
    return environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES


def find_toolkit(environ: Mapping[str, str]) -> tuple[Toolkit | None, list[str]]:
    """The CUDA toolkit, and every place looked at with what was found there.

    `CUDA_HOME` (or `CUDA_PATH`) wins and is then the only place; otherwise the `nvcc` on PATH is asked for its prefix,
    since it may be a wrapper that lies elsewhere, and /usr/local/cuda comes last.
    """
    looked: list[str] = []
    for name, prefix in _candidates(environ, looked):
        missing = _missing_parts(prefix)
        if missing:
            looked.append(f"{name}: {prefix} lacks {', '.join(missing)}")
            continue
        version = _nvcc_version(prefix / "bin" / "nvcc")
        if version is None:
            looked.append(f"{name}: {prefix / 'bin' / 'nvcc'} does not tell its version")
            continue
        looked.append(f"{name}: CUDA {version} in {prefix}")
        return Toolkit(prefix, version), looked
    return None, looked


def decide(switch: str, torch: Torch, toolkit: Toolkit | None, looked: list[str]) -> CudaPlan:
    """Weigh the switch against what is there; raises BuildError when `MHICL_CUDA=1` cannot be had."""
    if switch == "0":
        return CudaPlan(None, f"{SWITCH}=0")
    obstacle = _obstacle(torch, toolkit, looked)
    if obstacle is None:
        return CudaPlan(toolkit)
    reason, remedy = obstacle
    if switch == "1":
        raise BuildError(f"{SWITCH}=1, but {reason}. {remedy}, or set {SWITCH}=0 to build without CUDA.")
    return CudaPlan(None, reason)


def _obstacle(torch: Torch, toolkit: Toolkit | None, looked: list[str]) -> tuple[str, str] | None:
    """Why CUDA cannot be built, with the remedy; None when it can."""
    if torch.cuda is None:
        return f"torch {torch.version} was built without CUDA", "Install a CUDA build of torch"
    ours = f"torch {torch.version} was built with CUDA {torch.cuda}"
    wanted = torch.cuda.split(".")[0]
    if toolkit is None:
        return (
            f"no CUDA compiler was found (looked for: {'; '.join(looked)}) and {ours}",
            f"Install a CUDA {wanted} toolkit and put its nvcc on PATH or set CUDA_HOME",
        )
    found = toolkit.version.split(".")[0]
    if found != wanted:
        return (
            f"nvcc in {toolkit.prefix} is CUDA {toolkit.version} while {ours}",
            f"Install a CUDA {wanted} toolkit and set CUDA_HOME to it, or install a torch built with CUDA {found}",
        )
    return None


def _candidates(environ: Mapping[str, str], looked: list[str]) -> list[tuple[str, Path]]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(variable):
            return [(variable, Path(environ[variable]))]
    found = []
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc is None:
        looked.append("nvcc on PATH: none")
    else:
        found.append(("nvcc on PATH", _prefix_of(nvcc)))
    return [*found, ("default place", Path("/usr/local/cuda"))]


def _prefix_of(nvcc: str) -> Path:
    """The toolkit's prefix as nvcc itself tells it in a dry run (`TOP=…`), else by its place on disk."""
    told = re.search(r"^#\$ TOP=(.*)$", _output([nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"]), re.MULTILINE)
    return Path(told[1]).resolve() if told else Path(nvcc).resolve().parent.parent


def _missing_parts(prefix: Path) -> list[str]:
    parts = {
        "bin/nvcc": ["bin/nvcc"],
        "include/cuda_runtime_api.h": ["include/cuda_runtime_api.h"],
        "lib64/libcudart.so": ["lib64/libcudart.so", "lib/libcudart.so"],
    }
    return [name for name, places in parts.items() if not any((prefix / place).exists() for place in places)]


def _nvcc_version(nvcc: Path) -> str | None:
    told = re.search(r"release (\d+\.\d+)", _output([str(nvcc), "--version"]))
    return told[1] if told else None


def _output(command: list[str]) -> str:
    """What a command prints on both streams; empty when it cannot be started."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError:
        return ""
    return done.stdout
