"""What a few gradient steps make of the hidden states after each layer."""

from __future__ import annotations

from ...report.content import Block, Paragraph, Picture, Section, Table
from ...report.drawing import inline_svg
from ..figures.panels import heads_label, listed
from ..figures.probing import probing_figure, source_label
from .cells import CAPTION, over_seeds
from .findings import Findings


def probes(found: Findings) -> Section | None:
    """Risk over t for each layer, and the same as a table; None where no model was probed."""
    if not found.probes:
        return None
    first = listed(found.probes)[0]
    how = (
        "After each number of layers a linear map P of the frozen hidden states is fitted so that t steps of "
        "gradient descent on (P h, y) predict queries best, and measured on other prompts. The same for P x, a map "
        "of the covariates; x and r̂x are the covariates as they are and as the algorithm preprocesses them, "
        f"without a fit. Steps have size {first.step_factor:g} / λ, with λ the greatest eigenvalue of the features' "
        "FᵀF/n in each prompt."
    )
    caption = (
        "Excess risk of gradient descent on probed features over its steps, pooled over σ². Points: seeds, with bars "
        "of ± 2 standard errors over prompts; lines: their means; orange: the model itself, a line for each seed."
    )
    blocks: list[Block] = [
        Paragraph(how),
        Picture(inline_svg(probing_figure(found.probes, found.setting), "probing", caption), caption),
        _table(found),
    ]
    return Section("probing", "Gradient steps on hidden states", blocks)


def _table(found: Findings) -> Table:
    """A row for each number of heads and source."""
    rows = []
    steps = listed(found.probes)[0].steps
    for heads, seeds in found.probes.items():
        each = list(seeds.values())
        for k, source in enumerate(each[0].sources):
            cells = [over_seeds(one.risk[k, t] for one in each) for t in range(len(steps))]
            rows.append((f"{heads_label(heads)}: {source_label(source)}", *cells))
        rows.append(
            (f"{heads_label(heads)}: the model itself", *[over_seeds(one.model_risk for one in each)] * len(steps))
        )
    header = ("Features", *(f"t = {t}" for t in steps))
    return Table(f"Excess risk after t gradient steps, pooled over σ². {CAPTION}", header, rows, numeric=True)
