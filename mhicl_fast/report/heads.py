"""What the heads have become: semi-singular values, how decomposable the weights are, roles, attention, matrices."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from ..plots import examples_figure, values_figure, weights_figure
from ..spectral.basis.factored import conserved
from ..train.parameters import Factored
from ..train.wording import STATES, capitalised, number, uncertain
from .content import Block, Paragraph, Picture, Section, Table
from .drawing import inline_svg
from .findings import Findings
from .told import MEANINGS, roles_told

_QUERY_KEY = Markup("W<sub>Q</sub> W<sub>Q</sub>ᵀ − W<sub>K</sub> W<sub>K</sub>ᵀ")
_VALUE_OUTPUT = Markup("W<sub>V</sub> W<sub>V</sub>ᵀ − W<sub>O</sub>ᵀ W<sub>O</sub>")
_REGIMES = {"covers": "covers the context", "between": "in between", "condenses": "condenses on few"}
CAUSES = {
    "kq_off_diagonal": ("KQ off the diagonal", "symmetric part of the covariate block, in the shared basis"),
    "kq_antisymmetric": ("KQ antisymmetric", "antisymmetric part of the covariate block"),
    "kq_labels": ("KQ reading labels", "rows by which logits read labels"),
    "ov_off_diagonal": ("OV off the diagonal", "symmetric part of the label block, in the shared basis"),
    "ov_antisymmetric": ("OV antisymmetric", "antisymmetric part of the label block"),
    "ov_covariates": ("OV reading covariates", "columns by which outputs read covariates"),
}


def values(found: Findings) -> Section:
    """μ and ω along the run and at the end."""
    picture = Picture(
        inline_svg(values_figure(found.run), "values", "Semi-singular values of every head against flow time"),
        "Semi-singular values against flow time, read off the diagonals: μ above, ω below, a column for each task. "
        "Bands are the tasks' emergence.",
    )
    table = _final_values(found)
    return Section("values", "Semi-singular values", [picture] if table is None else [picture, table])


def _final_values(found: Findings) -> Table | None:
    """The values of the head that took each task, next to theory's."""
    if not found.owners:
        return None
    root = np.sqrt(found.task.support_sizes.numpy())
    header = ["Task", "Head", "ω√dᵢ", "μ", "Share μ·ω"]
    rows = [
        [
            f"task {task}",
            f"head {head}",
            number(scaled),
            number(mu),
            number(mu * scaled / root[task]),
        ]
        for (task, head), scaled, mu in zip(found.owners, *found.owned_values)
    ]
    caption = (
        "Values at the end of the head that took each task, with the sign that makes ω positive; d is the number of "
        "covariates that the task reads."
    )
    if found.reference is not None and found.reference[1].get("omega") is not None:
        name, state = found.reference
        header[3:3] = ["ω√dᵢ, theory"]
        header[5:5] = ["μ, theory"]
        for row, (task, _) in zip(rows, found.owners):
            row[3:3] = [number(state["omega"][task] * root[task])]
            row[5:5] = [number(state["mu"][task])]
        caption += f" Theory: {STATES[name]}."
    return Table(caption, header, rows, numeric=True)


def decomposition(found: Findings) -> Section:
    """How far the weights are from decomposable, by cause, and what the flow should have conserved."""
    values, departures = found.analysis.decomposition, found.analysis.departures
    bases = values.bases
    text = (
        "Weights are decomposable when one rotation of the covariates and one of the outputs, shared by all heads, "
        "make every KQ and OV diagonal. The rotation is found by joint diagonalisation; it does not mix different "
        "supports. "
    )
    if bases.identifiable:
        text += "The weights determine it: no two columns of the basis can be exchanged or turned into each other."
    else:
        text += (
            "The weights do not determine it fully: columns whose values agree in every head, or differ by no more "
            "than what is off the diagonals could make of equal ones, cannot be told apart. The columns are then the "
            "ones nearest to the coordinate axes."
        )
    rows = [
        ("all departures together", number(values.residual, 3), "0 is decomposable, 1 is nothing on the diagonals"),
        *((CAUSES[cause][0], number(size, 3), CAUSES[cause][1]) for cause, size in departures.items()),
        ("in the coordinate axes", number(found.summary["residual"], 3), "without a rotation, as recorded in training"),
    ]
    caption = "Distances from decomposable weights at the end, as parts of the weights' Frobenius norm."
    blocks: list[Block] = [Paragraph(text), Table(caption, ("Departure", "Relative norm", "What it is"), rows)]
    kept = _conserved(found)
    if kept is not None:
        blocks.append(kept)
    return Section("decomposition", "How decomposable the weights are", blocks)


