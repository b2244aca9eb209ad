"""The page on the second study: its code runs and its commands are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mhicl_fast.cli.command_line import command_line

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "sparse.md").read_text()


def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, namespace)
        assert "Risk(mean=" in capsys.readouterr().out
    assert namespace["pruned"].shapes == [(4, 16), (1, 16), (1, 16)]
    assert namespace["both"].names == ("all heads", "pruned")
    assert (tmp_path / "runs" / "api" / "summary.json").exists()


@pytest.mark.parametrize("file", ["docs/sparse.md", "README.md"])
def test_commands_are_understood(file: str) -> None:
    text = (ROOT / file).read_text()
    commands = re.findall(r"^(mhicl sparse .*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert commands
    for command in commands:
        assert command_line().parse_args(shlex.split(command)[1:]).execute


def test_links_lead_to_files() -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
