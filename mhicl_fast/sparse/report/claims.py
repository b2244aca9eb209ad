"""Which of the study's claims hold at this scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...report.content import Block, Paragraph, Points, Section, Table
from ...train.wording import capitalised
from ..figures.panels import heads_label
from ..figures.risk import risk_title
from ..study.config import run_name
from ..study.verdicts import FALSE, MARGIN, TRUE, UNDECIDED
from .cells import measured
from .findings import Findings
from .risks import risk_curves

_WORDS = {TRUE: "yes", FALSE: "no", UNDECIDED: "undecided"}


def headline(found: Findings) -> str:
    """What was found, in a sentence or two."""
    curves = risk_curves(found)
    told = "No run is finished yet: the page has what is there" if curves is None else risk_title(curves)
    judged = [] if found.summary is None else found.summary["claims"]
    return f"{told}. {_counted(judged)}" if judged else f"{told}."


def claims(found: Findings) -> Section | None:
    """The verdicts, the numbers behind them, and what failed; None where there are none yet."""
    if found.summary is None:
        return None
    judged, failed = found.summary["claims"], found.summary["failed"]
    blocks: list[Block] = []
    if judged:
        how = (
            "Each claim is a list of tests for each seed, that a number is above or below a bound by more than "
            f"{MARGIN:g} standard errors over prompts. It holds, or does not, where all seeds say so; “undecided” is "
            "where they disagree or a number is too near to its bound. Verdicts are about this size of model and "
            "training, and about these seeds alone."
        )
        rows = [
            (f"{k}. {capitalised(claim['claim'])}", _WORDS[claim["holds"]], claim["rule"])
            for k, claim in enumerate(judged, 1)
        ]
        blocks += [
            Paragraph(f"{_counted(judged)} {how}"),
            Table("The claims.", ("Claim", "Holds", "Judged by"), rows),
            _tests(found, judged),
        ]
    if failed:
        blocks += [
            Paragraph("What failed, and is missing above:"),
            Points([f"{name}: {reason}" for name, reason in failed.items()]),
        ]
    return Section("claims", "Which claims hold", blocks) if blocks else None


def _counted(judged: list[Mapping[str, Any]]) -> str:
    """As in: 3 of 5 claims hold at this scale, 1 does not, 1 is undecided."""
    outcomes = [claim["holds"] for claim in judged]
    false, undecided = outcomes.count(FALSE), outcomes.count(UNDECIDED)
    return (
        f"{outcomes.count(TRUE)} of {len(outcomes)} claims hold at this scale, {false} "
        f"{'does' if false == 1 else 'do'} not, {undecided} {'is' if undecided == 1 else 'are'} undecided."
    )


def _tests(found: Findings, judged: Sequence[Mapping[str, Any]]) -> Table:
    """The tests that claims are judged by: a row each, a column for each seed."""
    seeds = sorted({test["seed"] for claim in judged for test in claim["evidence"]})
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for k, claim in enumerate(judged, 1):
        for test in claim["evidence"]:
            if test["judged"]:
                bound = f"{'>' if test['above'] else '<'}\u00a0{test['bound']:g}"
                name = f"{k}. {_without_names(found, test['what'], test['seed'])}"
                value = math.nan if test["value"] is None else test["value"]
                cell = f"{measured(value, test['se'] or 0.0)}: {_WORDS[test['holds']]}"
                rows.setdefault((name, bound), {})[test["seed"]] = cell
    caption = (
        "The tests of each claim, by its number above, with standard errors over prompts, and whether they hold. "
        "Numbers that are not judged are in summary.json."
    )
    header = ("Test", "Bound", *(f"Seed {seed}" for seed in seeds))
    return Table(caption, header, [(*name, *(cells.get(seed, "") for seed in seeds)) for name, cells in rows.items()])


def _without_names(found: Findings, text: str, seed: int) -> str:
    """The text with runs called by their number of heads rather than by the names of their folders."""
    for heads in sorted(found.runs, reverse=True):
        text = text.replace(run_name(heads, seed), heads_label(heads))
    return text
