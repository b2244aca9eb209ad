"""What nvcc makes of the kernels, and recorded launches run by it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from emulated import RecordedLaunch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-O3", "-std=c++20", "-arch=sm_80", "-ptx", "--expt-relaxed-constexpr", "-I", str(ROOT / "csrc")]
GUARD = 256  # bytes that belong to no allocation


def simulator(path: Path) -> ModuleType:
    """The simulator's module, from its file."""
    spec = importlib.util.spec_from_file_location("ptxsim", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def compiled(source: Path, nvcc: Path) -> str:
    """A source's PTX, kept under build/ptx as long as nothing under csrc changes."""
    digest = hashlib.sha256(" ".join([*FLAGS, str(nvcc)]).encode() + source.read_bytes())
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".h", ".cuh", ".inl"):
            digest.update(path.read_bytes())
    name = "-".join(source.relative_to(ROOT).with_suffix("").parts)
    kept = ROOT / "build" / "ptx" / f"{name}-{digest.hexdigest()[:16]}.ptx"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        for old in kept.parent.glob(f"{name}-????????????????.ptx"):
            old.unlink()
        new = kept.with_suffix(f".{os.getpid()}")
        subprocess.run([nvcc, *FLAGS, str(source), "-o", str(new)], check=True)
        new.rename(kept)
    return kept.read_text()


def launch_class(simulator: ModuleType) -> Any:
    """The simulator's launch, with parameters whose address was taken and 32-bit addresses that wrap around."""

    class Launch(simulator.Launch):  # type: ignore[misc, name-defined]
        def symbol(self, name: str) -> Any:
            if name in self.k.params:
                return np.uint64(self.k.params[name])
            return super().symbol(name)

        def address(self, operand: str, active: Any) -> Any:
            base = self.regs.get(operand.strip().strip("[]").split("+")[0].strip())
            address = super().address(operand, active)
            return address & np.uint64(0xFFFFFFFF) if base is not None and base.dtype == np.uint32 else address

        def i_ld(self, modifiers: list[str], operands: list[str], active: Any, index: int, what: str) -> None:
            base = operands[1].strip("[]").split("+")[0].strip()
            if "param" not in modifiers or base in self.k.params:
                super().i_ld(modifiers, operands, active, index, what)
                return
            width, kind = self.vec(modifiers), np.dtype(simulator.NP[modifiers[-1]])
            names = [name.strip() for name in operands[0].strip("{}").split(",")]
            places = np.where(active, self.address(operands[1], active), np.uint64(0)).astype(np.int64)
            if (places % (width * kind.itemsize)).any():
                raise simulator.Fault(f"{what}: misaligned")
            content = np.frombuffer(self.params, np.uint8)
            for i, name in enumerate(names):
                places_of_bytes = places[:, None] + i * kind.itemsize + np.arange(kind.itemsize)
                value = np.ascontiguousarray(content[places_of_bytes]).view(kind).reshape(-1)
                self.put(name, self.widen(value, name), active)

    return Launch


@dataclass
class Effort:
    """What a kernel's launches took."""

    launches: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Tolerance:
    """How far results may be apart, relative to them and for those next to 0, in float32; float64 is in proportion."""

    relative: float = 1e-4
    absolute: float = 1e-5
    halves: bool = False  # whether memory holds 16-bit floats


ROUNDING = Tolerance()


