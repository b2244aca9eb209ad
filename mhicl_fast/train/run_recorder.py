"""What a run of the first study keeps while it trains: the semi-singular values of its heads beside the loss."""

from __future__ import annotations

import numpy as np

from ..processes import Processes
from .checkpoints import Checkpoint
from .clock import Clock
from .config import RunConfig
from .folder import RunFolder
from .objective import has_prompts
from .parameters import Parameters
from .recorder import Observer, Recorder, State
from .records import EffectiveExamples, SpectralState, columns, row
from .stepping import Span


class RunRecorder(Recorder[Parameters, SpectralState]):
    """Keeps the files of a run in its folder."""

    def __init__(
        self,
        folder: RunFolder[RunConfig],
        start: Checkpoint | None,
        state: State[Parameters],
        clock: Clock,
        processes: Processes,
        observer: Observer | None,
    ) -> None:
        config = folder.config
        names = columns(config.n_heads, config.n_tasks)
        super().__init__(folder, names, start, state, clock, processes, observer)
        self._task = config.task()
        self._prompts = config.n_prompts if has_prompts(config.estimator) else 0
        self._count_examples = EffectiveExamples(self._task, config.evaluation_seed, config.torch_dtype())
        self._examples = np.empty(0)

    def record(self, state: State[Parameters]) -> SpectralState:
        kq, ov = (matrix.detach().cpu() for matrix in state.parameters.to_combined())
        self._examples = self._count_examples(kq)
        return SpectralState.of(self._task, kq, ov)

    def row(self, state: State[Parameters], span: Span, record: SpectralState) -> dict[str, float | int]:
        scalars = {
            "step": state.step,
            "flow_time": state.flow_time,
            "step_size": state.step_size,
            "prompts_seen": state.step * self._prompts,  # that the weights at this step were trained on
            "loss": span.first_loss,
            "gradient_norm": span.first_gradient_norm,
        }
        return row(scalars, record, self._examples)
