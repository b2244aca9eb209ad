"""The training loop of every study: spans of steps, and between them records, checkpoints and interruptions."""

from __future__ import annotations

from ..processes import ALONE, DistributedError, Processes
from .interruptions import Interruptions
from .recorder import Follower, Record, State, Weights
from .settings import RunSettings
from .stepping import Span, Stepper, TrainingError

SPAN_SECONDS = 0.2  # of steps at a time, so that Ctrl-C and the progress bar stay lively


def take_steps(
    config: RunSettings,
    stepper: Stepper,
    state: State[Weights],
    recorder: Follower[Weights, Record],
    interrupted: Interruptions,
    processes: Processes = ALONE,
) -> None:
    """Spans of steps, records and checkpoints until the last step, or until a process is interrupted or lost.

    `stepper` advances the weights and the update rule of `state`. All processes make the same steps, each in spans of
    its own. Raises TrainingError where the loss stops being finite, KeyboardInterrupt where a process was interrupted,
    DistributedError where one is lost, the last two with a checkpoint.
    """
    while True:
        evaluates = state.step == config.steps  # the last weights' loss is all that is left
        recorder.describe(state)
        ahead, stop = _steps_ahead(config, state.step), interrupted.requested and processes.size > 1
        span = stepper.advance(state.step, ahead, state.flow_time, SPAN_SECONDS, stop)
        recorder.add(state, span)
        if not span.lost:
            _check_finite(state.step, span)
        state.count(span)
        recorder.tell(state, span)
        stopped = span.stopped if processes.size > 1 else interrupted.requested
        if span.lost or (not evaluates and (stopped or _is_due(config, state.step))):
            recorder.save(state)
        if span.lost:
            raise DistributedError(recorder.why_lost(state.step, span.lost))
        if evaluates:
            return
        if stopped:
            raise KeyboardInterrupt


def _is_due(config: RunSettings, step: int) -> bool:
    """Whether every unbroken run has a checkpoint of this step."""
    return step % config.checkpoint_every == 0 or step == config.steps


def _steps_ahead(config: RunSettings, step: int) -> int:
    """Steps until the next row of metrics, the next checkpoint or the end, whichever comes first."""
    return min(*(every - step % every for every in (config.record_every, config.checkpoint_every)), config.steps - step)


def _check_finite(step: int, span: Span) -> None:
    """TrainingError where a span that started at `step` stopped at something that is not a number."""
    if not span.finite:
        raise TrainingError(
            f"the loss or its gradient stopped being finite at step {step + span.steps} (loss {span.last_loss}): use a "
            "smaller learning_rate"
        )
