"""The GPU's operators on a machine without one: csrc/cuda, compiled by the host's compiler against tests/emulation, as
`torch.ops.mhicl_emulated` on CPU tensors.

    ops = emulated()         # builds what has changed, loads, returns torch.ops.mhicl_emulated; skips without g++
    ops.attention(query, …)  # RuntimeError for whatever a kernel does wrong, with kernel, block, thread and line
    seed_schedule(3)         # threads and blocks run in another order for each seed
    with device_limits(multiprocessors=2, shared_per_block=64 << 10): …
    with tf32(): …           # products on the matrix units
    run_sanitized(__file__, "-k", "gradient")                # again in a child, under AddressSanitizer and UBSan
    result, launches = record(ops.attention, query, key, …)  # every launch with memory before and after
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "tests" / "emulation"
VARIANT = "MHICL_EMULATION_VARIANT"  # which variant a process loads
DEFAULT_LIMITS = (132, 227 << 10)  # an H100's

# -fno-gnu-unique and -Bsymbolic keep what this library shares by name with mhicl_fast._C its own.
COMMON_FLAGS = [
    *("-std=c++20", "-g1", "-fPIC", "-fno-gnu-unique", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-DMHICL_EMULATION", "-DMHICL_LIBRARY=mhicl_emulated", "-DMHICL_GPU_KEY=CPU"),
    *("-I", str(EMULATION / "include"), "-I", str(EMULATION), "-I", str(ROOT / "csrc")),
]
# What host code includes of PyTorch, which takes the compiler longer than all else in it.
HEADERS, COMPILED_HEADERS = "torch_headers.h", "torch_headers.h.gch"
VARIANT_FLAGS = {
    "plain": ["-O2"],
    "sanitized": [
        *("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"),
        # What AddressSanitizer sees too; the compiler takes a third longer with them.
        "-fno-sanitize=vptr,null,object-size,pointer-overflow",
    ],
}


def emulated() -> Any:
    """torch.ops.mhicl_emulated, with the schedule at its start. Skips the test where it cannot be built."""
    reason = _obstacle()
    if reason is not None:
        pytest.skip(reason)
    seed_schedule(0)
    return torch.ops.mhicl_emulated


@functools.cache
def library() -> ctypes.CDLL:
    """The emulator's own functions; loading it registers the operators."""
    path = build(os.environ.get(VARIANT, "plain"))
    torch.ops.load_library(str(path))
    functions = ctypes.CDLL(str(path))
    functions.emulation_seed.argtypes = [ctypes.c_uint64]
    functions.emulation_calls.restype = ctypes.c_char_p
    functions.recording_start.argtypes = [ctypes.c_size_t]
    functions.recording_count.restype = ctypes.c_size_t
    functions.recording_description.argtypes = [ctypes.c_size_t]
    functions.recording_description.restype = ctypes.c_char_p
    functions.recording_bytes.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    functions.recording_bytes.restype = ctypes.c_size_t
    return functions


def seed_schedule(seed: int) -> None:
    """Draw the order of threads and blocks anew; the same seed gives the same order."""
    library().emulation_seed(seed)


def runtime_calls() -> list[str]:
    """The CUDA runtime's functions that were called since this was last asked."""
    return library().emulation_calls().decode().split()


@contextlib.contextmanager
def device_limits(
    multiprocessors: int = DEFAULT_LIMITS[0], shared_per_block: int = DEFAULT_LIMITS[1]
) -> Iterator[None]:
    """A device with other limits, so that small shapes take the paths of large ones."""
    library().emulation_limits(multiprocessors, shared_per_block)
    try:
        yield
    finally:
        library().emulation_limits(*DEFAULT_LIMITS)


@contextlib.contextmanager
def tf32(allowed: bool = True) -> Iterator[None]:
    """PyTorch's switch, which lets float32 products go to the matrix units."""
    switch = torch.backends.cuda.matmul
    before, switch.allow_tf32 = switch.allow_tf32, allowed
    try:
        yield
    finally:
        switch.allow_tf32 = before


def _obstacle() -> str | None:
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"the emulation of CUDA is for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    if shutil.which("g++") is None:
        return "the emulation of CUDA is compiled by g++, which is not on PATH"
    return None