def _conserved(found: Findings) -> Table | None:
    """The conserved matrices of factored weights at the start and at the end; None for combined weights."""
    if not isinstance(found.run.parameters, Factored):
        return None
    tensors = {name: tensor.detach().double() for name, tensor in found.run.parameters.tensors().items()}
    start, end = conserved(**found.config.start_parameters().tensors()), conserved(**tensors)
    rows = []
    for name, before, after, factors in (
        (_QUERY_KEY, start.query_key, end.query_key, ("w_q", "w_k")),
        (_VALUE_OUTPUT, start.value_output, end.value_output, ("w_v", "w_o")),
    ):
        norms = [float(np.linalg.norm(matrices)) for matrices in (before, after, after - before)]
        size = sum(float(tensors[factor].square().sum()) for factor in factors)
        rows.append((name, *(number(norm, 3) for norm in norms), number(norms[2] / size, 3)))
    caption = (
        "Matrices that gradient flow of the factors conserves: norms over all heads at the start and at the end, of "
        "the change, and of the change relative to the factors' own squared norm. "
    )
    if not found.config.follows_flow:
        caption += "Adam does not keep them."
    else:
        caption += "Steps of finite length change them a little, the more the noisier the gradients are."
    return Table(caption, ("Matrix", "Start", "End", "Change", "Relative change"), rows, numeric=True)


def roles(found: Findings) -> Section:
    """Which heads serve which tasks, and how."""
    roles = found.analysis.roles
    if roles is None:
        reason = Paragraph(f"Not told here: {found.analysis.notes['roles']}.")
        return Section("roles", "What the heads do", [reason])
    facts = [(what, text, MEANINGS[what]) for what, text in roles_told(roles)]
    serves = [
        [task for task in range(found.config.n_tasks) if head in roles.serving[task]]
        for head in range(len(roles.parts))
    ]
    rows = [
        (
            f"head {head}",
            ", ".join(f"task {task} ({number(roles.parts[head, task], 3)})" for task in tasks) or "none",
            number(float(roles.removal[head]), 3),
        )
        for head, tasks in enumerate(serves)
    ]
    blocks: list[Block] = [
        Table(
            "What each head serves, with its part μ·ω of the task in the shared basis, and by how much the "
            "leading-order loss rises when the head's output is silenced.",
            ("Head", "Serves", "Loss rises by"),
            rows,
        ),
        Table("Arrangements of heads that theory knows.", ("Arrangement", "Found", "What it is"), facts),
    ]
    return Section("roles", "What the heads do", blocks)


def examples(found: Findings) -> Section:
    """How many examples the heads attend to, measured and predicted."""
    analysis, length = found.analysis, found.config.context_length
    picture = Picture(
        inline_svg(examples_figure(found.run), "examples", "Effective examples of every head against flow time"),
        "Effective number of attended examples along the run, a mean over a few fixed prompts, and, where the weights "
        "are nearly diagonal and supports disjoint, the prediction from the values of the same instant.",
    )
    text = Markup(
        "A head that spreads its attention evenly attends to all L = {} examples; one that picks one example attends "
        "to 1. With logits of variance v = Σ<sub>j</sub> ω<sub>j</sub>² over the covariates, long contexts give "
        "L Π<sub>j</sub> (1 + 2 ω<sub>j</sub>²)<sup>−½</sup> on average over queries, which is L e<sup>−v</sup> for "
        "many covariates. This holds while v is below ½ log L = {}; past 2 log L = {} attention condenses on a few "
        "examples."
    ).format(length, number(0.5 * np.log(length), 3), number(2 * np.log(length), 3))
    measured = analysis.examples
    header = ["Head", "Measured"]
    rows = [
        [f"head {head}", uncertain(float(measured.mean[head]), float(measured.standard_error[head]))]
        for head in range(analysis.n_heads)
    ]
    blocks: list[Block] = [Paragraph(text), picture]
    if analysis.attention is None:
        blocks.append(Paragraph(f"No prediction: {analysis.notes['attention']}."))
    else:
        if "attention" in analysis.remarks:
            blocks.append(Paragraph(f"{capitalised(analysis.remarks['attention'])}."))
        header += ["Predicted", Markup("L e<sup>−v</sup>"), "v", "Regime"]
        spread = analysis.attention
        for head, row in enumerate(rows):
            row += [number(float(value[head]), 3) for value in (spread.examples, spread.leading, spread.attention)]
            row.append(_REGIMES[str(spread.regime[head])])
    caption = f"Effective examples at the end, over {measured.n_prompts} prompts, and predicted from the final values."
    blocks.append(Table(caption, header, rows, numeric=True))
    return Section("examples", "What the heads attend to", blocks)


def weights(found: Findings) -> Section:
    """The matrices themselves."""
    picture = Picture(
        inline_svg(weights_figure(found.run), "weights", "KQ and OV of every head as heat maps"),
        "KQ and OV of every head at the end. x are the covariates, y the labels. Under the flow of decomposable "
        "weights all but the two diagonals stays zero.",
    )
    return Section("weights", "The weights", [picture])
