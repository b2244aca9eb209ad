"""Writing files so that a crash at any instant leaves either the old content or the new one.

All file changes of a run go through the few functions here; a failure says what could not be written and why.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(RuntimeError):
    """A file of a run could not be written; what was stored before is intact."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at `path` by one that holds `data`, durably; StorageError leaves the old one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with reported(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                write_fully(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_fully(descriptor: int, data: bytes) -> None:
    """Write all of `data`, however many system calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable: a renamed or removed file is one only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn a failing system call into a StorageError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = f"no space left ({error.strerror})"
        else:
            reason = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {reason}; what was stored before is intact") from error
