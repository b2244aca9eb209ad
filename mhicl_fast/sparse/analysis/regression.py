"""Linear regression of many outputs on many inputs."""

from __future__ import annotations

import torch
from torch import Tensor

_PENALTY = 1e-9  # of the inputs' mean square: enough where inputs depend on each other, and nothing elsewhere


def regress(inputs: Tensor, outputs: Tensor) -> Tensor:
    """The matrix (K, W) that maps inputs (M, W) to outputs (M, K) with least squared error and a tiny ridge penalty.

    Computed in float64, returned in the inputs' dtype.
    """
    a, b = inputs.double(), outputs.double()
    moment = a.T @ a
    moment.diagonal().add_(_PENALTY * moment.trace() / max(len(moment), 1) + torch.finfo(moment.dtype).tiny)
    return torch.linalg.solve(moment, a.T @ b).T.to(inputs)
