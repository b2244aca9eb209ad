"""Everything that can be measured on trained weights, next to what theory says: one call, for a run or any weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..spectral import ShortContextWarning, Theory, theory
from ..spectral._inputs import has_identity_covariance
from ..spectral.attention import AttentionSpread, effective_examples, effective_examples_of_weights
from ..spectral.basis.decompose import Decomposition, decompose, departures
from ..spectral.lengths import LengthPrediction, length_generalisation, length_generalisation_of_weights
from ..spectral.roles import HeadRoles, head_roles
from ..tasks import MultiTaskRegression
from ..train.lengths import LengthCurve, measure_lengths
from ..train.loaded import LoadedRun
from ..train.objective import Evaluation, evaluate
from .lines import analysis_lines

_BLOCKS = "the covariate block of KQ and the label block of OV"
T = TypeVar("T")

LENGTH_FACTORS = (0.25, 0.5, 1, 2, 4)  # of the task's own context length, where `analyse` is not told lengths
_PROBE_TOKENS = 1 << 18  # context tokens for the effective examples, between the two numbers of prompts below
_FEWEST_PROBES, _MOST_PROBES = 64, 1024


class MeasuredExamples(NamedTuple):
    """N_eff = 1/Σ_l p_l² of every head, averaged over n_prompts prompts: mean and standard error, each (H,)."""

    mean: np.ndarray
    standard_error: np.ndarray
    n_prompts: int


@dataclass(frozen=True, eq=False)
class Analysis:
    """Measurements on the weights kq (H, D, D), ov (H, I, D) and predictions for them. Printed, it is a table.

    loss: mean squared error summed over tasks, with its standard error, over n_prompts prompts. decomposition: the
    semi-singular values in the shared basis; departures: how far the weights are from decomposable, by cause. roles:
    what the heads do. examples: how many context examples each head attends to, measured; attention: predicted.
    lengths: loss at other context lengths, measured; predicted_lengths: by order in 1/L, from the semi-singular values.
    theory: limits, optima and Bayes risk. What does not apply is None or left out, and `notes` says why, by field.

    Predictions are from the semi-singular values; for covariances other than the identity, where these are not enough,
    they are from the covariate blocks of KQ and the label blocks of OV, as `remarks` says, by field.
    """

    task: MultiTaskRegression
    n_heads: int
    loss: Evaluation
    n_prompts: int
    decomposition: Decomposition
    departures: dict[str, float]
    roles: HeadRoles | None
    examples: MeasuredExamples
    attention: AttentionSpread | None
    lengths: LengthCurve
    length_prompts: int
    predicted_lengths: dict[str, LengthPrediction]
    theory: Theory
    notes: dict[str, str]
    remarks: dict[str, str]

    @property
    def length_source(self) -> str:
        """What `predicted_lengths` are computed from."""
        return self.remarks.get("predicted_lengths", "the measured semi-singular values")

    def __str__(self) -> str:
        return analysis_lines(self)


def analyse(
    task: MultiTaskRegression,
    kq: Tensor,
    ov: Tensor,
    *,
    n_prompts: int = 16384,
    lengths: Sequence[int] | None = None,
    length_prompts: int = 4096,
    seed: int = 0,
    loss: Evaluation | None = None,
) -> Analysis:
    """Measure any weights kq (H, D, D), ov (H, I, D), float32 or float64, on `task`, next to theory; see `Analysis`.

    n_prompts ≥ 2 prompts for the loss, length_prompts ≥ 2 at each of `lengths` (default: from a quarter of the task's
    context length to four times it). `seed` should be one that training did not use. `loss`: an evaluation with
    n_prompts prompts that was made already, which is then not repeated. Raises ValueError or TypeError for weights of
    other shapes or types, as `population_loss` does, and for lengths that are not whole numbers from 1 on.
    """
    _check_arguments(task, kq, ov, n_prompts)
    kq, ov = kq.detach(), ov.detach()
    loss = loss or evaluate(task, kq, ov, n_prompts, seed=seed)
    values = decompose(kq, ov, task.dim_x, support=task.support, signal=task.signal)
    notes: dict[str, str] = {}

    def attempt(name: str, compute: Callable[[], T]) -> T | None:
        """What theory says, or None with the reason in the notes where it says nothing."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ShortContextWarning)
                return compute()
        except ValueError as error:
            notes[name] = str(error)
            return None

    if lengths is None:
        lengths = sorted({max(1, round(factor * task.context_length)) for factor in LENGTH_FACTORS})
    curve = measure_lengths(task, kq, ov, lengths, n_prompts=length_prompts, seed=seed)
    if has_identity_covariance(task):
        predict_lengths = partial(length_generalisation, task, values.mu, values.omega, lengths)
        predict_attention = partial(effective_examples, task, values.omega)
        remarks = {}
    else:
        predict_lengths = partial(length_generalisation_of_weights, task, *_known_blocks(task, kq, ov), lengths)
        predict_attention = partial(effective_examples_of_weights, task, _known_blocks(task, kq, ov)[0])
        remarks = {
            "attention": f"predictions are from {_BLOCKS}, with v = ‖Aᵀ W A‖² for covariates of covariance A Aᵀ",
            "predicted_lengths": _BLOCKS,
        }
    predicted = {
        order: attempt(f"predicted_lengths, {order} order", partial(predict_lengths, order=order))
        for order in ("leading", "first")
    }
    return Analysis(
        task=task,
        n_heads=len(kq),
        loss=loss,
        n_prompts=n_prompts,
        decomposition=values,
        departures=departures(kq, ov, values),
        roles=attempt("roles", partial(_roles, task, values)),
        examples=measure_examples(task, kq, seed=seed),
        attention=attempt("attention", predict_attention),
        lengths=curve,
        length_prompts=length_prompts,
        predicted_lengths={order: curve for order, curve in predicted.items() if curve is not None},
        theory=theory(task, len(kq)),
        notes=notes,
        remarks=remarks,
    )


