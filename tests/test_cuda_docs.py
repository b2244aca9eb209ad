"""The page on GPUs: its code runs, on the CPU here, and its sample of `mhicl info` is what such a build prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mhicl_fast._extension import build_info, format_build_info

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cuda.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_code_runs(tmp_path: Path) -> None:
    operators, runs = blocks("python")
    smaller = {
        '"cuda"': '"cpu"',
        '"runs/gpu"': repr(str(tmp_path / "run")),
        "steps=2000": "steps=4, n_prompts=8, eval_prompts=64",
    }
    assert all(words in runs for words in smaller)
    namespace: dict[str, Any] = {}
    for block in (operators, runs):
        for words, others in smaller.items():
            block = block.replace(words, others)
        exec(block, namespace)
    assert namespace["ov"].grad.isfinite().all()
    assert namespace["finished"].summary is not None


def test_the_sample_is_what_a_build_prints() -> None:
    (sample,) = blocks("text")
    told = dict(re.split(r"  +", line, maxsplit=1) for line in sample.splitlines())
    cuda = {
        "version": "13.0",
        "architectures": ["8.0", "9.0+PTX"],
        "left_out": "",
        "operators": told["CUDA kernels"].split(", "),
        "devices": [],
    }
    printed = format_build_info(build_info() | {"cuda": cuda})
    assert printed.splitlines()[5:8] == sample.splitlines()[5:8]
    assert [line[:17] for line in printed.splitlines()] == [line[:17] for line in sample.splitlines()]
