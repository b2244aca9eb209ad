"""Reading HTML pages in tests: whether they are well formed and self-contained, and what they say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}
REFERENCES = {"src", "href", "xlink:href", "data", "action", "poster", "srcset", "background"}


class Page(HTMLParser):
    """A parsed page. errors: what is wrong with its nesting; references: what its elements point to; styles: its CSS;
    tables: {caption: {row's name: cells}} with non-breaking spaces as spaces; text: all text outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.errors: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.styles = ""
        self.tables: dict[str, dict[str, list[str]]] = {}
        self.headings: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self._words: list[str] = []
        self._caption = ""
        self._row: list[str] = []
        self.feed(html)
        self.close()
        self.errors += [f"<{tag}> is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("td", "th", "caption", "h1", "h2", "h3"):
            self._words = []
        if tag == "tr":
            self._row = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if "svg" not in self._open and tag not in VOID:
            self.errors.append(f"<{tag}/> does not close itself in HTML")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.errors.append(f"</{tag}> where {self._open[-1:]} is open at {self.getpos()}")
            return
        self._open.pop()
        words = "".join(self._words).strip()
        if tag == "caption":
            self._caption = words
            self.tables[words] = {}
        elif tag in ("td", "th"):
            self._row.append(words)
        elif tag == "tr":
            self.tables[self._caption][self._row[0]] = self._row[1:]
        elif tag in ("h1", "h2", "h3"):
            self.headings.append((tag, words))

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.styles += data
            return
        data = data.replace("\u00a0", " ")
        self.text += data
        self._words.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in REFERENCES:
                self.references.append(value or "")
            if name == "style":
                self.styles += f"\n{value}"
            if name == "id":
                self.ids.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            self.references += re.findall(r"url\(['\"]?([^)'\"]*)", value or "")

    def row(self, name: str) -> list[str]:
        """The cells of the one row with this name."""
        (found,) = (rows[name] for rows in self.tables.values() if name in rows)
        return found

    def external(self) -> list[str]:
        """What the page would fetch from elsewhere."""
        loaded = [*self.references, *re.findall(r"(?:url\(|@import)\s*['\"]?([^)'\";]*)", self.styles)]
        return [reference for reference in loaded if not reference.startswith(("#", "data:"))]
