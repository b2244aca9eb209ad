"""Child processes that run, resume and are killed: run as a script, this is a server that forks one child per request.

A request is a JSON line {"action": "run" | "resume", "path", "config", "fault"}; the answer is a line with the child's
exit status, negative for a signal. A fault may also say how many seconds a span of steps may take. Forking from a
process that has imported everything takes milliseconds instead of seconds. Faults are made by replacing functions of
`os` in the child, so the product knows nothing of them.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from line_server import LineServer

TINY = ("context_length=8", "n_prompts=4", "steps=2", "eval_prompts=4", "order=leading")
ROOT = Path(__file__).resolve().parent.parent


class Children:
    """The server's side in a test. Use as a context manager."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        descriptor, name = tempfile.mkstemp(prefix="stderr-")
        os.close(descriptor)
        self._errors = Path(name)
        self._server = LineServer(__file__, environment)

    def __call__(self, action: str, path: Path, config: dict[str, Any] | None = None, **fault: Any) -> int:
        """Run or resume in a child with a fault; returns its exit status."""
        request = {"action": action, "path": str(path), "config": config, "fault": fault, "errors": str(self._errors)}
        return int(self._server.ask(request))

    @property
    def errors(self) -> str:
        """What the last child wrote to its standard error."""
        return self._errors.read_text()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._errors.unlink()


def deterministic_files(path: Path) -> dict[str, Any]:
    """Everything in a run folder but times, by relative name."""
    files: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != "timing.json":
            files[str(file.relative_to(path))] = file.read_bytes()
    summary = json.loads(files["summary.json"])
    files["summary.json"] = {key: value for key, value in summary.items() if key not in ("wall_s", "steps_per_second")}
    return files


def _serve() -> None:
    import torch

    import mhicl_fast.train.loop as loop
    from mhicl_fast.presets import preset
    from mhicl_fast.train import RunConfig

    torch.set_num_threads(1)
    quicken()
    with tempfile.TemporaryDirectory() as folder:  # what is done once per process is then done before the forks
        loop.run(preset("demo").with_settings(TINY), Path(folder) / "run")
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(request["errors"], os.O_WRONLY | os.O_TRUNC), 2)
            _install(request["fault"])
            try:
                if request["action"] == "run":
                    loop.run(RunConfig.from_dict(request["config"]), request["path"], _observer(request["fault"]))
                else:
                    loop.resume(request["path"], _observer(request["fault"]))
                status = 0
            except KeyboardInterrupt:
                status = 130
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                status = 1
            os._exit(status)
        if "kill_after" in request["fault"]:
            _await_growth(Path(request["path"]) / "metrics.csv", request["fault"].get("bytes", 0), child)
            time.sleep(request["fault"]["kill_after"])
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _await_growth(file: Path, size: int, child: int) -> None:
    """Until a file has grown by so many bytes since it was smallest, as after a resumption, or the child has ended."""
    smallest, now = sys.maxsize, 0
    while now - smallest < size and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        now = file.stat().st_size if file.exists() else 0
        smallest = min(smallest, now)
        time.sleep(0.0002)


def _observer(fault: dict[str, Any]) -> Any:
    """Sends this process an interrupt when a step is reached."""
    step = fault.get("interrupt_at_step")

    def observe(progress: Any) -> None:
        nonlocal step
        if step is not None and progress.step >= step:
            step = None
            os.kill(os.getpid(), signal.SIGINT)

    return observe


def quicken() -> None:
    """Quick figures in the place of real ones; no waiting for the disk, which only a power failure would need."""
    import mhicl_fast.plots as plots

    def save_figures(run: Any) -> list[Path]:
        file = run.path / "figures" / "loss.png"
        file.write_bytes(repr([run.metrics["loss"].tolist(), run.summary["eval_loss"]]).encode())
        return [file]

    plots.save_figures = save_figures
    os.fsync = lambda descriptor: None


def _install(fault: dict[str, Any]) -> None:
    """Put the fault in place."""
    if "span_seconds" in fault:
        sys.modules["mhicl_fast.train.steps"].SPAN_SECONDS = fault["span_seconds"]  # type: ignore[attr-defined]
    if "largest_file" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["largest_file"], resource.RLIM_INFINITY))
    if "call" not in fault:
        return
    original = getattr(os, fault["call"])
    countdown = fault["number"]

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal countdown
        countdown -= 1
        if countdown:
            return original(*arguments, **options)
        if fault["kind"] == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault["kind"] == "half":  # of what was to be written
            descriptor, data = arguments
            original(descriptor, data[: random.Random(len(data)).randrange(len(data))])
        if fault["kind"] == "after":
            original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    setattr(os, fault["call"], faulty)


if __name__ == "__main__":
    _serve()