# Building


def build(variant: str = "plain") -> Path:
    """The shared library, made of objects that are kept as long as nothing they were compiled from has changed."""
    folder = ROOT / "build" / "emulation" / variant
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / HEADERS).write_text("#include <ATen/ATen.h>\n#include <torch/library.h>\n")
        stale = [source for source in _sources() if not _is_current(source, folder, variant)]
        _compile(stale, folder, variant)
        return _linked([_beside(source, folder, ".o") for source in _sources()], folder, variant)


def _sources() -> list[Path]:
    cuda, emulation = ROOT / "csrc" / "cuda", EMULATION
    found = [ROOT / "csrc" / "ops.cpp"]
    for top in (cuda, emulation):
        found += sorted(path for path in top.rglob("*") if path.suffix in (".cpp", ".cu"))
    return found


def _jobs() -> int:
    return int(os.environ.get("MAX_JOBS", 0)) or len(os.sched_getaffinity(0))


@functools.cache
def _flags(variant: str) -> list[str]:
    foreign = [flag for path in include_paths("cpu") for flag in ("-isystem", path)]
    # std::fma is a call on processors that are not known to have the instruction.
    has_fma = " fma " in Path("/proc/cpuinfo").read_text()
    return [*COMMON_FLAGS, *VARIANT_FLAGS[variant], *(["-mfma"] if has_fma else []), *foreign]


@functools.cache
def _compiler() -> str:
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"{version}, torch {torch.__version__}"


def _beside(source: Path, folder: Path, suffix: str) -> Path:
    """What is made of a source: its object file, and the record of which command and contents it was made from."""
    return folder / (str(source.relative_to(ROOT)).replace("/", "-") + suffix)


def _is_current(source: Path, folder: Path, variant: str) -> bool:
    target, record = (_beside(source, folder, suffix) for suffix in (".o", ".json"))
    if not target.exists() or not record.exists():
        return False
    made = json.loads(record.read_text())
    if made["compiler"] != _compiler() or made["command"] != _command(source, folder, variant):
        return False
    return all(Path(path).exists() and _digest(Path(path)) == digest for path, digest in made["inputs"].items())


def _compile(sources: list[Path], folder: Path, variant: str) -> None:
    """The objects of these sources. PyTorch's headers are compiled once for all, beside what does not include them."""
    others = [source for source in sources if not _is_host_code(source)]
    hosts = [source for source in sources if _is_host_code(source)]
    with _no_compiled_headers_left(folder), ThreadPoolExecutor(_jobs()) as pool:
        headers = pool.submit(_compile_headers, folder, variant) if len(hosts) > 1 else None
        done = [pool.submit(_object, source, folder, variant) for source in others]
        if headers is not None:
            headers.result()
        done += [pool.submit(_object, source, folder, variant) for source in hosts]
        for one in done:
            one.result()


@contextlib.contextmanager
def _no_compiled_headers_left(folder: Path) -> Iterator[None]:
    """They take half a gigabyte, and the compiler would not notice that those of another PyTorch are out of date."""
    (folder / COMPILED_HEADERS).unlink(missing_ok=True)
    try:
        yield
    finally:
        (folder / COMPILED_HEADERS).unlink(missing_ok=True)


def _is_host_code(source: Path) -> bool:
    return source.suffix == ".cpp" and (EMULATION not in source.parents or source.stem.endswith("operators"))


def _command(source: Path, folder: Path, variant: str) -> list[str]:
    target, needs = (str(_beside(source, folder, suffix)) for suffix in (".o", ".d"))
    headers = ["-include", str(folder / HEADERS)] if _is_host_code(source) else []
    return ["g++", *_flags(variant), *headers, "-MMD", "-MF", needs, "-c", "-x", "c++", str(source), "-o", target]


def _compile_headers(folder: Path, variant: str) -> None:
    """What the compiler takes in place of the file that `_command` names, if it lies there."""
    target = folder / COMPILED_HEADERS
    _run(["g++", *_flags(variant), "-x", "c++-header", str(folder / HEADERS), "-o", str(target)], HEADERS)


