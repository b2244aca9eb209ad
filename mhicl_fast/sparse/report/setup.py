"""What is studied, how, and how training went."""

from __future__ import annotations

from ...report.content import Block, Paragraph, Picture, Section, Table
from ...report.drawing import inline_svg
from ...train.wording import count, number, several, whole
from ..figures.panels import heads_label, listed
from ..figures.training import training_figure, trainings_figure
from ..table import zero_risk
from .findings import Findings

WHAT = (
    "Transformers with several layers of multi-head attention are trained to solve sparse linear regression in "
    "context, and then taken apart: which heads each layer uses, what is left after pruning, what hidden states "
    "hold, and whether the layers do what the preprocess-then-optimise algorithm does. Claims under examination: "
    "the first layer needs all its heads and later layers are dominated by one; the first layer preprocesses the "
    "context, and later layers take simple optimisation steps on it; this algorithm beats gradient descent and "
    "ridge regression."
)
OWN = "The settings are this project's own: those of the study that made these claims are not public."


def setup(found: Findings) -> Section:
    """Task, models and training."""
    c = found.config
    runs = listed(found.runs)
    lengths = c.context_lengths()
    drawn = f"{lengths[0]} to {lengths[-1]}, drawn for each step" if len(lengths) > 1 else str(lengths[0])
    norm = "layer norm" if c.layer_norm else "no layer norm"
    network = f"MLP of {c.mlp_width} hidden units" if c.mlp_width else "no MLP"
    covariance = "Id" if c.covariance == "identity" else c.covariance
    queries = "query" if c.n_queries == 1 else "queries"
    rows = [
        ("Prompt", f"x ~ N(0, {covariance}), y = w·x + ξ, and queries x without labels"),
        ("Covariates d, non-zero coefficients s", f"{c.dim_x}, {c.sparsity}; support uniform, values N(0, 1)"),
        ("Context examples n", drawn),
        ("Noise variance σ²", ", ".join(f"{level:g}" for level in c.noise_variances())),
        ("Excess risk", f"E (ŷ − w·x)² over queries; predicting 0 has {number(zero_risk(c))}"),
        ("Layers, width", f"{c.n_layers}, {c.width}"),
        ("Heads", f"{several(found.runs)} in each layer, which share the width"),
        ("Layer", f"{c.activation} attention to the context, {norm}, {network}"),
        ("Models", f"{len(runs)}: seeds {', '.join(map(str, sorted({run.config.seed for run in runs})))}"),
        ("Training", f"{count(c.steps, 'step')} of AdamW, step size up to {c.learning_rate:g}, "
         f"{whole(c.n_prompts)} fresh prompts with {c.n_queries} {queries} each"),
        ("Loss", "mean of (ŷ − w·x)² over queries: against labels without noise, which has the same minimiser"),
    ]  # fmt: skip
    caption = "What was trained. All other settings are at the end."
    blocks: list[Block] = [Paragraph(WHAT), Paragraph(OWN), Table(caption, ("What", "Value"), rows)]
    unfinished = [run for run in runs if run.summary is None]
    if unfinished:
        names = ", ".join(f"{heads_label(run.config.n_heads)}, seed {run.config.seed}" for run in unfinished)
        blocks.append(Paragraph(f"Not finished, and shown as far as they have come: {names}."))
    blocks.append(_training(found))
    return Section("setup", "What is studied", blocks)


def _training(found: Findings) -> Picture:
    runs = listed(found.runs)
    each = f"{whole(found.config.record_prompts)} prompts for each σ²"
    where = f"at n = {found.config.context_length} on {each}, the same at all steps"
    if len(runs) == 1:
        figure = training_figure(runs[0], found.setting)
        caption = f"Excess risk while the model trains, {where}."
    else:
        figure = trainings_figure(found.runs, found.setting)
        caption = f"Excess risk while the models train, mean over σ², {where}. Darker lines have more heads."
    return Picture(inline_svg(figure, "training", caption), caption)
