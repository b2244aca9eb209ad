"""The measured loss of trained weights at other context lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..spectral.lengths import check_lengths
from ..tasks import MultiTaskRegression
from .objective import check_arguments, ordered_sum, prompt_chunks


class LengthCurve(NamedTuple):
    """Mean losses and their standard errors at context lengths, each (lengths,)."""

    lengths: np.ndarray
    loss: np.ndarray
    standard_error: np.ndarray


@torch.no_grad()
def measure_lengths(
    task: MultiTaskRegression,
    kq: Tensor,
    ov: Tensor,
    lengths: Sequence[int],
    *,
    n_prompts: int = 4096,
    seed: int = 0,
) -> LengthCurve:
    """Mean loss ‖ŷ − y_q‖² of kq (H, D, D), ov (H, I, D) on n_prompts ≥ 2 drawn prompts at each context length.

    Prompts have the longest of the lengths (each from 1 on; the task's own does not matter), and the shorter contexts
    are their first examples. They are drawn in chunks of bounded memory, and are those of any other length curve with
    this seed. Use a seed that training did not. Raises ValueError or TypeError for bad lengths and as `evaluate` does.
    """
    wanted = check_lengths(lengths)
    if n_prompts < 2:
        raise ValueError(f"n_prompts must be 2 or more, for a standard error, got {n_prompts}")
    task = task.replace(context_length=max(wanted))
    check_arguments(task, kq, ov, "sampled", n_prompts)
    losses = torch.empty(len(wanted), n_prompts, dtype=torch.float64, device=kq.device)  # in one tensor, as `evaluate`
    for first, count in prompt_chunks(task, n_prompts, kq, "sampled"):
        prompts = task.sample(count, seed=seed, first_prompt=first, device=kq.device, dtype=kq.dtype)
        for row, length in zip(losses, wanted):
            error = ops.prompt_attention(prompts.context[:, :length], prompts.query, kq, ov) - prompts.target
            row[first : first + count] = error.square().sum(-1)
    means = torch.stack([ordered_sum(row) for row in losses]) / n_prompts
    squares = torch.stack([ordered_sum(row) for row in (losses - means[:, None]).square()])
    errors = (squares / (n_prompts - 1) / n_prompts).sqrt()
    return LengthCurve(np.array(wanted), means.cpu().numpy(), errors.cpu().numpy())
