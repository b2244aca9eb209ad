"""What each CUDA kernel takes of a multiprocessor, as a table that is committed, and whether it is still true.

    python -m build_tools.cuda_resources --check [build.log]    # differences and spills; 1 when there are any
    python -m build_tools.cuda_resources --write [build.log]

The numbers are the compiler's own report, of a build with `NVCC_APPEND_FLAGS=-Xptxas=-v`, or of a compilation of the
kernels alone where no log is given. How many threads and how much shared memory a kernel is launched with at the sizes
that matter most stands in cuda_launches.json, which tests/ptx/typical.py records.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from build_tools.cuda import Toolkit, find_toolkit

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "cuda-resources.md"
LAUNCHES = Path(__file__).with_name("cuda_launches.json")

HEADING = """# What the CUDA kernels take

The compiler's report for nvcc {compiler}, and how much of a multiprocessor the kernel's warps fill at the launch that
matters most (`build_tools/cuda_launches.json`). Written by `python -m build_tools.cuda_resources --write`; CI compares.
"""


@dataclass(frozen=True)
class Architecture:
    """What a multiprocessor has."""

    name: str
    shared: int  # bytes
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    reserved: int = 1024  # bytes of shared memory that each block takes besides its own


ARCHITECTURES = {"sm_80": Architecture("sm_80", 164 << 10), "sm_90": Architecture("sm_90", 228 << 10)}


@dataclass(frozen=True)
class Usage:
    """The compiler's report on a kernel: registers of a thread, bytes of the rest."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True)
class Launch:
    """Threads of a block, and bytes of dynamic shared memory."""

    threads: int
    shared: int


