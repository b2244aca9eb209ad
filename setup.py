"""Builds `mhicl_fast._C` against the installed PyTorch. Everything declarative is in pyproject.toml.

    pip install --no-build-isolation .

`MHICL_CUDA=auto|0|1`, `TORCH_CUDA_ARCH_LIST`, `CUDA_HOME`, `CXX` and `MAX_JOBS` are honoured.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # build front ends do not

from build_tools.cuda import BuildError, Torch, architectures, decide, find_toolkit, read_switch  # noqa: E402


def installed_torch() -> Torch:
    """The PyTorch that this interpreter imports; raises BuildError with the remedy if there is none."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BuildError(
            "PyTorch is not installed in the environment that builds. The extension is compiled against "
            "the installed torch, so install torch first and build outside pip's isolated environment: "
            "pip install --no-build-isolation ."
        ) from None
    return Torch(torch.__version__, torch.version.cuda)


def main() -> None:
    torch = installed_torch()
    plan = decide(read_switch(os.environ), torch, *find_toolkit(os.environ))
    archs = architectures(os.environ)
    if plan.toolkit is None:
        print(f"mhicl_fast: building without CUDA: {plan.reason}")
    else:
        print(f"mhicl_fast: building with CUDA {plan.toolkit.version} in {plan.toolkit.prefix} for {archs}")
        # PyTorch's build rules read both, the first when they are imported.
        os.environ["CUDA_HOME"] = str(plan.toolkit.prefix)
        os.environ["TORCH_CUDA_ARCH_LIST"] = archs
    from build_tools.extension import BuildExt, BuildPy, make_extension

    version = runpy.run_path(str(ROOT / "mhicl_fast" / "_version.py"))["__version__"]
    BuildExt.config = {
        "version": version,
        "torch": torch.version,
        "cuda": plan.toolkit.version if plan.toolkit else None,
        "cuda_left_out": plan.reason,
    }
    setup(
        ext_modules=[make_extension(ROOT, version, torch, plan, archs)],
        cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    )


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        raise SystemExit(f"mhicl_fast: {error}") from None
