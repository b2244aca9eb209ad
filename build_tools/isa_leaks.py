"""Finds instructions that not every x86-64 processor has, outside the kernels chosen at run time.

    python -m build_tools.isa_leaks mhicl_fast/_C.cpython-311-x86_64-linux-gnu.so

The kernels live in the namespaces `mhicl::avx2` and `mhicl::avx512`, and only there may such instructions be. An inline
function of the standard library or of PyTorch, compiled inside a target region and kept by the linker for the whole
module, would crash older processors; so would a static initialiser, which runs when the module is loaded.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# VEX and EVEX instructions begin with v; of the baseline's own, only verr and verw do. Mask registers have instructions
# that begin with k, and BMI2 comes with AVX2 processors.
BEYOND = re.compile(
    r"v(?!er[rw]$)[a-z]|k(mov|and|or|xnor|xor|not|shift|unpck|test|add)|(mulx|pdep|pext|rorx|sarx|shlx|shrx|bzhi)$"
)
SYMBOL = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\t(?:(?:lock|rep[nez]*|bnd|data16|notrack) )*([a-z0-9]+)(.*)$")


def leaks(disassembly: Iterable[str]) -> dict[str, str]:
    """Each offending function with its first offending instruction, from the lines of `objdump -d -C`."""
    found: dict[str, str] = {}
    symbol, allowed = "(before any symbol)", ""
    for line in disassembly:
        if heading := SYMBOL.match(line):
            symbol = heading[1]
            allowed = allowed_set(symbol)
        elif (instruction := INSTRUCTION.match(line)) and is_leak(instruction[1], instruction[2], allowed):
            found.setdefault(symbol, instruction[1] + instruction[2])
    return found


def allowed_set(symbol: str) -> str:
    """The instruction set that a function may use beyond the baseline: "avx512", "avx2" or none, which is ""."""
    for name in ("avx512", "avx2"):
        if f"mhicl::{name}::" in symbol:
            return name
    return ""


def is_leak(mnemonic: str, operands: str, allowed: str) -> bool:
    """Whether an instruction goes beyond what its function is allowed."""
    if allowed == "avx512" or not BEYOND.match(mnemonic):
        return False
    needs_avx512 = "zmm" in operands or "%k" in operands or re.search(r"mm(1[6-9]|2\d|3[01])\b", operands) is not None
    return allowed == "" or needs_avx512


def check(path: Path) -> dict[str, str]:
    """Disassemble a compiled file with `objdump` and return its leaks."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = leaks(process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return found


def main(paths: list[str]) -> int:
    """Print every leak in the files; 1 when there is one."""
    status = 0
    for path in paths:
        for symbol, instruction in check(Path(path)).items():
            print(f"{path}: {symbol} has {' '.join(instruction.split())}")
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
