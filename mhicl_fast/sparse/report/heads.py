"""Which heads the layers use, and what is left after pruning."""

from __future__ import annotations

import numpy as np

from ...report.content import Block, Paragraph, Picture, Section, Table
from ...report.drawing import inline_svg
from ..analysis.assess import SIGNIFICANT, HeadImportance
from ..analysis.statistics import Estimate
from ..figures.importance import dominance_figure, importance_figure
from ..figures.panels import heads_label
from ..figures.pruning import LABELS, pruning_figure
from .cells import CAPTION, over_seeds
from .findings import Findings


def importance(found: Findings) -> Section | None:
    """The map, the shares of the dominant heads, and a table of both; None where no model was assessed."""
    if not found.importance:
        return None
    caption = (
        "Layer × head maps: the rise in excess risk when a head puts out zeros, as a percentage of the sum of the "
        "layer's rises, pooled over σ². The framed head of a layer was chosen on other prompts as the one with the "
        f"greatest rise. Hatched: no rise of the layer is above {SIGNIFICANT:g} standard errors. Layers are counted "
        "from 1, heads from 0."
    )
    blocks: list[Block] = [
        Picture(inline_svg(importance_figure(found.importance, found.setting), "importance", caption), caption)
    ]
    several = {heads: seeds for heads, seeds in found.importance.items() if heads > 1}
    if several:
        caption = (
            "Share of the dominant head in its layer's importance, a point for each seed with bars of ± 2 standard "
            "errors over prompts, next to the share that each head would have if all mattered alike."
        )
        figure = dominance_figure(found.importance, found.setting)
        blocks.append(Picture(inline_svg(figure, "dominance", caption), caption))
        blocks.append(_shares(found))
    return Section("importance", "Which heads each layer uses", blocks)


def _shares(found: Findings) -> Table:
    """A row for each model and layer."""
    rows = []
    for heads, seeds in found.importance.items():
        for seed, measured in seeds.items():
            if heads > 1:
                rows += [_row(measured, layer, f"{heads_label(heads)}, seed {seed}") for layer in _layers(measured)]
    caption = (
        "The dominant head of each layer with its share, the least of the layer's shares, and 1/Σ share², the number "
        "of heads that matter. ± is one standard error over prompts."
    )
    header = ("Model, layer", "Dominant head", "Its share", "Least share", "Heads that matter")
    return Table(caption, header, rows, numeric=True)


def _row(measured: HeadImportance, layer: int, model: str) -> tuple[str, ...]:
    share = measured.pooled_share[layer]
    dominant = int(measured.dominant[layer])
    name = f"{model}, layer {layer + 1}"
    if np.isnan(share.value).all():
        return name, str(dominant), "within noise", "–", "–"
    least = int(np.nanargmin(share.value))
    shown = (over_seeds([share[head]]) for head in (dominant, least))
    return name, str(dominant), *shown, f"{1 / np.nansum(share.value**2):.1f}"


def _layers(measured: HeadImportance) -> range:
    return range(len(measured.dominant))


def pruning(found: Findings) -> Section | None:
    """Risks over σ² and n, and the table of ratios; None where nothing was pruned."""
    if not found.pruning:
        return None
    caption = (
        "Excess risk of models with all heads, of what pruning leaves of them, and of models with one head, on the "
        "same prompts. Above: over σ² at the greatest n; below: over n at the greatest σ². Points: seeds, with bars of "
        "± 2 standard errors over prompts; lines: their means."
    )
    kept = (
        "Pruning keeps all heads of the first layer and the dominant one of each later layer. As controls, the same "
        "with another head of each later layer, chosen at random, and with all but the dominant one. What is left is a "
        "smaller transformer; “trained on” is that after a brief training with smaller steps."
    )
    blocks: list[Block] = [
        Paragraph(kept),
        Picture(inline_svg(pruning_figure(found.pruning, found.setting), "pruning", caption), caption),
        _ratios(found),
    ]
    return Section("pruning", "What is left after pruning", blocks)


def _ratios(found: Findings) -> Table:
    """A row for each number of heads and way to prune."""
    rows = []
    for heads, seeds in found.pruning.items():
        each = [measured.against["full"] for measured in seeds.values()]
        for name in each[0].names:
            if name != "full" and all(name in one.names for one in each):
                shown = [_of(each, name, quantity) for quantity in ("pooled_risk", "pooled_ratio")]
                rows.append((f"{heads_label(heads)}: {LABELS[name]}", *shown))
    caption = f"Risk at the largest n, pooled over σ², and its ratio to that of the model with all heads. {CAPTION}"
    return Table(caption, ("Model", "Excess risk", "Over that with all heads"), rows, numeric=True)


def _of(each: list, name: str, quantity: str) -> str:  # type: ignore[type-arg]
    values: list[Estimate] = [getattr(one, quantity)[one.names.index(name)] for one in each]
    return over_seeds(values)
