"""Replays every kernel's launches; fails where the generated code faults, computes something else, or was never run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from emulated import EMULATION, ROOT, library, record

from build_tools.cuda_resources import readable
from ptx.calls import CALLS, Call
from ptx.generated import ROUNDING, Generated, simulator

# A mistake in a kernel of tests/emulation/faults.cu, and what the simulator says of it.
PLANTED = {
    "missing_barrier": "race",
    "uninitialised_shared": "uninitialised shared word",
    "copy_without_wait": "before its asynchronous copy was waited for",
    "global_overrun": "outside every allocation",
    "shared_overrun": "shared access past",
    "misaligned_store": "misaligned",
    "misaligned_copy": "misaligned",
}
PLANTED_ARGUMENT = 16  # the byte of the arguments that plants it


def check_planted(generated: Generated) -> None:
    """The simulator sees every planted mistake, and none where it is left out."""
    x = torch.arange(64.0)
    for name, message in PLANTED.items():
        _, (launch,) = record(torch.ops.mhicl_faults.run, name, False, x)
        generated.replay(launch, ROUNDING)
        arguments = bytearray(launch.arguments)
        assert arguments[PLANTED_ARGUMENT] == 0
        arguments[PLANTED_ARGUMENT] = 1
        seen = ""
        try:
            generated.run(launch, bytes(arguments))
        except generated.simulator.Fault as fault:
            seen = str(fault)
        assert message in seen, f"the planted mistake {name} was not seen: {seen}"
    print(f"{len(PLANTED)} planted mistakes seen")


def replay_call(generated: Generated, call: Call) -> int:
    """How many launches the call made, all of which agree."""
    launches = call.launches()
    assert launches, "nothing was launched"
    for launch in launches:
        generated.replay(launch, call.tolerance)
    return len(launches)


def replay_calls(generated: Generated, only: str) -> int:
    """How many of the calls whose name contains `only` failed."""
    failed = 0
    for name, call in CALLS.items():
        if only not in name:
            continue
        begin = time.perf_counter()
        try:
            told = f"{replay_call(generated, call)} launches"
        except (AssertionError, RuntimeError, generated.simulator.Fault) as error:
            failed += 1
            told = "FAILED: " + str(error)[:400]
        print(f"{name}: {told}, {time.perf_counter() - begin:.1f} s", flush=True)
    return failed


def table(generated: Generated) -> str:
    """Each kernel that ran, with what that took."""
    lines = [f"{'launches':>8} {'steps':>8} {'seconds':>8}  kernel"]
    named = zip(readable(generated.efforts), generated.efforts.values(), strict=True)
    for name, effort in sorted(named, key=lambda pair: pair[0]):
        lines.append(f"{effort.launches:8} {effort.steps:8} {effort.seconds:8.1f}  {name}")
    return "\n".join(lines)


def main(only: str = "") -> int:
    """Run the stage, or the calls whose name contains `only`, which then need not cover every kernel."""
    begin = time.perf_counter()
    ptxsim, nvcc = simulator(Path(os.environ["MHICL_PTXSIM"])), Path(os.environ["NVCC"])
    library()
    check_planted(Generated.of(ptxsim, [EMULATION / "faults.cu"], nvcc))
    generated = Generated.of(ptxsim, sorted((ROOT / "csrc" / "cuda").rglob("*.cu")), nvcc)
    print(f"{len(generated.kernels)} kernels compiled, {time.perf_counter() - begin:.0f} s", flush=True)
    failed = replay_calls(generated, only)
    print(table(generated))
    missing = sorted(set(generated.kernels) - set(generated.efforts))
    if missing and not only:
        print("kernels not covered:", *missing, sep="\n  ")
    print(f"{failed} calls failed, {time.perf_counter() - begin:.0f} s")
    return 1 if failed or (missing and not only) else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
