"""A run of the study from start to results, and resuming."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from ..train.checkpoints import CheckpointError, CheckpointStore
from ..train.clock import Clock
from ..train.folder import RunFolder, holds, is_complete, write_json
from ..train.interruptions import interruptions
from ..train.recorder import Observer, State, last_checkpoint
from ..train.settings import ConfigError
from ..train.steps import take_steps
from .config import SparseConfig
from .loaded import SparseRun, load_run
from .model import Transformer
from .records import SparseRecorder
from .stepping import SparseStepper
from .summary import summarise


def train(config: SparseConfig, path: str | Path, observer: Observer | None = None) -> SparseRun:
    """Run `config` in a new folder and return the finished run.

    Raises FolderError where the folder cannot be used, StorageError where a file cannot be written, TrainingError where
    the loss diverges, KeyboardInterrupt on Ctrl-C and SIGTERM; after each but the first the folder can be resumed.
    ConfigError, without a folder, where the configuration asks for a GPU that cannot be had, or has a `start`: that is
    for `begin`.
    """
    device = config.resolved_device()
    if config.start is not None:
        raise ConfigError("start cannot be set: mhicl_fast.sparse.begin makes runs that start from another model")
    with RunFolder.create(Path(path), config) as folder:
        return _complete(folder, config, device, observer)


def begin(config: SparseConfig, path: str | Path, model: Transformer) -> SparseConfig:
    """Make the folder of a run that starts from the model of another, of the shape that `config` says, for `resume`.

    A run that was begun already is left as it is. Returns the configuration, whose `start` names the weights. Raises
    FolderError and StorageError as `train` does, ValueError for a model of another shape.
    """
    if model.shapes != config.layers():
        raise ValueError(f"the model must have the layers {config.layers()}, got {model.shapes}")
    path = Path(path)
    weights = config.model().with_tensors({name: weight.cpu() for name, weight in model.tensors().items()})
    config = replace(config, start=_digest(weights))
    here = holds(path, config)
    with RunFolder.open(path, SparseConfig) if here else RunFolder.create(path, config) as folder:
        store = CheckpointStore(folder.path / "checkpoints", config.checkpoint_every, config.steps)
        if not store.steps():
            state = State.restore(weights, config.optimizer(), None, torch.device("cpu"))
            store.save(state.checkpoint(0, ""))
    return config


def resume(path: str | Path, observer: Observer | None = None, *, device: str | None = None) -> SparseRun:
    """Go on with the run in a folder from its last checkpoint; its files end as those of an unbroken run.

    `device`: where to, as the configuration's, which it replaces for this time; on another kind of device than before
    the files are those of an unbroken run up to rounding. A finished run is returned as it is. Raises what `train`
    raises, and CheckpointError where no checkpoint is usable.
    """
    with RunFolder.open(Path(path), SparseConfig) as folder:
        if is_complete(folder.path):
            return load_run(folder.path)
        config = folder.config if device is None else replace(folder.config, device=device)
        return _complete(folder, config, config.resolved_device(), observer)


def _complete(
    folder: RunFolder[SparseConfig], config: SparseConfig, device: torch.device, observer: Observer | None
) -> SparseRun:
    """Train to the end, then write the results. `config` may name another device than the folder's."""
    with interruptions() as interrupted:
        clock = Clock(folder.path / "timing.json", device)
        start = last_checkpoint(folder)
        if start is None and config.start is not None:
            raise CheckpointError(
                f"the weights that the run in {folder.path} starts from were never stored; begin it again"
            )
        optimizer = config.optimizer()
        state = State.restore(config.model(), optimizer, start, device)
        stepper = SparseStepper(config, state.parameters, optimizer)
        with SparseRecorder(folder, start, state, clock, observer) as recorder, interrupted.held():
            take_steps(config, stepper, state, recorder, interrupted)
        _finish(folder, state.parameters, clock)
    return load_run(folder.path)


def _digest(model: Transformer) -> str:
    """The SHA-256 of the weights' names, shapes and bytes."""
    found = hashlib.sha256()
    for name, weight in model.tensors().items():
        array = weight.numpy()
        found.update(f"{name} {array.shape} {array.dtype.str}\n".encode() + array.tobytes())
    return found.hexdigest()


def _finish(folder: RunFolder[SparseConfig], model: Transformer, clock: Clock) -> None:
    """The results, which follow from metrics and weights; done again if a run is killed within."""
    config = folder.config
    summary = summarise(config, load_run(folder.path).metrics, model)
    wall = clock.seconds()
    summary |= {"wall_s": wall, "steps_per_second": config.steps / wall}
    write_json(folder.path / "summary.json", summary)
    clock.store(complete=True)
