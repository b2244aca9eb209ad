"""The page on Hessians: its code runs and prints what the page says."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "hessians.md"


@pytest.mark.filterwarnings("ignore::mhicl_fast.spectral.ShortContextWarning")
def test_code_prints_what_the_page_says() -> None:
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks].count("text") == 3
    namespace: dict[str, Any] = {}
    printed = ""
    for kind, block in blocks:
        if kind == "text":
            assert printed == block
            continue
        output = StringIO()
        with redirect_stdout(output):
            exec(block, namespace)
        printed = output.getvalue()
