"""The compiled module `mhicl_fast._C`: its sources, flags and build command. Needs PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

import torch
from setuptools import Extension
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths

from build_tools.cuda import BuildError, CudaPlan, Torch
from build_tools.jobs import free_memory, job_count, usable_cpus

PACKAGE = "mhicl_fast"
CONFIG_NAME = "_build_config.json"  # read by mhicl_fast/_extension.py before it loads the module

# Without contraction of a*b + c a source line rounds the same for every instruction set; the kernels ask for fused
# multiply-adds by name. No -march: what a CPU has is found out when the module runs.
CXX_FLAGS = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden,-Wall,-Wextra"]


def sources(root: Path, with_cuda: bool) -> list[str]:
    """The files to compile, relative to `root`, in a fixed order."""
    patterns = ["csrc/*.cpp", "csrc/cpu/**/*.cpp"] + (["csrc/cuda/**/*.cpp", "csrc/cuda/**/*.cu"] if with_cuda else [])
    return [path.relative_to(root).as_posix() for pattern in patterns for path in sorted(root.glob(pattern))]


def headers(root: Path) -> list[str]:
    """The files that the sources include."""
    found = (path for path in (root / "csrc").rglob("*") if path.suffix in (".h", ".inl", ".cuh"))
    return [path.relative_to(root).as_posix() for path in sorted(found)]


def make_extension(root: Path, version: str, target: Torch, plan: CudaPlan, archs: str) -> Extension:
    """The extension as setuptools wants it. `plan.toolkit` must be in CUDA_HOME already."""
    with_cuda = plan.toolkit is not None
    openmp = ["-fopenmp"] if sys.platform.startswith("linux") else []
    # Warnings are for our own code, so every foreign header counts as a system header.
    foreign = [*include_paths("cuda" if with_cuda else "cpu"), sysconfig.get_path("include")]
    quiet = [flag for path in foreign for flag in ("-isystem", path)]
    facts = {
        "MHICL_VERSION": version,
        "MHICL_TORCH_VERSION": target.version,
        "MHICL_CUDA_VERSION": plan.toolkit.version if plan.toolkit else "none",
        "MHICL_CUDA_ARCHITECTURES": archs if with_cuda else "",
    }
    make = CUDAExtension if with_cuda else CppExtension
    return make(
        f"{PACKAGE}._C",
        sources(root, with_cuda),
        depends=headers(root),
        include_dirs=[str(root / "csrc")],
        define_macros=[(name, f'"{value}"') for name, value in facts.items()],
        extra_compile_args={"cxx": CXX_FLAGS + openmp + quiet, "nvcc": NVCC_FLAGS + quiet},
        extra_link_args=openmp,
    )


class BuildExt(BuildExtension):
    """Keeps object files between builds, caps the jobs by memory, and records what was built beside the module."""

    config: ClassVar[dict[str, str | None]] = {}  # what it records

    def finalize_options(self) -> None:
        super().finalize_options()
        # Editable installs would compile in a folder of their own and throw it away.
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}-torch-{torch.__version__}"
        self.build_temp = str(Path("build") / f"objects-{tag}")

    def run(self) -> None:
        compiler = os.environ.get("CXX", "c++").split()[0]
        if shutil.which(compiler) is None:
            raise BuildError(
                f"no C++ compiler was found (looked for {compiler!r} on PATH). "
                "Install one (Debian: apt-get install g++) or set CXX."
            )
        with_cuda = any(source.endswith(".cu") for extension in self.extensions for source in extension.sources)
        os.environ.setdefault("MAX_JOBS", str(job_count(usable_cpus(), free_memory(), with_cuda)))
        super().run()
        self._record()

    def _record(self) -> None:
        folder = Path(PACKAGE) if self.inplace else Path(self.build_lib) / PACKAGE
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")


class BuildPy(build_py):
    """Starts from an empty folder, or a wheel would keep modules that were deleted since the last build."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()
