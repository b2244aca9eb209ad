"""Short texts for the parts of a task that are arrays, so that a configuration stays flat and can be typed."""

from __future__ import annotations

import json

import torch
from torch import Tensor


def parse_support(text: str, dim_x: int, n_tasks: int) -> Tensor:
    """The (I, d) mask that `text` stands for.

    "all": every task reads every covariate; "blocks": task i reads ⌊i d/I⌋ ≤ j < ⌊(i+1) d/I⌋; otherwise one range
    first:end per task, separated by commas, several for one task joined by "+" ("0:4,2:6", "0:2+6:8,2:6").
    Raises ValueError otherwise.
    """
    mask = torch.zeros(n_tasks, dim_x, dtype=torch.bool)
    if text == "all":
        return ~mask
    if text == "blocks":
        for task in range(n_tasks):
            mask[task, task * dim_x // n_tasks : (task + 1) * dim_x // n_tasks] = True
        return mask
    entries = text.split(",")
    if len(entries) != n_tasks:
        raise ValueError(f"support must be all, blocks or {n_tasks} ranges such as 0:4, one per task, got {text!r}")
    for task, entry in enumerate(entries):
        for piece in entry.split("+"):
            first, _, end = piece.partition(":")
            if not (first.strip().isdigit() and end.strip().isdigit() and int(first) < int(end) <= dim_x):
                raise ValueError(f"a range of support must be first:end with 0 ≤ first < end ≤ {dim_x}, got {piece!r}")
            mask[task, int(first) : int(end)] = True
    return mask


def parse_signal(text: str, support: Tensor) -> Tensor:
    """Signal variances (I,): one number, one per task separated by commas, or "1/d" for 1 over the support's size."""
    if text == "1/d":
        return 1 / support.sum(1).to(torch.float64)
    try:
        numbers = [float(entry) for entry in text.split(",")]
    except ValueError:
        raise ValueError(f"signal must be a number, numbers separated by commas, or 1/d, got {text!r}") from None
    n_tasks = support.shape[0]
    if len(numbers) not in (1, n_tasks):
        raise ValueError(f"signal must be 1 or {n_tasks} numbers, got {len(numbers)}")
    return torch.tensor(numbers, dtype=torch.float64).expand(n_tasks).clone()


def parse_covariance(text: str, dim_x: int) -> Tensor | None:
    """Σ (d, d), None for "identity"; "ar:ρ" has entries ρ^|j−k|; a JSON matrix stands for itself."""
    if text == "identity":
        return None
    if text.startswith("ar:"):
        try:
            rho = float(text[3:])
        except ValueError:
            rho = float("nan")
        if not -1 < rho < 1:
            raise ValueError(f"covariance=ar:ρ needs −1 < ρ < 1, got {text[3:]!r}")
        index = torch.arange(dim_x, dtype=torch.float64)
        return rho ** (index[:, None] - index).abs()
    try:
        return torch.tensor(json.loads(text), dtype=torch.float64)
    except (ValueError, TypeError):
        raise ValueError(f"covariance must be identity, ar:ρ or a JSON matrix, got {text!r}") from None