def blocks_at_once(usage: Usage, launch: Launch, arch: Architecture) -> int:
    """Blocks that a multiprocessor holds: registers go to warps 256 at a time and to warps by fours."""
    warps = -(-launch.threads // 32)
    registers_of_warp = _round_up(usage.registers * 32, 256)
    warps_by_registers = arch.registers // registers_of_warp // 4 * 4
    shared = _round_up(usage.shared + launch.shared + arch.reserved, 128)
    return min(arch.blocks, arch.warps // warps, warps_by_registers // warps, arch.shared // shared)


def occupancy(usage: Usage, launch: Launch, arch: Architecture) -> float:
    """The share of a multiprocessor's warps that the kernel's blocks fill."""
    return blocks_at_once(usage, launch, arch) * -(-launch.threads // 32) / arch.warps


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


COMPILING = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def parse(report: Iterable[str]) -> dict[tuple[str, str], Usage]:
    """The usage of each (mangled kernel, architecture) in the lines that `ptxas -v` prints."""
    found: dict[tuple[str, str], Usage] = {}
    kernel, stack = None, (0, 0, 0)
    for line in report:
        if told := COMPILING.search(line):
            kernel = told[1], told[2]
        elif told := STACK.search(line):
            stack = int(told[1]), int(told[2]), int(told[3])
        elif (told := USED.search(line)) and kernel is not None:
            shared = SHARED.search(line)
            found[kernel] = Usage(int(told[1]), int(shared[1]) if shared else 0, *stack)
            kernel = None
    return found


def readable(names: Iterable[str]) -> list[str]:
    """Mangled kernel names as a person would write them: without namespaces and parameters."""
    names = list(names)
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [short_name(name) for name in done.stdout.splitlines()]


def short_name(name: str) -> str:
    """A demangled function's name without result, namespaces and parameters."""
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ").replace("mhicl::cuda::", "").replace("mhicl::", "")


def compile_report(toolkit: Toolkit) -> str:
    """What ptxas says when every kernel is compiled for every architecture."""
    nvcc, report = toolkit.prefix / "bin" / "nvcc", []
    flags = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-cubin", "-I", str(ROOT / "csrc")]
    with tempfile.TemporaryDirectory() as work:
        for source in sorted((ROOT / "csrc" / "cuda").rglob("*.cu")):
            for arch in ARCHITECTURES:
                command = [str(nvcc), *flags, f"-arch={arch}", str(source), "-o", f"{work}/kernels.cubin"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise SystemExit(f"{source} does not compile:\n{done.stderr}")
                report.append(done.stderr)
    return "".join(report)


def table(usages: dict[tuple[str, str], Usage], launches: dict[str, Launch], compiler: str) -> str:
    """The committed file's text."""
    kernels = sorted({kernel for kernel, _ in usages})
    columns = ["kernel", "threads", "shared"]
    for arch_name in ARCHITECTURES:
        columns += [f"{arch_name}: registers", "static shared", "spill stores, loads", "blocks", "occupancy"]
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name, kernel in sorted(zip(readable(kernels), kernels, strict=True)):
        launch = launches.get(kernel)
        cells = [f"`{name}`", *([str(launch.threads), str(launch.shared)] if launch else ["?", "?"])]
        for arch_name, arch in ARCHITECTURES.items():
            usage = usages[kernel, arch_name]
            cells += [str(usage.registers), str(usage.shared), f"{usage.spill_stores}, {usage.spill_loads}"]
            if launch:
                cells += [str(blocks_at_once(usage, launch, arch)), f"{occupancy(usage, launch, arch):.0%}"]
            else:
                cells += ["?", "?"]
        lines.append("| " + " | ".join(cells) + " |")
    return HEADING.format(compiler=compiler) + "\n" + "\n".join(lines) + "\n"


def problems(usages: dict[tuple[str, str], Usage], launches: dict[str, Launch]) -> list[str]:
    """What no table may hold: spills, kernels that do not fit, kernels without a known launch."""
    found = []
    kernels = sorted({kernel for kernel, _ in usages})
    for name, kernel in zip(readable(kernels), kernels, strict=True):
        if kernel not in launches:
            found.append(f"{name}: no launch is known; record it with tests/ptx/typical.py")
        for arch_name, arch in ARCHITECTURES.items():
            usage = usages[kernel, arch_name]
            if usage.spill_stores or usage.spill_loads:
                found.append(f"{name} spills on {arch_name}: {usage.spill_stores}, {usage.spill_loads} bytes")
            if kernel in launches and blocks_at_once(usage, launches[kernel], arch) == 0:
                found.append(f"{name} does not fit a multiprocessor of {arch_name}")
    gone = sorted(set(launches) - set(kernels))
    return found + [f"{name} is launched but not compiled" for name in (readable(gone) if gone else [])]


def differences(committed: str, actual: str) -> list[str]:
    """Lines that only one of two tables has."""
    old, new = committed.splitlines(), actual.splitlines()
    return [f"- {line}" for line in old if line not in new] + [f"+ {line}" for line in new if line not in old]


def read_launches() -> dict[str, Launch]:
    """The declared launches by mangled kernel."""
    recorded = json.loads(LAUNCHES.read_text()) if LAUNCHES.exists() else {}
    return {name: Launch(**launch) for name, launch in recorded.items()}


def main(arguments: list[str] | None = None) -> int:
    """Check or write the table; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--check", action="store_true", help="compare with the committed table")
    choice.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("log", nargs="?", type=Path, help="a build's output with ptxas's report")
    asked = parser.parse_args(arguments)

    toolkit, looked = find_toolkit(os.environ)
    if toolkit is None:
        print(f"no CUDA compiler: {'; '.join(looked)}")
        return 1
    usages = parse((asked.log.read_text() if asked.log else compile_report(toolkit)).splitlines())
    if not usages:
        print("the build's output has no report of ptxas")
        return 1
    launches = read_launches()
    wrong = problems(usages, launches)
    actual = table(usages, launches, toolkit.version)
    if asked.write:
        TABLE.write_text(actual)
    elif not TABLE.exists():
        wrong.append(f"{TABLE} is missing")
    elif f"nvcc {toolkit.version}," in TABLE.read_text():
        wrong += differences(TABLE.read_text(), actual)
    else:
        print(f"SKIPPED: {TABLE.name} is for another compiler than nvcc {toolkit.version}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
