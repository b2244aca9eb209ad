"""Which heads a transformer uses: how much its risk rises when one puts out zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...tasks.sparse import SparseRegression
from ..model import Transformer
from .conditions import Conditions, errors
from .draws import Purpose
from .record import Record
from .statistics import Estimate, mean, ratio

SIGNIFICANT = 3.0  # standard errors: a layer none of whose heads' rises is above is within noise


@dataclass(frozen=True, eq=False)
class HeadImportance(Record):
    """Rises in excess risk by masking one head, and their shares within a layer.

    Conditions are all pairs of C context lengths and V noise variances; "pooled" is the mean over them. Layers have up
    to H heads; entries of heads that a layer has not are NaN.
    """

    context_lengths: NDArray[np.int64]  # (C,)
    noise_variance: NDArray[np.float64]  # (V,)
    dominant: NDArray[np.int64]  # (layers,): the head with the greatest pooled rise on the selection prompts
    selection: Estimate  # (layers, H): pooled rises on the selection prompts
    # All below are of the measurement prompts, which are others.
    risk: Estimate  # (C, V) of the whole model
    risk_masked: Estimate  # (C, V, layers, H)
    rise: Estimate  # (C, V, layers, H), the mean of paired differences
    share: Estimate  # (C, V, layers, H) of the layer's rises, negative ones taken as 0; NaN where all are within noise
    pooled_risk: Estimate  # ()
    pooled_rise: Estimate  # (layers, H)
    pooled_share: Estimate  # (layers, H)

    def dominant_share(self, layer: int) -> tuple[float, float] | None:
        """Pooled share of a layer's dominant head and its standard error; None if the rises are within noise."""
        share = self.pooled_share[layer, self.dominant[layer]]
        return None if np.isnan(share.value) else share.at(())


def head_importance(
    model: Transformer,
    task: SparseRegression,
    *,
    n_prompts: int = 2000,
    n_queries: int = 4,
    seed: int,
    context_lengths: Sequence[int] | None = None,
    noise_variance: Sequence[float] | None = None,
) -> HeadImportance:
    """Mask each head in turn and measure the rise in excess risk over the whole model on the same prompts.

    The dominant head of a layer is chosen on prompts of its own, as the greatest of several noisy rises is too great
    on the prompts that it was the greatest on. Both sets have `n_prompts` prompts in each condition.

    Args:
        model: a transformer, trained or built.
        task: of the prompts.
        n_prompts: P ≥ 2 in each condition.
        n_queries: Q ≥ 1 of each prompt.
        seed: one that the model wasn't trained with.
        context_lengths, noise_variance: the conditions; the task's if None.

    Raises TypeError or ValueError on bad arguments.
    """
    conditions = Conditions.of(task, context_lengths, noise_variance, n_prompts, n_queries, seed)
    selection = mean(_pooled(_rises(model, conditions, Purpose.SELECTION)[1]))
    whole, rises = _rises(model, conditions, Purpose.IMPORTANCE)
    pooled = _pooled(rises)
    return HeadImportance(
        context_lengths=np.array(conditions.context_lengths, dtype=np.int64),
        noise_variance=np.array(conditions.noise_variance),
        dominant=np.nanargmax(selection.value, axis=-1),
        selection=selection,
        risk=mean(whole),
        risk_masked=mean(whole[:, :, None, None] + rises),
        rise=mean(rises),
        share=shares(rises),
        pooled_risk=mean(_pooled(whole)),
        pooled_rise=mean(pooled),
        pooled_share=shares(pooled),
    )


def shares(rises: NDArray[np.float64]) -> Estimate:
    """Shares of each head in the rises (…, H, P) of P prompts: negative mean rises count as 0.

    NaN for absent heads, and wherever no head's rise is above SIGNIFICANT standard errors. The standard error of a
    share that counts as 0 is that of the negative one in its place; all take which are negative as given.
    """
    rise = mean(rises)
    counted = np.where(rise.value[..., None] > 0, rises, 0)  # absent heads are NaN, not above 0
    share = ratio(rises, counted.sum(-2, keepdims=True))
    significant = (rise.value > SIGNIFICANT * rise.se).any(-1, keepdims=True)
    defined = significant & ~np.isnan(rise.value)
    return Estimate(np.where(defined, share.value.clip(min=0), np.nan), np.where(defined, share.se, np.nan))


def _rises(
    model: Transformer, conditions: Conditions, purpose: Purpose
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors of the whole model (C, V, P), and their rises with each head masked (C, V, layers, H, P)."""
    whole, rises = [], []
    for prompts in conditions.draws(model, purpose):
        unmasked = errors(model, prompts)
        rise = np.full((len(model.shapes), max(heads for heads, _ in model.shapes), len(unmasked)), np.nan)
        for layer, (heads, _) in enumerate(model.shapes):
            for head in range(heads):
                with model.masked([(layer, head)]):
                    rise[layer, head] = errors(model, prompts) - unmasked
        whole.append(unmasked)
        rises.append(rise)
    return conditions.gridded(whole), conditions.gridded(rises)


def _pooled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the conditions, which come first."""
    return np.asarray(values.mean((0, 1)))
