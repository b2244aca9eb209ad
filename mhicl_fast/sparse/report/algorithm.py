"""The preprocess-then-optimise algorithm against other estimators: the map, the curves and the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ...report.content import Block, Paragraph, Picture, Section, Table
from ...report.drawing import inline_svg
from ...train.wording import whole
from ..comparison.figures import FIGURES
from ..comparison.table import tables_by_sparsity
from .findings import Findings

_CAPTIONS = {
    "curves": "Excess risk of the algorithm and of other estimators as one thing varies, with bands of ± 2 standard "
    "errors over prompts. Lines leave the axis where their risk is below it or infinite.",
    "map": "Where the algorithm has less risk than each rival, over the noise variance σ², the sparsity s and the "
    "number of examples n: blue where it wins, red where it loses, by the ratio of risks.",
    "map-best": "The same for the algorithm with the most steps and the best c of all tried.",
    "theory": "Colours: the risk of gradient descent over the algorithm's, both computed from spectra of drawn sample "
    "covariances rather than from prompts, over s/d and n/d. Points: what was measured on prompts.",
}
WHAT = Markup(
    "The algorithm scales each covariate by its correlation with the labels, r̂<sub>j</sub> = (1/n) Σ<sub>i</sub> "
    "x<sub>ij</sub> y<sub>i</sub>, and takes "
    "gradient steps on the scaled covariates: a transformer of linear attention, with d heads in its first layer "
    "and one in each later. It is compared with gradient descent of as many steps and with estimators that "
    "statistics knows."
)
_CONSTANT = (
    "With a constant η a prompt's risk counts as that of predicting 0 where it is larger: it diverges where the "
    "greatest eigenvalue is large. Without noise the usual penalty of the Lasso is 0."
)


def algorithm(found: Findings) -> Section | None:
    """The section in a study's page; None without results."""
    return None if found.comparison is None else comparison_section(found.comparison)


def comparison_section(results: Mapping[str, Any]) -> Section:
    """Figures and tables of the results of `mhicl sparse algorithm`."""
    blocks: list[Block] = [Paragraph(WHAT)]
    for name, draw in FIGURES.items():
        caption = _CAPTIONS[name]
        blocks.append(Picture(inline_svg(draw(results), f"algorithm-{name}", caption), caption))
    blocks += [*_tables(results), Paragraph(_CONSTANT)]
    return Section("algorithm", "The algorithm and other estimators", blocks)


def _tables(results: Mapping[str, Any]) -> list[Table]:
    """A table for each sparsity: a row for each estimator, a column for each noise variance."""
    tables = []
    config = results["config"]
    for sparsity, levels, lines in tables_by_sparsity(results["table"]):
        caption = (
            f"Excess risk at s = {sparsity}, d = {config['dim_x']}, n = {config['context_length']}; ± is one standard "
            f"error over {whole(config['n_prompts'])} prompts. The best step sizes and penalties were chosen on other "
            "prompts."
        )
        header = ("Estimator", *(f"σ² = {level:g}" for level in levels))
        tables.append(Table(caption, header, [(name, *cells) for name, cells in lines.items()], numeric=True))
    return tables
