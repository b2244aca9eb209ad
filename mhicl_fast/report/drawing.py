"""Figures as SVG that stands inside an HTML page."""

from __future__ import annotations

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..plots.style import styled

_FULL_WIDTH = 10.4  # inches: a figure this wide fills the column, narrower ones keep the size of their letters
_MOST_CHARACTERS = 600_000  # beyond that, curves are simplified until the drawing is smaller


@styled
def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element that scales with the page and is read out as `description`.

    Letters are drawn as outlines, so the page looks the same with any fonts. Ids carry `name`, since they must be
    unique on the page. The same figure gives the same text.
    """
    matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": name})
    for tolerance in (0.1, 0.5, 2.0):  # of a pixel at 72 dpi
        matplotlib.rcParams["path.simplify_threshold"] = tolerance
        drawn = _draw(figure)
        if len(drawn) <= _MOST_CHARACTERS:
            break
    element = drawn[drawn.index("<svg") :]
    element = re.sub(
        r"<(metadata|style).*?</\1>\s*", "", element, flags=re.DOTALL
    )  # the style would reach all the page
    element = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", element).replace("xlink:href", "href")
    element = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", element)  # which alike images share
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'href="#', f'href="#{name}-', element)
    element = re.sub(r"url\(#", f"url(#{name}-", element)
    element = re.sub(r"\s*\n\s*", "\n", element)
    width = 100 * min(1.0, figure.get_figwidth() / _FULL_WIDTH)
    opening = f'style="width: {width:.3g}%" role="img" aria-label="{escape(description)}">'
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda old: f"<svg {old[1]} {opening}", element, count=1)
    return Markup(element)


def _draw(figure: Figure) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
