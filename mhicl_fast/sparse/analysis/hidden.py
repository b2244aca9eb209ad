"""Hidden states of prompts' tokens, and what is compared with them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...tasks.sparse import SparsePrompts
from ..estimators.algorithm import preprocess
from ..evaluate import CHUNK
from ..model import Transformer
from .probe_fit import Examples
from .regression import regress


@torch.no_grad()
def hidden_examples(model: Transformer, layer: int, prompts: SparsePrompts) -> Examples:
    """The states after `layer` layers, of context (N, n, W) and queries (N, Q, W), with the labels."""
    n_queries = prompts.target.shape[1]
    states = [model.hidden_states(part, n_queries)[layer] for part in prompts.tokens().split(CHUNK)]
    context, queries = torch.cat(states).split([prompts.y.shape[1], n_queries], 1)
    return Examples(context, prompts.y, queries, prompts.target)


def raw_examples(prompts: SparsePrompts) -> Examples:
    """The covariates themselves."""
    return Examples(prompts.x, prompts.y, prompts.x_query, prompts.target)


def preprocessed_examples(prompts: SparsePrompts) -> Examples:
    """The covariates r̂_j x_j that the algorithm's first layer makes."""
    scale = preprocess(prompts.x, prompts.y)[:, None]
    return raw_examples(prompts)._replace(context=prompts.x * scale, queries=prompts.x_query * scale)


def regression_starts(examples: Examples, prompts: SparsePrompts) -> list[Tensor]:
    """Maps (d, W) of the examples' context to r̂_j x_j, to |r̂_j| x_j, on which gradient descent goes the same way, and
    to x_j: places to start a fit from."""
    scaled = preprocessed_examples(prompts).context
    outputs = torch.cat([scaled, scaled.abs() * prompts.x.sign(), prompts.x], 2)
    return list(regress(examples.context.flatten(0, 1), outputs.flatten(0, 1)).split(prompts.x.shape[2]))