def _roles(task: MultiTaskRegression, values: Decomposition) -> HeadRoles:
    if not has_identity_covariance(task):
        raise ValueError("known for covariates whose covariance is the identity only")
    return head_roles(task, values.mu, values.omega)


def _known_blocks(task: MultiTaskRegression, kq: Tensor, ov: Tensor) -> tuple[Tensor, Tensor]:
    """The weights without the blocks that theory's closed forms leave out: logits that read labels, outputs that read
    covariates."""
    kq, ov, d = kq.clone(), ov.clone(), task.dim_x
    kq[:, d:, :d] = 0
    ov[:, :, :d] = 0
    return kq, ov


def _check_arguments(task: MultiTaskRegression, kq: Tensor, ov: Tensor, n_prompts: int) -> None:
    """What no function called later would say as clearly."""
    if not isinstance(task, MultiTaskRegression):
        raise TypeError(f"task must be a MultiTaskRegression (of a run: run.config.task()), got {type(task).__name__}")
    for name, weights in (("kq", kq), ("ov", ov)):
        if not isinstance(weights, Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(weights).__name__}")
    if isinstance(n_prompts, bool) or not isinstance(n_prompts, int):
        raise TypeError(f"n_prompts must be an integer, got {n_prompts!r}")
    if n_prompts < 2:
        raise ValueError(f"n_prompts must be 2 or more, for a standard error, got {n_prompts}")


def analyse_run(run: LoadedRun) -> Analysis:
    """The analysis of a finished run's final weights, on prompts that it did not train on, with its own evaluation."""
    if run.summary is None:
        raise ValueError(f"the run in {run.path} is not finished")
    kq, ov = run.parameters.to_combined()
    done = Evaluation(run.summary["eval_loss"], run.summary["eval_loss_se"])
    config = run.config
    return analyse(config.task(), kq, ov, n_prompts=config.eval_prompts, seed=config.evaluation_seed, loss=done)


@torch.no_grad()
def measure_examples(task: MultiTaskRegression, kq: Tensor, *, seed: int) -> MeasuredExamples:
    """Effective number of context examples of each head of kq (H, D, D), over some hundred drawn prompts."""
    n_prompts = min(max(_PROBE_TOKENS // task.context_length, _FEWEST_PROBES), _MOST_PROBES)
    counts = []
    for first in range(0, n_prompts, _FEWEST_PROBES):
        size = min(_FEWEST_PROBES, n_prompts - first)
        prompts = task.sample(size, seed=seed, first_prompt=first, device=kq.device, dtype=kq.dtype)
        _, overlaps = ops.prompt_moments(prompts.context, prompts.query, kq)
        counts.append(1 / overlaps.diagonal(dim1=1, dim2=2).double())
    each = torch.cat(counts)  # (N, H)
    error = each.std(0) / n_prompts**0.5
    return MeasuredExamples(each.mean(0).cpu().numpy(), error.cpu().numpy(), n_prompts)
