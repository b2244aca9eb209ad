"""The table of what the CUDA kernels take: the occupancy calculator by known values, the compiler's report, checks."""

from __future__ import annotations

import pytest

from build_tools import cuda_resources
from build_tools.cuda_resources import (
    ARCHITECTURES,
    Launch,
    Usage,
    blocks_at_once,
    differences,
    occupancy,
    parse,
    problems,
    readable,
    short_name,
    table,
)

A100, H100 = ARCHITECTURES["sm_80"], ARCHITECTURES["sm_90"]
KERNEL = "_ZN5mhicl4cuda14add_one_kernelEPKfPfl"
REPORT = f"""
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{KERNEL}' for 'sm_80'
ptxas info    : Function properties for {KERNEL}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers, 376 bytes cmem[0]
ptxas info    : Compiling entry function '{KERNEL}' for 'sm_90'
ptxas info    : Function properties for {KERNEL}
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 22 registers, used 1 barriers, 1024 bytes smem, 376 bytes cmem[0]
"""


def usage(registers: int, shared: int = 0) -> Usage:
    return Usage(registers, shared, 0, 0, 0)


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks", "share"),
    [
        (37, 128, 0, 12, 0.75),  # both from NVIDIA's Best Practices Guide, "Calculating occupancy"
        (37, 320, 0, 4, 0.625),
        (32, 1024, 0, 2, 1.0),
        (32, 256, 0, 8, 1.0),
        (64, 256, 0, 4, 0.5),
        (33, 256, 0, 6, 0.75),  # 40 registers
        (255, 1024, 0, 0, 0.0),
        (16, 32, 0, 32, 0.5),  # the most blocks
        (16, 33, 0, 32, 1.0),  # two warps each
        (32, 256, 40 << 10, 4, 0.5),  # 41 KiB each of 164
        (32, 256, 163 << 10, 1, 0.125),
        (32, 256, 164 << 10, 0, 0.0),  # no room for what every block takes
    ],
)
def test_occupancy_of_an_a100(registers: int, threads: int, shared: int, blocks: int, share: float) -> None:
    assert blocks_at_once(usage(registers), Launch(threads, shared), A100) == blocks
    assert occupancy(usage(registers), Launch(threads, shared), A100) == share


def test_an_h100_has_more_shared_memory() -> None:
    assert blocks_at_once(usage(32), Launch(256, 56 << 10), H100) == 4
    assert blocks_at_once(usage(32, shared=28 << 10), Launch(256, 28 << 10), H100) == 4
    assert blocks_at_once(usage(32), Launch(256, 227 << 10), H100) == 1


def test_the_compilers_report() -> None:
    assert parse(REPORT.splitlines()) == {
        (KERNEL, "sm_80"): Usage(20, 0, 0, 0, 0),
        (KERNEL, "sm_90"): Usage(22, 1024, 16, 8, 12),
    }


def test_problems_and_the_table() -> None:
    usages = parse(REPORT.splitlines())
    launches = {KERNEL: Launch(256, 0)}
    assert problems(usages, launches) == ["add_one_kernel spills on sm_90: 8, 12 bytes"]
    assert problems(usages, {})[0].startswith("add_one_kernel: no launch is known")
    assert "does not fit" in problems(usages, {KERNEL: Launch(256, 300 << 10)})[0]
    assert (
        problems(usages, {**launches, "_ZN5mhicl4cuda4goneEv": Launch(1, 0)})[-1] == "gone is launched but not compiled"
    )
    text = table(usages, launches, "13.0")
    assert (
        "| `add_one_kernel` | 256 | 0 | 20 | 0 | 0, 0 | 8 | 100% | 22 | 1024 | 8, 12 | 8 | 100% |" in text.splitlines()
    )
    assert differences(text, text) == []
    assert len(differences(text, text.replace("| 20 |", "| 24 |"))) == 2


def test_names() -> None:
    assert (
        short_name("void mhicl::cuda::sample_kernel<float, true>(mhicl::P<float>, float*)")
        == "sample_kernel<float, true>"
    )
    name = "void mhicl::cuda::kernel<(mhicl::cuda::Kind)1, mhicl::cuda::Tile<4> >(int (*)(int))"
    assert short_name(name) == "kernel<(Kind)1, Tile<4> >"
    assert readable([KERNEL]) == ["add_one_kernel"]


def test_a_difference_fails_the_check(tmp_path, monkeypatch, capsys) -> None:
    log = tmp_path / "build.log"
    log.write_text(REPORT.replace("8 bytes spill stores, 12 bytes", "0 bytes spill stores, 0 bytes"))
    monkeypatch.setattr(cuda_resources, "TABLE", tmp_path / "table.md")
    monkeypatch.setattr(cuda_resources, "read_launches", lambda: {KERNEL: Launch(256, 0)})
    toolkit = cuda_resources.Toolkit(tmp_path, "13.0")
    monkeypatch.setattr(cuda_resources, "find_toolkit", lambda environ: (toolkit, []))
    assert cuda_resources.main(["--write", str(log)]) == 0
    assert cuda_resources.main(["--check", str(log)]) == 0
    log.write_text(log.read_text().replace("Used 20", "Used 24"))
    assert cuda_resources.main(["--check", str(log)]) == 1
    assert "- | `add_one_kernel` | 256 | 0 | 20 |" in capsys.readouterr().out
    assert cuda_resources.main(["--check", str(tmp_path / "table.md")]) == 1  # no report in it