def _object(source: Path, folder: Path, variant: str) -> None:
    record, command = _beside(source, folder, ".json"), _command(source, folder, variant)
    record.unlink(missing_ok=True)
    _run(command, str(source))
    listed = _beside(source, folder, ".d").read_text()
    inputs = listed.replace("\\\n", " ").split(":", 1)[1].split()
    digests = {path: _digest(Path(path)) for path in inputs if path.startswith(str(ROOT))}
    record.write_text(json.dumps({"compiler": _compiler(), "command": command, "inputs": digests}))


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{what} did not compile:\n{done.stderr[-6000:]}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _linked(objects: list[Path], folder: Path, variant: str) -> Path:
    """One library for each content, since a process may still use an older one."""
    digest = hashlib.sha256("".join(_digest(path) for path in objects).encode()).hexdigest()[:16]
    target = folder / f"emulated-{digest}.so"
    if target.exists():
        return target
    for old in folder.glob("emulated-*.so"):
        old.unlink()
    torch_libraries = Path(torch.__file__).parent / "lib"
    sanitizers = [flag for flag in VARIANT_FLAGS[variant] if flag.startswith("-fsanitize")]
    command = ["g++", "-shared", "-Wl,-Bsymbolic", *sanitizers, *map(str, objects), "-o", str(folder / "new.so")]
    command += ["-L", str(torch_libraries), "-lc10", "-ltorch_cpu", "-ltorch", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the emulated operators did not link:\n{done.stderr[-6000:]}")
    (folder / "new.so").rename(target)
    return target


# Sanitizers


def run_sanitized(*arguments: str) -> str:
    """Run pytest with these arguments in a child, against operators built with the sanitizers; returns its output."""
    # What a sanitizer writes as it ends the process must not be kept from the output.
    return sanitized_child("-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", *arguments)


def sanitized_child(*arguments: str, fails: bool = False) -> str:
    """Run Python with these arguments against the sanitized operators. `fails`: it is to end with an error.

    Skips the test where they cannot be built.
    """
    reason = _obstacle()
    if reason is not None:
        pytest.skip(reason)
    build("sanitized")  # here, where the compiler is not under the sanitizer itself
    runtimes = [_gcc_file(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    environment = os.environ | {
        VARIANT: "sanitized",
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, output[-6000:]
    return output


def _gcc_file(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


# Recording


@dataclass(frozen=True)
class RecordedLaunch:
    """A launch as the emulator ran it. `before` and `after` are the device's memory, which starts at address `base`."""

    kernel: str  # its mangled name, which the device's compiler gives it too
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: bytes  # one after another, each at a multiple of its alignment
    base: int
    ranges: list[tuple[int, int]]  # (offset, bytes) of what was allocated
    before: np.ndarray
    after: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """Which bytes of memory belong to an allocation."""
        mask = np.zeros(len(self.before), bool)
        for offset, size in self.ranges:
            mask[offset : offset + size] = True
        return mask


def record(
    function: Callable[..., Any], *arguments: Any, arena_bytes: int = 64 << 20, **keywords: Any
) -> tuple[Any, list[RecordedLaunch]]:
    """Call the function with its tensors copied into recorded memory; returns its result and the launches it made."""
    functions = library()
    if functions.recording_start(arena_bytes) != 0:
        raise RuntimeError("recording is on already")
    try:
        result = function(*map(_copied, arguments), **{name: _copied(value) for name, value in keywords.items()})
    finally:
        functions.recording_stop()
    return result, [_recorded_launch(i) for i in range(functions.recording_count())]


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value))
    return value


def _recorded_launch(number: int) -> RecordedLaunch:
    told = json.loads(library().recording_description(number))
    for key in ("grid", "block"):
        told[key] = tuple(told[key])
    told["ranges"] = [tuple(pair) for pair in told["ranges"]]
    arguments, before, after = (_recorded_bytes(number, what) for what in range(3))
    return RecordedLaunch(**told, arguments=arguments.tobytes(), before=before, after=after)


def _recorded_bytes(number: int, what: int) -> np.ndarray:
    found = np.empty(library().recording_bytes(number, what, None), np.uint8)
    library().recording_bytes(number, what, found.ctypes.data)
    return found
