"""The exit statuses of the `mhicl` command."""

from __future__ import annotations

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def exit_status(error: Exception) -> int | None:
    """The exit status of an error whose message says what is wrong; None for one that should not have been."""
    from ..bench.errors import BenchFailedError, BenchInputError
    from ..explore import ExploreError
    from ..processes import DistributedError
    from ..sparse.study import StudyError
    from ..sweep import SweepError
    from ..train.checkpoints import CheckpointError
    from ..train.folder import FolderError
    from ..train.odes import OdeError
    from ..train.settings import ConfigError
    from ..train.stepping import TrainingError
    from ..train.storage import StorageError

    if isinstance(error, (ConfigError, FolderError, OdeError, BenchInputError)):
        return BAD_INPUT
    runs = (StorageError, CheckpointError, TrainingError, DistributedError, SweepError, StudyError)
    return FAILED if isinstance(error, (*runs, ExploreError, BenchFailedError)) else None
