"""A training step: prompts that are drawn for it, their loss and its gradients, and the update."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..tasks.sparse import SparsePrompts
from ..train.optimisers import AdamW
from ..train.stepping import StepByStep
from .config import SparseConfig
from .evaluate import loss_and_gradients
from .model import Transformer


class SparseStepper(StepByStep):
    """Steps of AdamW, with a step size that rises and falls and a gradient whose norm is limited.

    What a step does is a pure function of the configuration, the step's number and the state before it.
    """

    def __init__(self, config: SparseConfig, model: Transformer, optimizer: AdamW) -> None:
        super().__init__(model, optimizer)
        self._config = config
        self._model = model
        self._rule = optimizer
        task = config.task()
        self._tasks = {length: task.replace(context_length=length) for length in config.context_lengths()}

    def prompts(self, step: int) -> SparsePrompts:
        """Those of a step, all of one length."""
        weight = self._model.read_in
        return self._tasks[context_length(self._config, step)].sample(
            self._config.n_prompts,
            n_queries=self._config.n_queries,
            seed=self._config.seed,
            step=step,
            device=weight.device,
            dtype=weight.dtype,
        )

    def evaluate(self, step: int, stop: bool) -> tuple[float, float, dict[str, Tensor], bool]:
        """The loss, its gradients with their norm before that is limited, and `stop`; sets the step size."""
        loss, gradients = loss_and_gradients(self._model, self.prompts(step))
        norm = float(torch.nn.utils.get_total_norm(gradients.values()))
        limit = self._config.clip_norm
        if limit is not None and norm > limit:
            torch._foreach_mul_(list(gradients.values()), limit / norm)
        self._rule.learning_rate = self._config.learning_rate_at(step)
        return loss, norm, gradients, stop


def context_length(config: SparseConfig, step: int) -> int:
    """The context examples of a step's prompts, uniform over the lengths that there can be."""
    lengths = config.context_lengths()
    return lengths[int(np.random.default_rng((config.seed, step)).integers(len(lengths)))]
