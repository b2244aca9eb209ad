"""Sections as one self-contained HTML page: all its figures and styles inside, neither a network nor JavaScript."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jinja2

from . import content


def render(title: str, kind: str, headline: str, sections: Sequence[content.Section]) -> str:
    """The page as HTML: `kind` says what it is about, over the title; `headline` what was found, under it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.rpartition(".")[0]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for block_kind in (content.Paragraph, content.Points, content.Table, content.Picture, content.Code):
        environment.tests[block_kind.__name__.lower()] = lambda block, kind=block_kind: isinstance(block, kind)
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("report.html").render(
        title=title,
        kind=kind,
        headline=headline,
        sections=sections,
    )


def _unbroken(text: str) -> str:
    """The text with spaces that do not break before %, s.e. and around ± and =; markup stays markup."""
    return type(text)(re.sub(r" (?=[±%=]|s\.e\.)|(?<=[±=]) ", "\u00a0", text))
