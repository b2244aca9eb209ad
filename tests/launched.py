"""Processes as `torchrun` starts them, for the tests of what they do together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(
    n_processes: int, arguments: Sequence[str | Path], restarts: int = 0, meeting: Sequence[str] = ("--standalone",)
) -> list[str]:
    """torchrun with a script or `-m module` and its arguments; `meeting`: where it meets those of other machines."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", *meeting),
        *("--nproc-per-node", str(n_processes), "--max-restarts", str(restarts)),
        *map(str, arguments),
    ]


def environment() -> dict[str, str]:
    """That of children which import this repository's package and tests, one thread each, with no torchrun around."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK"))}
    paths = [str(ROOT), str(ROOT / "tests"), inherited.get("PYTHONPATH", "")]
    return inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def torchrun(
    n_processes: int, *arguments: str | Path, restarts: int = 0, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run to the end; returns status and output."""
    return subprocess.run(
        command(n_processes, arguments, restarts),
        env=environment(),
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )


def two_machines() -> tuple[str, ...]:
    """Where two launches of torchrun meet that stand for two machines."""
    with socket.create_server(("localhost", 0)) as free:
        endpoint = f"localhost:{free.getsockname()[1]}"
    return ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "a", "--rdzv-endpoint", endpoint)


class Launch:
    """torchrun in the background, with `mhicl` and its arguments."""

    def __init__(
        self,
        folder: Path,
        n_processes: int,
        arguments: Sequence[str | Path],
        restarts: int = 0,
        meeting: Sequence[str] = ("--standalone",),
    ) -> None:
        self._files = [folder / name for name in ("torchrun.out", "torchrun.err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            everything = command(n_processes, ["-m", "mhicl_fast", *arguments], restarts, meeting)
            self.process = subprocess.Popen(everything, env=environment(), stdout=out, stderr=err)

    def worker(self, rank: int, patience: float = 60) -> int:
        """The id of the process that has this rank now, or has it within so many seconds."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for pid in children.read_text().split():
                with suppress(OSError):
                    if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                        return int(pid)
            time.sleep(0.01)
        raise TimeoutError(f"no process of rank {rank}")

    def wait(self, timeout: float = 300) -> int:
        """The exit status of torchrun; TimeoutExpired where it takes longer, and its end."""
        try:
            return self.process.wait(timeout)
        finally:
            self.process.terminate()  # torchrun ends its processes then
            self.process.wait()

    @property
    def printed(self) -> str:
        """What was written to standard output."""
        return self._files[0].read_text()

    @property
    def errors(self) -> str:
        """What was written to standard error, torchrun's own words too."""
        return self._files[1].read_text()
