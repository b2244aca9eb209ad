"""Loads the compiled module, after checking that it fits the running PyTorch, and tells what was built.

PyTorch's C++ interface changes with every minor release. A module built for another one fails with an undefined symbol
at best and crashes at worst, so the check comes before the module is touched.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mhicl_fast._version import __version__

_CONFIG = Path(__file__).parent / "_build_config.json"  # written by the build, beside the compiled module
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
_REBUILD_WITH_CUDA = (
    "with a CUDA build of torch and a CUDA toolkit of the same major version, rebuild with MHICL_CUDA=1 " + _REBUILD
)


def load() -> ModuleType:
    """Import `mhicl_fast._C`, which registers the operators; raises ImportError with the remedy when that fails."""
    missing = (
        f"mhicl_fast is not built for this Python ({platform.python_version()}): its compiled module is missing from "
        f"{_CONFIG.parent}. Build it from the source folder with: pip install --no-build-isolation -e ."
    )
    if not _CONFIG.exists():
        raise ImportError(missing)
    built = json.loads(_CONFIG.read_text())
    check_torch(built, torch.__version__, torch.version.cuda)
    try:
        return importlib.import_module("mhicl_fast._C")
    except ModuleNotFoundError:
        raise ImportError(missing) from None
    except ImportError as error:
        raise ImportError(f"mhicl_fast's compiled module does not load ({error}): rebuild with {_REBUILD}") from error


def check_torch(built: dict[str, Any], version: str, cuda: str | None) -> None:
    """Raise ImportError unless the running PyTorch is one that the module can be loaded with.

    built: {"torch": version built for, "cuda": version of the CUDA compiler or None}. The minor release must be the
    same, for a development version the whole version; a module with CUDA code also needs the same CUDA major version.
    """
    if _interface(version) != _interface(built["torch"]):
        raise ImportError(
            f"mhicl_fast was built for torch {built['torch']}, but torch {version} is running: rebuild with {_REBUILD}"
        )
    if built["cuda"] is not None and (cuda or "none").split(".")[0] != built["cuda"].split(".")[0]:
        running = f"with CUDA {cuda}" if cuda else "without CUDA"
        raise ImportError(
            f"mhicl_fast was built with CUDA {built['cuda']}, but the running torch {version} was built {running}: "
            f"rebuild with {_REBUILD}"
        )


def _interface(version: str) -> str:
    """What two versions share when their C++ interfaces are the same. A local label, as +cpu, does not count."""
    release = re.fullmatch(r"(\d+\.\d+)(\.\d+)*(\.post\d+)?(\+.*)?", version)
    return release[1] if release else version


def has_cuda_kernels(operator: str) -> bool:
    """Whether this build has a CUDA kernel of an operator, as "attention"."""
    return operator in _CUDA_OPERATORS


def why_no_kernels(operator: str, device: torch.device) -> str | None:
    """What keeps an operator from tensors on a device, and the remedy; None where it has kernels for them."""
    if device.type in ("cpu", "meta") or (device.type == "cuda" and has_cuda_kernels(operator)):
        return None
    if device.type != "cuda":
        return "there are kernels for the CPU and for CUDA devices alone"
    if _CUDA_OPERATORS:
        return f"there is no CUDA kernel of {operator}; move its tensors to the CPU"
    return f"this build has no CUDA kernels ({_cuda_left_out()}); {_REBUILD_WITH_CUDA}"


def _cuda_left_out() -> str:
    return json.loads(_CONFIG.read_text())["cuda_left_out"] or "its CUDA sources were not built"


def build_info() -> dict[str, Any]:
    """What was built and what will run.

    Returns a dict with the keys version, python, platform, torch ({"built_for", "running"}), compiler, build_type, cuda
    ({"version" or None, "architectures", "left_out": why there is none, "operators" that have a CUDA kernel, "devices":
    names of the GPUs that PyTorch sees}), instruction_sets ({"compiled", "supported" by this processor, "active"}) and
    threads. Raises RuntimeError when `MHICL_ISA` names one that cannot run.
    """
    facts = native.build_facts()
    with_cuda = facts["cuda"] != "none"
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {"built_for": facts["torch"], "running": torch.__version__},
        "compiler": facts["compiler"],
        "build_type": facts["type"],
        "cuda": {
            "version": facts["cuda"] if with_cuda else None,
            "architectures": facts["cuda_architectures"].replace(" ", ";").split(";") if with_cuda else [],
            "left_out": json.loads(_CONFIG.read_text())["cuda_left_out"],
            "operators": sorted(_CUDA_OPERATORS),
            "devices": [torch.cuda.get_device_name(number) for number in range(gpus)],
        },
        "instruction_sets": {
            "compiled": native.compiled_isas(),
            "supported": native.supported_isas(),
            "active": native.active_isa(),
        },
        "threads": torch.get_num_threads(),
    }


def format_build_info(info: dict[str, Any]) -> str:
    """`build_info()` as aligned lines for a person to read, without a newline at the end."""
    cuda, isas, torch_versions = info["cuda"], info["instruction_sets"], info["torch"]
    lines = {
        "mhicl_fast": f"{info['version']} ({info['build_type']} build)",
        "Python": info["python"],
        "platform": info["platform"],
        "torch": f"{torch_versions['running']} (built for {torch_versions['built_for']})",
        "compiler": info["compiler"],
        "CUDA": f"{cuda['version']} for {', '.join(cuda['architectures'])}"
        if cuda["version"]
        else f"none ({cuda['left_out']})",
        "CUDA kernels": ", ".join(cuda["operators"]) or "none",
        "CUDA devices": ", ".join(f"cuda:{number} {name}" for number, name in enumerate(cuda["devices"])) or "none",
        "instruction set": f"{isas['active']} (built: {', '.join(isas['compiled'])}; "
        f"this CPU has: {', '.join(isas['supported'])})",
        "threads": str(info["threads"]),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


native = load()
_CUDA_OPERATORS = frozenset(
    name.removeprefix("mhicl::")
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    if name.startswith("mhicl::")
)

# The threads of PyTorch's pool do not survive a fork, and a child that waits for them hangs, in the kernels as in
# PyTorch's own operators. A forked child works on one thread.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
