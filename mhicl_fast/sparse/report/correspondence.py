"""The first layer against the algorithm's preprocessing, and later layers against its gradient steps."""

from __future__ import annotations

from markupsafe import Markup

from ...report.content import Block, Paragraph, Picture, Section, Table
from ...report.drawing import inline_svg
from ..analysis.correspondence import Correspondence
from ..figures.correspondence import contents_figure, nearest_steps, steps_figure
from ..figures.panels import heads_label, listed
from .cells import CAPTION, over_seeds
from .findings import Findings


def correspondence(found: Findings) -> Section | None:
    """What states hold of r̂x, and what gradient steps layers are near to; None where neither was measured."""
    blocks: list[Block] = []
    if found.contents:
        blocks += _contents(found)
    if found.correspondence:
        blocks += _steps(found)
    return Section("correspondence", "Layers and the algorithm", blocks) if blocks else None


def _contents(found: Findings) -> list[Block]:
    first = listed(found.contents)[0]
    how = Markup(
        "The algorithm's first layer turns the covariates x<sub>j</sub> into r̂<sub>j</sub>x<sub>j</sub>; with "
        "|r̂<sub>j</sub>|x<sub>j</sub> gradient descent goes the same way. If a trained first layer does this, the "
        "states after it hold these products, which the token (x, y) before it does not."
    )
    caption = (
        "Above: R² of linear regressions of r̂x, |r̂|x and x on the hidden states of context tokens, on other "
        f"prompts. Below: correlation of the features P h, on which {first.probe_steps} gradient steps predict best, "
        "with the same after the rotation that brings them nearest. Over the layers passed, all coordinates "
        "together. Points: seeds, with bars of ± 2 standard errors over prompts; lines: their means."
    )
    rows = []
    for heads, seeds in found.contents.items():
        for k, content in enumerate(first.contents):
            for name, quantity in (("R²", "pooled_r2"), ("correlation", "pooled_probed")):
                each = [getattr(one, quantity)[:, k] for one in seeds.values()]
                cells = [over_seeds(one[layer] for one in each) for layer in range(len(each[0].value))]
                rows.append((f"{heads_label(heads)}: {name}, {content}", *cells))
    header = ("", *(f"{layer} layers" if layer != 1 else "1 layer" for layer in range(len(first.pooled_r2.value))))
    return [
        Paragraph(how),
        Picture(inline_svg(contents_figure(found.contents, found.setting), "contents", caption), caption),
        Table(f"What the states hold after each number of layers. {CAPTION}", header, rows, numeric=True),
    ]


def _steps(found: Findings) -> list[Block]:
    how = (
        "A prediction is read off the states after each layer by regression, and its implied coefficients ŵ = ∂ŷ/∂x "
        "are compared with those of gradient descent after t steps, on the preprocessed covariates and on raw ones."
    )
    caption = (
        "Cosine of the coefficients that layers imply with those of gradient descent, over its steps; the same "
        "number of steps need not be the nearest. Points: seeds, with bars of ± 2 standard errors over prompts; "
        "lines: their means."
    )
    rows = [
        _row(f"{heads_label(heads)}, seed {seed}, layer {layer}", one, layer)
        for heads, seeds in found.correspondence.items()
        for seed, one in seeds.items()
        for layer in range(1, len(one.raw.cosine.value))
    ]
    header = ("After", "Nearest t, r̂x", "Cosine", "Nearest t, x", "Cosine", "Risk of the read-out")
    table = "The nearest number of steps by cosine, for each model and layer. ± is one standard error over prompts."
    return [
        Paragraph(how),
        Picture(inline_svg(steps_figure(found.correspondence, found.setting), "steps", caption), caption),
        Table(table, header, rows, numeric=True),
    ]


def _row(name: str, one: Correspondence, layer: int) -> tuple[str, ...]:
    cells: list[str] = []
    for agreement in (one.preprocessed, one.raw):
        steps, _ = nearest_steps(agreement, one.steps)[layer]
        cells += [str(steps), over_seeds([agreement.cosine[layer, list(one.steps).index(steps)]])]
    return name, *cells, over_seeds([one.read_out_risk[layer]])
