"""What hidden states hold of the covariates as the algorithm preprocesses them, r̂_j x_j."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...tasks.sparse import SparsePrompts, SparseRegression
from ..model import Transformer
from .draws import Purpose, draw
from .hidden import hidden_examples, preprocessed_examples
from .probe import best_maps
from .probe_fit import UPDATES
from .record import Record
from .regression import regress
from .statistics import Estimate, correlation, ratio, stacked

CONTENTS = ("r̂x", "|r̂|x", "x")


@dataclass(frozen=True, eq=False)
class LayerContents(Record):
    """How much of K contents, for each of d coordinates, the states of context tokens hold after 0 … L layers.

    The contents are r̂_j x_ij, |r̂_j| x_ij, on which gradient descent goes the same way, and x_ij. Before the first layer
    the state is the token (x, y) but for a linear map: what it has of the contents is what others are compared with.
    """

    contents: tuple[str, ...]  # K
    r2: Estimate  # (L + 1, K, d): share of the variance that linear regression on the state explains
    pooled_r2: Estimate  # (L + 1, K): of the variance of all coordinates together
    probe_steps: int  # t, of the maps P below
    probed: (
        Estimate  # (L + 1, K, d): correlation of the contents with P h, turned by the rotation that aligns them best
    )
    pooled_probed: Estimate  # (L + 1, K): of all coordinates together


def layer_contents(
    model: Transformer,
    task: SparseRegression,
    *,
    probe_steps: int = 5,
    step_factor: float = 1.0,
    n_fit: int = 4096,
    n_validation: int = 512,
    n_test: int = 2000,
    n_queries: int = 8,
    updates: int = UPDATES,
    seed: int,
) -> LayerContents:
    """Regress the contents on states, and correlate them with the features on which gradient descent predicts best.

    Regressions, maps and rotations are fitted on prompts of their own, all is measured on others. A map P (d, W) is
    that of `probe.probe` for `probe_steps` steps; any rotation of it predicts the same, so features are compared after
    the rotation that brings them nearest to a content, for each content its own. Arguments and errors are those of
    `probe.probe`.
    """
    sizes = {Purpose.FITTING: n_fit, Purpose.VALIDATION: n_validation, Purpose.TESTING: n_test}
    fit, validation, test = (draw(task, model, purpose, size, n_queries, seed) for purpose, size in sizes.items())
    wanted, truth = contents(fit), contents(test)
    explained, probed = [], []
    for layer in range(len(model.shapes) + 1):
        source = partial(hidden_examples, model, layer)
        inside, outside = source(fit).context, source(test).context
        matrix = best_maps(
            source,
            fit,
            validation,
            [probe_steps],
            n_features=task.dim_x,
            step_factor=step_factor,
            updates=updates,
            seed=seed,
        )[probe_steps]
        for content, true in zip(wanted, truth):
            flat = content.flatten(0, 1)
            explained.append((outside @ regress(inside.flatten(0, 1), flat).T, true))
            turned = matrix.T @ _rotation((inside @ matrix.T).flatten(0, 1), flat)
            probed.append((outside @ turned, true))
    shape = (len(model.shapes) + 1, len(CONTENTS))
    return LayerContents(
        contents=CONTENTS,
        r2=stacked([_explained(*pair) for pair in explained], shape),
        pooled_r2=stacked([_explained(*map(_together, pair))[0] for pair in explained], shape),
        probe_steps=probe_steps,
        probed=stacked([_correlation(*pair) for pair in probed], shape),
        pooled_probed=stacked([_correlation(*map(_together, pair))[0] for pair in probed], shape),
    )


def contents(prompts: SparsePrompts) -> Tensor:
    """CONTENTS of the context's tokens, (K, N, n, d)."""
    scaled = preprocessed_examples(prompts).context
    return torch.stack([scaled, scaled.abs() * prompts.x.sign(), prompts.x])


def _rotation(features: Tensor, content: Tensor) -> Tensor:
    """R (p, d) that minimises ‖c F R − Y‖ for features F (M, p) and content Y (M, d) with the best number c: U Vᵀ of
    the singular value decomposition of FᵀY."""
    left, _, right = torch.linalg.svd((features.T @ content).double(), full_matrices=False)
    return (left @ right).to(features)


def _together(parts: Tensor) -> Tensor:
    """All coordinates of (N, n, d) as one: (N, n·d, 1)."""
    return parts.flatten(1)[..., None]


def _explained(predicted: Tensor, true: Tensor) -> Estimate:
    """1 − E(ŷ − y)²/E y² of predictions (N, n, d) for each coordinate: the contents' means are 0."""
    squares = ((part.double().square().sum(1).T).cpu().numpy() for part in (predicted - true, true))
    missed = ratio(*squares)
    return Estimate(1 - missed.value, missed.se)


def _correlation(first: Tensor, second: Tensor) -> Estimate:
    """Of variables (N, n, d), for each coordinate."""
    return correlation(*(part.movedim(2, 0).double().cpu().numpy() for part in (first, second)))
