"""The linear map of hidden states on which a few gradient-descent steps predict best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .descent import descended_predictions

_BATCH = 64  # prompts
UPDATES = 240
_TRIAL = (0.25, 0.01)  # of the updates for every start, and Adam's step size
_FITS = ((0.75, 0.005), (1.0, 0.02))  # for the best of them: some minima are lost by large steps, others far away
_CHECK_EVERY = 40
_PATIENCE = 3  # checks without a better validation error
_RANK_TOLERANCE = 1e-6  # of the greatest eigenvalue: directions in which tokens vary less are left out


class Examples(NamedTuple):
    """What a map is fitted on: representations of N prompts' tokens with their labels."""

    context: Tensor  # (N, n, W)
    labels: Tensor  # (N, n)
    queries: Tensor  # (N, Q, W)
    target: Tensor  # (N, Q)

    def take(self, prompts: Tensor) -> Examples:
        """Those of some prompts."""
        return Examples(*(part[prompts] for part in self))

    def mapped(self, matrix: Tensor) -> Examples:
        """With representations multiplied by a matrix (p, W)."""
        return self._replace(context=self.context @ matrix.T, queries=self.queries @ matrix.T)

    def squared_errors(self, steps: int, step_factor: float) -> Tensor:
        """(ŷ − target)² (N, Q) of gradient descent on the representations themselves."""
        predicted = descended_predictions(self.context, self.labels, self.queries, steps, step_factor)
        return (predicted - self.target).square()


def fit_map(
    examples: Examples,
    validation: Examples,
    n_features: int,
    steps: int,
    step_factor: float,
    *,
    starts: Sequence[Tensor],
    n_random_starts: int,
    seed: int,
    updates: int = UPDATES,
) -> Tensor:
    """The map P (p, W) that minimises the mean squared error of `steps` descent steps on features P h.

    Adam on minibatches, in coordinates in which the tokens' second moment is the identity. Every start gets a few
    steps, the best of them, as validation prompts tell, goes on until these stop improving; the map returned is the
    best that they saw. It is one of many: its left product with a rotation or a number predicts the same.

    Args:
        examples: to fit on.
        validation: other prompts.
        n_features: p.
        steps, step_factor: t and c of the descent.
        starts: maps (k, W) to start from; of other than p rows their best p-row approximation, or with small random
            rows added.
        n_random_starts: further ones.
        seed: of these and of the minibatches.
        updates: Adam's, at most.
    """
    generator = torch.Generator().manual_seed(seed)
    to_white, from_white = _whitening(examples)
    inside, outside = examples.mapped(to_white), validation.mapped(to_white)
    rank = len(to_white)
    candidates = [_with_rows(start @ from_white, n_features, generator) for start in starts]
    candidates += [_random(n_features, rank, generator).to(to_white) for _ in range(n_random_starts)]

    def descend(start: Tensor, share: float, learning_rate: float) -> tuple[float, Tensor]:
        n_updates = max(round(share * updates), 1)
        return _descend(start, inside, outside, steps, step_factor, n_updates, learning_rate, generator)

    _, best = min((descend(start, *_TRIAL) for start in candidates), key=lambda result: result[0])
    return min((descend(best, *rate) for rate in _FITS), key=lambda result: result[0])[1] @ to_white


def _descend(
    start: Tensor,
    examples: Examples,
    validation: Examples,
    steps: int,
    step_factor: float,
    n_updates: int,
    learning_rate: float,
    generator: torch.Generator,
) -> tuple[float, Tensor]:
    """The least validation error on the way of Adam from a start, and the map that had it."""
    matrix = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([matrix], lr=learning_rate)
    best, best_error, checks_since = start, _error(start, validation, steps, step_factor), 0
    for update, prompts in zip(range(1, n_updates + 1), _minibatches(len(examples.target), generator)):
        optimiser.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * update / (n_updates + 1))) / 2
        batch = examples.take(prompts.to(examples.target.device))
        optimiser.zero_grad()
        batch.mapped(matrix).squared_errors(steps, step_factor).mean().backward()
        optimiser.step()
        with torch.no_grad():
            matrix /= matrix.norm() / math.sqrt(len(matrix))  # which predicts the same
        if update % _CHECK_EVERY and update < n_updates:
            continue
        error = _error(matrix, validation, steps, step_factor)
        checks_since += 1
        if error < best_error:
            best, best_error, checks_since = matrix.detach().clone(), error, 0
        if checks_since == _PATIENCE:
            break
    return best_error, best


def _error(matrix: Tensor, examples: Examples, steps: int, step_factor: float) -> float:
    with torch.no_grad():
        return float(examples.mapped(matrix).squared_errors(steps, step_factor).mean())


def _minibatches(n_prompts: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Prompts in random order, over and over."""
    while True:
        yield from torch.randperm(n_prompts, generator=generator).split(_BATCH)


def _whitening(examples: Examples) -> tuple[Tensor, Tensor]:
    """The map (r, W) to coordinates in which the tokens' second moment is the identity, and the map (W, r) back."""
    tokens = torch.cat([examples.context, examples.queries], 1).flatten(0, 1)
    moment = (tokens.T @ tokens).double() / max(len(tokens), 1)
    values, vectors = torch.linalg.eigh(moment)
    kept = values > _RANK_TOLERANCE * values[-1]
    scale, basis = values[kept].sqrt(), vectors[:, kept]
    return (basis / scale).T.to(tokens), (basis * scale).to(tokens)


def _with_rows(start: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """A start's best approximation of some rank up to a rotation, or with small random rows, of norm √rows."""
    _, sizes, directions = torch.linalg.svd(start, full_matrices=False)
    matrix = (sizes[:, None] * directions)[:rows]
    matrix = matrix / matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny) * math.sqrt(rows)
    missing = _random(rows - len(matrix), matrix.shape[1], generator).to(matrix)
    return torch.cat([matrix, 0.1 * missing])


def _random(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / math.sqrt(columns)
