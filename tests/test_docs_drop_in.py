"""The pages on dropping the attention in: their code runs, line for line, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs" / "drop-in").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert blocks or page.stem == "README"
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert all((page.parent / link).exists() for link in links)


def test_all_pages_are_listed() -> None:
    listed = set(re.findall(r"\]\(([a-z-]+\.md)\)", (PAGES[0].parent / "README.md").read_text()))
    assert listed == {page.name for page in PAGES} - {"README.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in ("README", "when-not-to-use")], ids=str)
def test_pages_have_the_parts_that_readers_look_for(page: Path) -> None:
    headings = re.findall(r"^## (.*)$", page.read_text(), flags=re.MULTILINE)
    assert [h for h in headings if h in ("Before", "After", "What is kept", "What is not")] == [
        "Before", "After", "What is kept", "What is not",
    ]  # fmt: skip
