"""The tables that commands print about measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...train.wording import align, uncertain
from ..analysis.assess import HeadImportance
from ..analysis.contents import LayerContents
from ..analysis.correspondence import Agreement, Correspondence
from ..analysis.probe import Probes
from ..analysis.prune import Comparison
from ..analysis.statistics import Estimate
from .config import run_name
from .experiments import Pruning
from .results import LoadedStudy
from .verdicts import FALSE, TRUE, UNDECIDED

_DECIDES = (FALSE, UNDECIDED, TRUE)  # the first of these that a check of a seed says
_ROUNDING = 1e-9  # what is below is 0 but for rounding


def importance_table(found: HeadImportance) -> str:
    """Risk, and a line for each layer: its dominant head, that one's share of the layer's rises, and all rises."""
    risk = [("noise variance", "excess risk"), *zip(_texts(found.noise_variance), _cells(found.risk[-1]))]
    rows = [("layer", "dominant head", "its share", "rise of risk by masking each head")]
    for layer, head in enumerate(found.dominant):
        share = found.dominant_share(layer)
        rises = [cell for cell in _cells(found.pooled_rise[layer]) if cell != "–"]
        rows.append(
            (str(layer + 1), str(head), "within noise" if share is None else uncertain(*share), "  ".join(rises))
        )
    return f"{align(risk)}\n\n{align(rows)}"


def pruning_table(found: Pruning) -> str:
    """The risks of all models at the largest n: mean over σ², relative to the full model, and by noise variance."""
    comparison = found.against["full"]
    kept = ", ".join(str(head) for head in found.dominant[1:])
    single = "" if "single" not in found.against else " / single"
    rows = [("model", "risk", "/ full", *([single.strip()] if single else []), *_noise_headers(comparison))]
    for row, name in enumerate(comparison.names):
        against = [uncertain(*each.pooled_ratio.at(row)) for each in found.against.values()]
        rows.append((name, uncertain(*comparison.pooled_risk.at(row)), *against, *_cells(comparison.risk[row, -1])))
    return f"{align(rows)}\n\nn = {max(comparison.context_lengths)}; heads kept in layers 2 on: {kept or 'none'}"


def probes_table(found: Probes) -> str:
    """The risk of t gradient steps on each source."""
    rows = [("features", *(f"{count} steps" if count != 1 else "1 step" for count in found.steps))]
    rows += [(source, *_cells(found.risk[row])) for row, source in enumerate(found.sources)]
    return f"{align(rows)}\n\nthe model itself: {uncertain(*found.model_risk.at(()))}"


def contents_table(found: LayerContents) -> str:
    """The share of each content's variance that states after each layer explain."""
    rows = [("R² after layer", *found.contents)]
    rows += [(str(layer), *_cells(found.pooled_r2[layer])) for layer in range(len(found.pooled_r2.value))]
    return align(rows)


def correspondence_table(found: Correspondence) -> str:
    """For each layer the step of either descent whose coefficients are most alike, with the cosine."""
    rows: list[tuple[str, ...]] = [
        ("after layer", "read-out's risk", "nearest step on r̂x", "cosine", "nearest step on x", "cosine")
    ]
    for layer in range(1, len(found.read_out_risk.value)):
        near = [cell for descent in (found.preprocessed, found.raw) for cell in _nearest(descent, layer)]
        rows.append((str(layer), uncertain(*found.read_out_risk.at(layer)), *near))
    return align(rows)


def study_table(study: LoadedStudy) -> str:
    """The risks of each number of heads and seed at the largest n, and the verdicts."""
    rows: list[tuple[str, ...]] = []
    for heads in study.study.heads:
        for seed, risk in study.risk.items():
            rows = rows or [("heads", "seed", *_noise_headers(risk))]
            name = run_name(heads, seed)
            if name in risk.names:
                rows.append((str(heads), str(seed), *_cells(risk.risk[risk.names.index(name), -1])))
    lines = [align(rows), "excess risk ± standard error over prompts"] if rows else ["no risks were measured"]
    if study.summary is not None:
        lines += ["", verdicts_table(study.summary["claims"])]
    return "\n".join(lines)


def verdicts_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """A line for each claim: whether it holds, and for each seed the number that decides, with what it should be."""
    rows = [("holds", "claim", "what decides, by seed (and what it should be)")]
    for claim in claims:
        judged = [check for check in claim["evidence"] if check["judged"] and check["value"] is not None]
        deciding: dict[int, Mapping[str, Any]] = {}
        for check in sorted(judged, key=lambda one: _DECIDES.index(one["holds"])):
            deciding.setdefault(check["seed"], check)
        decides = "; ".join(_decision(deciding[seed]) for seed in sorted(deciding))
        rows.append((claim["holds"], claim["claim"], decides))
    return align(rows)


def _decision(check: Mapping[str, Any]) -> str:
    value = uncertain(check["value"], check["se"] or 0.0) if abs(check["value"]) > _ROUNDING else "0"
    return f"{value} ({'>' if check['above'] else '<'} {check['bound']:.3g})"


def _nearest(descent: Agreement, layer: int) -> tuple[str, str]:
    cosine = descent.cosine.value[layer]
    best = max(range(1, len(cosine)), key=lambda step: cosine[step], default=0)
    return str(best), uncertain(*descent.cosine.at((layer, best)))


def _noise_headers(comparison: Comparison) -> list[str]:
    return [f"σ² = {level:g}, n = {comparison.context_lengths[-1]}" for level in comparison.noise_variance]


def _texts(values: Any) -> list[str]:
    return [f"{value:g}" for value in values]


def _cells(estimate: Estimate) -> list[str]:
    return [uncertain(float(value), float(se)) for value, se in zip(estimate.value, estimate.se)]
