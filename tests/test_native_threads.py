"""Native training beside other threads and processes: its threads are its own, and Python goes on meanwhile."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from mhicl_fast.presets import preset
from mhicl_fast.train import RunConfig
from mhicl_fast.train.stepping import Span, make_stepper


def small_config(seed: int = 0) -> RunConfig:
    return preset("demystified").with_settings(["n_prompts=64", f"seed={seed}"])


def trained(config: RunConfig, steps: int) -> tuple[Span, dict[str, Tensor]]:
    parameters = config.start_parameters()
    stepper = make_stepper(config.objective(), parameters, config.make_optimizer())
    return stepper.advance(0, steps, 0.0, float("inf")), dict(parameters.tensors())


def test_a_forked_child_trains_as_its_parent_does() -> None:
    config = small_config()
    span, weights = trained(config, 50)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing but this may happen here: the child shares the test session's state
        try:
            again, others = trained(config, 50)
            same = again == span and all(torch.equal(others[name], weights[name]) for name in weights)
            os.write(writer, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.01)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"same"


def test_runs_in_several_threads_do_not_disturb_each_other() -> None:
    configs = [small_config(seed) for seed in range(6)]
    alone = [trained(config, 200) for config in configs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda config: trained(config, 200), configs))
    for (span, weights), (other_span, others) in zip(alone, together, strict=True):
        assert span == other_span
        assert all(torch.equal(others[name], weights[name]) for name in weights)


def test_python_goes_on_during_a_long_call() -> None:
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.002)

    other = threading.Thread(target=tick)
    other.start()
    try:
        config = small_config()
        stepper = make_stepper(config.objective(), config.start_parameters(), config.make_optimizer())
        begin = time.monotonic()
        stepper.advance(0, 10**9, 0.0, 0.5)
        end = time.monotonic()
    finally:
        done.set()
        other.join()
    assert end - begin == pytest.approx(0.5, abs=0.4)
    assert sum(begin < at < end for at in ticks) > 20
