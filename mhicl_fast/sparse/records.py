"""What metrics.csv holds of a run: the loss of each recorded step, and the risk on prompts that stay the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..processes import ALONE
from ..train.checkpoints import Checkpoint
from ..train.clock import Clock
from ..train.folder import RunFolder
from ..train.recorder import Observer, Recorder, State
from ..train.stepping import Span
from .config import SparseConfig
from .evaluate import measure_risk
from .model import Transformer
from .stepping import context_length

_SCALARS = ("step", "learning_rate", "prompts_seen", "context_length", "loss", "gradient_norm")
_RECORD_STEP = 1  # whose prompts rows are measured on; the final evaluation has those of step 0


def columns(config: SparseConfig) -> list[str]:
    """The columns of metrics.csv.

    step; learning_rate (of the step from these weights); prompts_seen; context_length (of the step's prompts); loss
    (their mean squared error against noiseless labels); gradient_norm (Euclidean, before it is limited); risk_k (the
    excess risk at the k-th noise variance on prompts of full length, the same in all rows).
    """
    return [*_SCALARS, *(f"risk_{k}" for k in range(len(config.noise_variances())))]


def stack_columns(flat: Mapping[str, np.ndarray], config: SparseConfig) -> dict[str, np.ndarray]:
    """The columns gathered: scalars (T,), `risk` (T, noise variances)."""
    risks = [flat[f"risk_{k}"] for k in range(len(config.noise_variances()))]
    return {**{name: flat[name] for name in _SCALARS}, "risk": np.stack(risks, -1)}


class SparseRecorder(Recorder[Transformer, list[float]]):
    """Keeps the files of a run in its folder."""

    def __init__(
        self,
        folder: RunFolder[SparseConfig],
        start: Checkpoint | None,
        state: State[Transformer],
        clock: Clock,
        observer: Observer | None,
    ) -> None:
        config = folder.config
        super().__init__(folder, columns(config), start, state, clock, ALONE, observer)
        self._sparse = config
        self._tasks = [config.task().replace(noise_variance=level) for level in config.noise_variances()]

    def record(self, state: State[Transformer]) -> list[float]:
        prompts, seed = self._sparse.record_prompts, self._sparse.evaluation_seed
        return [
            measure_risk(state.parameters, task, prompts, seed=seed, step=_RECORD_STEP).mean for task in self._tasks
        ]

    def row(self, state: State[Transformer], span: Span, record: list[float]) -> dict[str, float | int]:
        values = (
            state.step,
            self._sparse.learning_rate_at(state.step),
            state.step * self._sparse.n_prompts,  # that the weights at this step were trained on
            context_length(self._sparse, state.step),
            span.first_loss,
            span.first_gradient_norm,
        )
        return dict(zip(columns(self._sparse), (*values, *record), strict=True))
