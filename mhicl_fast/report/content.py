"""What a report is made of: sections of paragraphs, lists, tables and pictures.

Plain strings are text and are escaped on the page; `Markup` is HTML and must come from this package alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of points."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first cell of a row names it. The caption says what the numbers are.

    `numeric` aligns all cells but the first to the right, for columns of numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of {len(row)} cells does not fit a header of {len(self.header)}: {row}")


@dataclass(frozen=True)
class Picture:
    """A drawing as inline SVG, with a caption that says what is seen."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Code:
    """Text to be typed, letter by letter."""

    text: str


Block = Paragraph | Points | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `anchor` is its name in links."""

    anchor: str
    title: str
    blocks: Sequence[Block]
