"""HTML of the page's text: status, key numbers, winners, the legend and the code."""

from __future__ import annotations

from html import escape

from ..plots.style import INK, head_colours
from .solution import Solution
from .wording import LEADING, cautions, code, headline, key_numbers, starred, winners


def status(solution: Solution) -> str:
    """Headline and cautions."""
    notes = "".join(f"<li>{escape(text)}</li>" for text in cautions(solution))
    return f'<p class="headline">{escape(headline(solution))}</p>' + (
        f'<ul class="cautions">{notes}</ul>' if notes else ""
    )


def failure(message: str) -> str:
    """What is wrong with a setting, in place of the headline."""
    return (
        '<p class="headline failed"><strong>This setting has no solution.</strong> '
        f'{escape(message)}</p><p class="stale">Below, faded: the last setting that has one.</p>'
    )


def numbers(solution: Solution) -> str:
    """The key numbers and the table of winners."""
    rows = "".join(
        f'<tr><th scope="row">{escape(n.name)}<small>{escape(n.remark)}</small></th><td>{escape(n.value)}</td></tr>'
        for n in key_numbers(solution)
    )
    return f'<table class="numbers">{rows}</table>{_winners_table(solution)}'


def _winners_table(solution: Solution) -> str:
    colours = head_colours(solution.scenario.n_heads)

    def heads(chosen: tuple[int, ...]) -> str:
        chips = "".join(
            f'<b style="background:{colours[head]};color:{_readable_on(colours[head])}">{head}</b>'
            for head in chosen
            if head >= 0
        )
        return chips or "–"

    rows = "".join(
        f'<tr><th scope="row">{w.task}</th><td>{heads((w.predicted_head,))}</td><td>{w.predicted_time}</td>'
        f"<td>{heads((w.head,))}</td><td>{w.time}</td><td>{heads(w.final_heads)}</td></tr>"
        for w in winners(solution)
    )
    return (
        '<table class="winners"><caption>Who takes each task, and when it is half learnt</caption>'
        '<thead><tr><th rowspan="2" scope="col">task</th><th colspan="2" scope="colgroup">predicted</th>'
        '<th colspan="2" scope="colgroup">observed</th><th rowspan="2" scope="col">at the end</th></tr>'
        '<tr><th scope="col">head</th><th scope="col">time</th><th scope="col">head</th><th scope="col">time</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _readable_on(colour: str) -> str:
    """White, or ink where the colour #rrggbb is light."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else "white"


def legend(solution: Solution) -> str:
    """Colours of the heads, and what the marks mean."""
    colours = head_colours(solution.scenario.n_heads)
    entries = [f'<span><i style="background:{colour}"></i>head {head}</span>' for head, colour in enumerate(colours)]
    entries += [
        f'<span><i class="thin" style="background:{INK}"></i>all heads</span>',
        "<span>half learnt: ◇ predicted ● observed</span>",
        '<span><i class="dotted"></i>limit</span>',
    ]
    if starred(solution):
        entries.append(f"<span>{LEADING.strip()} leading order</span>")
    return f'<div class="legend">{"".join(entries)}</div>'


def call(solution: Solution) -> str:
    """The code that reproduces the picture."""
    return f"<pre>{escape(code(solution))}</pre>"