@dataclass
class Generated:
    """The kernels of some sources. `efforts` fills as launches are replayed."""

    simulator: ModuleType
    launch_class: Any
    kernels: dict[str, Any]  # by mangled name
    efforts: dict[str, Effort] = field(default_factory=dict)

    @classmethod
    def of(cls, simulator: ModuleType, sources: Iterable[Path], nvcc: Path) -> Generated:
        """Compile the sources."""
        kernels: dict[str, Any] = {}
        for source in sources:
            found = simulator.Module(compiled(source, nvcc)).kernels
            for name in found.keys() & kernels.keys():
                # The linker keeps one of the host's functions that stand for them.
                assert found[name].instrs == kernels[name].instrs, f"{source}: another kernel is called {name} too"
            kernels.update(found)
        return cls(simulator, launch_class(simulator), kernels)

    def run(self, launch: RecordedLaunch, arguments: bytes | None = None) -> NDArray[np.uint8]:
        """Device memory after the launch, with other arguments in place of the recorded ones if given."""
        kernel = self.kernels[launch.kernel]
        arguments = launch.arguments if arguments is None else arguments
        # The arena's addresses are those that the arguments hold; the module's constants come behind it.
        constants = list(kernel.mod.globals.items())
        pieces = [launch.before, np.full(GUARD, 0xFF, np.uint8)]
        valid = [launch.valid, np.zeros(GUARD, bool)]
        places, end = {}, len(launch.before) + GUARD
        for name, content in constants:
            room = -(-len(content) // GUARD) * GUARD
            places[name] = launch.base + end
            pieces.append(np.frombuffer(content.ljust(room, b"\0"), np.uint8))
            valid.append(np.arange(room) < len(content))
            end += room
        memory = np.concatenate(pieces)
        run = self.launch_class(
            kernel,
            launch.grid,
            launch.block,
            arguments.ljust(kernel.param_bytes, b"\0"),
            memory,
            launch.base,
            np.concatenate(valid),
            launch.shared_bytes,
        )
        run.globals = places
        begin = time.perf_counter()
        steps = run.run()
        effort = self.efforts.setdefault(launch.kernel, Effort())
        effort.launches += 1
        effort.steps += steps
        effort.seconds += time.perf_counter() - begin
        if run.warn:
            raise self.simulator.Fault(f"{launch.kernel}: {run.warn}")
        return memory[: len(launch.before)]

    def replay(self, launch: RecordedLaunch, tolerance: Tolerance) -> None:
        """Run a launch and compare memory with what the emulation left; raises AssertionError where they differ."""
        after = self.run(launch)
        wrong = differences(after, launch.after, tolerance)
        if len(wrong):
            place = int(wrong[0]) * 8
            begin = max(offset for offset, _ in launch.ranges if offset <= place)
            pair = [memory[place : place + 8].view(np.float32) for memory in (after, launch.after)]
            raise AssertionError(
                f"{launch.kernel}, grid {launch.grid}, block {launch.block}: {len(wrong)} of {len(after) // 8} double "
                f"words differ, the first {place - begin} bytes into an allocation of "
                f"{dict(launch.ranges)[begin]}: {pair[0]} for {pair[1]}"
            )


def differences(mine: NDArray[np.uint8], theirs: NDArray[np.uint8], tolerance: Tolerance) -> NDArray[np.int64]:
    """The double words that differ by more than rounding, whichever floats they are read as; integers by any bit."""
    words = [memory[: len(memory) // 8 * 8].view(np.uint64) for memory in (mine, theirs)]
    unequal = np.nonzero(words[0] != words[1])[0]
    pairs = [memory[unequal].view(np.uint8).reshape(-1, 8) for memory in words]
    as_doubles, as_floats = (close(*pairs, kind, tolerance).all(1) for kind in (np.float64, np.float32))
    same = as_doubles | as_floats
    if tolerance.halves:
        same |= close(*pairs, np.float16, Tolerance(2**-9, 2**-9)).all(1)
        # A bfloat16 is the upper half of a float32.
        widened = [(pair.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.uint8) for pair in pairs]
        same |= close(widened[0], widened[1], np.float32, Tolerance(2**-6, 2**-6)).all(1)
    return unequal[~same]


def close(mine: NDArray[np.uint8], theirs: NDArray[np.uint8], kind: Any, tolerance: Tolerance) -> NDArray[np.bool_]:
    """Which numbers agree to rounding. Integers read as floats are denormal, and those must be the same."""
    a, b = (np.ascontiguousarray(memory).view(kind) for memory in (mine, theirs))
    info = np.finfo(kind)
    scale = 1e-7 if kind == np.float64 else 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(a - b) <= scale * (tolerance.absolute + tolerance.relative * np.abs(b))
    integers = (np.abs(a) < info.tiny) & (a != 0) | (np.abs(b) < info.tiny) & (b != 0)
    bits = np.dtype(kind).itemsize
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[bits]
    return (near & ~integers) | (a.view(unsigned) == b.view(unsigned)) | (np.isnan(a) & np.isnan(b))
