"""The same escape in real attention: weights from a start, and gradient descent on drawn prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mhicl_fast import spectral
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Factored, GradientFlow, Objective, pull_back

RECORDS = 200


class Training(NamedTuple):
    """A run: name, flow times (T,), losses (T,) averaged over the steps since the last record, smallest μ_i^h (T,)."""

    name: str
    t: np.ndarray
    loss: np.ndarray
    lowest_mu: np.ndarray


def weights(
    task: MultiTaskRegression, v: tuple[np.ndarray, np.ndarray], kappa: tuple[np.ndarray, np.ndarray]
) -> Factored:
    """Attention in float32, scale 1, with (v_O, v_V) and (κ_Q, κ_K), each (H, I), on its projections' diagonals."""
    heads, d, dim = len(v[0]), task.dim_x, task.dim
    w_q, w_k, w_v = torch.zeros(3, heads, dim, dim)
    w_o = torch.zeros(heads, task.n_tasks, dim)
    reads = np.asarray(task.support, dtype=float)
    for matrix, values in ((w_q, kappa[0]), (w_k, kappa[1])):
        matrix[:, :d, :d] = torch.diag_embed(torch.as_tensor(values @ reads))
    w_o[:, :, d:] = torch.diag_embed(torch.as_tensor(v[0]))
    w_v[:, d:, d:] = torch.diag_embed(torch.as_tensor(v[1]))
    return Factored(w_q, w_k, w_v, w_o, scale=1.0)


def train(name: str, parameters: Factored, objective: Objective, step_size: float, t_end: float) -> Training:
    """Gradient descent on fresh prompts at every step up to flow time `t_end`."""
    flow = GradientFlow(step_size, step_cap=0.05)
    rows, losses, t, step = [], [], 0.0, 0
    while t < t_end:
        kq, ov = parameters.to_combined()
        loss, *gradients = objective(kq, ov, step)
        losses.append(loss)
        t += flow.step(parameters.tensors(), pull_back(parameters, *gradients))
        step += 1
        if t >= t_end * (len(rows) + 1) / RECORDS:
            rows.append((t, np.mean(losses), spectral.diagonal(kq, ov, objective.task).mu.min()))
            losses.clear()
    return Training(f"{name} ({step} steps)", *np.array(rows).T)
