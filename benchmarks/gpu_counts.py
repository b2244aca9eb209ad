"""Compiles the kernels for two architectures, disassembles them and counts the instructions of their hottest loops.

    python benchmarks/gpu_counts.py    # needs a CUDA toolkit and nvdisasm (the toolkit's, or Triton's beside PyTorch)

Writes benchmarks/gpu_counts.json, which benchmarks/gpu_model.py reads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from sass import Loop, functions, smallest

ROOT = Path(__file__).resolve().parent.parent
COUNTS = Path(__file__).with_suffix(".json")
ARCHITECTURES = ("sm_90", "sm_80")

# What is looked for in a kernel: loops that draw a block of four normals, that multiply and add what lies in shared
# memory, that exponentiate.
KINDS: dict[str, Callable[[Loop], bool]] = {
    "normals": lambda loop: loop.count("IMAD.WIDE.U32", "IMAD.HI.U32") >= 16 and 20 <= loop.count("FFMA") <= 64,
    "products": lambda loop: loop.innermost and loop.count("FFMA") >= 0.4 * loop.slots and loop.count("LDS") >= 4,
    "exponentials": lambda loop: loop.innermost and loop.count("MUFU.EX2") >= 1,
}
# Sources and, of the functions in them, what the names of the float kernels contain that the prediction is about.
KERNELS = {
    "sampled step": ("step/sampled.cu", ["sampled_kernelIfLi8E"]),
    "conditional step": ("step/conditional.cu", ["conditional_kernelIfLi8E"]),
    "matrix product": ("gemm.cu", ["gemm_kernelIf", "Li64ELi64E", "GemmLanes"]),
    "moments, forward": ("prompts/moments.cu", ["moments_kernelIfLi8E"]),
    "moments, backward": ("prompts/moments.cu", ["moments_gradient_kernelIfLi8E"]),
    "attention, forward": ("attention/forward_float.cu", ["attention_forward_kernel", "4TileIf"]),
    "attention, backward in rows": ("attention/backward_rows_float.cu", ["attention_backward_rows_kernel", "4TileIf"]),
    "attention, backward in keys": ("attention/backward_keys_float.cu", ["attention_backward_keys_kernel", "4TileIf"]),
    "sampler": ("sampler/sampler.cu", ["sample_kernelIf"]),
}


DRAWING = ("sampled step", "conditional step", "sampler")


def count(kernel: str, architecture: str, nvcc: str, nvdisasm: str) -> dict[str, dict[str, object]] | None:
    """By kind of loop its slots, instructions by class and how many of the kind there are; None without the source."""
    source, wanted = KERNELS[kernel]
    path = ROOT / "csrc" / "cuda" / source
    if not path.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        # As PyTorch's build rules have it, as far as it changes code.
        flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch={architecture}", "-I", str(ROOT / "csrc")]
        subprocess.run([nvcc, *flags, "-cubin", "-o", str(binary), str(path)], check=True)
        text = subprocess.run([nvdisasm, "-c", str(binary)], check=True, capture_output=True, text=True).stdout
    loops = [loop for name, found in functions(text).items() if all(x in name for x in wanted) for loop in found]
    return {kind: loop for kind, loop in _typical(loops) if kind != "normals" or kernel in DRAWING}


def _typical(loops: list[Loop]) -> Iterator[tuple[str, dict[str, object]]]:
    """Of each kind the loop in the middle, by issue slots; of products the best, since the others are what is left over
    of a row whose length no unrolled loop divides."""
    for kind, wanted in KINDS.items():
        found = sorted(smallest(loops, wanted), key=lambda loop: loop.slots)
        if kind == "products":
            found.sort(key=lambda loop: loop.slots / loop.count("FFMA"))
        if found:
            loop = found[0 if kind == "products" else (len(found) - 1) // 2]
            yield kind, {"slots": loop.slots, "mix": loop.mix(), "special_each": loop.count("MUFU")}


def find_tools(nvcc: str | None, nvdisasm: str | None) -> tuple[str, str]:
    """Paths of both; SystemExit where one is missing."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = nvcc or shutil.which("nvcc") or f"{home}/bin/nvcc"
    spec = find_spec("triton")
    places = [f"{home}/bin/nvdisasm"]
    if spec is not None and spec.origin is not None:
        places.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"))
    nvdisasm = nvdisasm or shutil.which("nvdisasm") or next((p for p in places if Path(p).exists()), places[0])
    for tool in (nvcc, nvdisasm):
        if not Path(tool).exists():
            raise SystemExit(f"{tool} is not there: name another with --nvcc or --nvdisasm")
    return nvcc, nvdisasm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", help="the CUDA compiler")
    parser.add_argument("--nvdisasm", help="the disassembler")
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS), help="only these")
    options = parser.parse_args()
    tools = find_tools(options.nvcc, options.nvdisasm)
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    for kernel in options.kernel:
        for architecture in ARCHITECTURES:
            print(f"{kernel}, {architecture}", file=sys.stderr, flush=True)
            found = count(kernel, architecture, *tools)
            if found is not None:
                counts.setdefault(architecture, {})[kernel] = found
            COUNTS.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
