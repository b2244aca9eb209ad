"""Devices: which tensors the operators take, and where runs train.

No GPU is needed: its tensors are fakes here, and what PyTorch says of GPUs is replaced.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import mhicl_fast
from mhicl_fast import _extension, devices
from mhicl_fast._extension import native
from mhicl_fast.cli import main
from mhicl_fast.devices import DeviceError, best_device, describe_device, named_device, runs_on
from mhicl_fast.nn import route_sdpa
from mhicl_fast.processes import Processes
from mhicl_fast.sweep import expand
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Adam, Combined, ConfigError, Factored, RunConfig, load_run, population_loss, resume, run
from mhicl_fast.train.checkpoints import Checkpoint
from mhicl_fast.train.clock import Clock
from mhicl_fast.train.loop import Progress
from mhicl_fast.train.machine import machine

ALL = {"attention", "prompt_attention", "prompt_moments", "flow_step", "train_steps"}
SMALL = RunConfig(
    dim_x=4, n_tasks=1, context_length=8, n_heads=2, n_prompts=16, steps=6, record_every=2, checkpoint_every=2,
    eval_prompts=16, order="leading",
)  # fmt: skip


def build_with(monkeypatch: pytest.MonkeyPatch, operators: set[str], gpus: int = 0) -> None:
    """This build as if it had CUDA kernels of these operators, on a machine with so many GPUs."""
    monkeypatch.setattr(_extension, "_CUDA_OPERATORS", frozenset(operators))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without numbers, on GPUs that need not be there, in a build with kernels for them."""
    build_with(monkeypatch, ALL)
    with FakeTensorMode():
        yield


def test_tensors_on_a_gpu_without_kernels_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch, set())
    with FakeTensorMode():
        x = torch.zeros(2, 3, 4, 5, device="cuda")
        with pytest.raises(ValueError, match=r"query is on cuda:0, but this build has no CUDA kernels .*MHICL_CUDA=1"):
            mhicl_fast.attention(x, x, x)
        build_with(monkeypatch, {"prompt_attention"})
        with pytest.raises(ValueError, match="query is on cuda:0, but there is no CUDA kernel of attention"):
            mhicl_fast.attention(x, x, x)


# Autograd itself needs the driver, so the backward operators are called as it calls them.
def test_attention_on_a_gpu(fakes: None) -> None:
    query = torch.zeros(2, 4, 3, 5, device="cuda")
    key, value = (torch.zeros(2, 2, 7, width, device="cuda") for width in (5, 6))
    lengths = torch.tensor([3, 7], device="cuda")
    out, lse = mhicl_fast.attention(query, key, value, key_lengths=lengths, return_lse=True)
    assert described(out, lse) == [("cuda", (2, 4, 3, 6)), ("cuda", (2, 4, 3))]
    grads = torch.ops.mhicl.attention_backward(
        out, lse, None, query, key, value, None, lengths, torch.zeros(2, 2, 4, 3, device="cuda"),
        scale=1.0, is_causal=False, activation="softmax", needs=[True, True, True, False],
    )  # fmt: skip
    assert described(*grads) == [("cuda", x.shape) for x in (query, key, value)] + [("cuda", (0,))]


def test_prompt_attention_on_a_gpu(fakes: None) -> None:
    context, query = torch.zeros(6, 7, 5, device="cuda"), torch.zeros(6, 5, device="cuda")
    kq, ov = (torch.zeros(1, 2, rows, 5, device="cuda") for rows in (5, 1))
    lengths = torch.zeros(6, dtype=torch.int32, device="cuda")
    out = mhicl_fast.prompt_attention(context, query, kq, ov, context_lengths=lengths)
    assert described(out) == [("cuda", (1, 6, 1))]
    none = torch.zeros(0, device="cuda")
    grads = torch.ops.mhicl.prompt_attention_backward(
        out, context, query, kq, ov, None, none, none, [False, False, True, True]
    )
    assert described(*grads[2:]) == [("cuda", (1, 2, 5, 5)), ("cuda", (1, 2, 1, 5))]
    moments = mhicl_fast.ops.prompt_moments(context, query, torch.zeros(2, 5, 5, device="cuda"))
    assert described(*moments) == [("cuda", (6, 2, 5)), ("cuda", (6, 2, 2))]


def described(*tensors: torch.Tensor) -> list[tuple[str, tuple[int, ...]]]:
    return [(x.device.type, tuple(x.shape)) for x in tensors]


def test_tensors_on_several_devices_are_refused(fakes: None) -> None:
    x = torch.zeros(2, 3, 4, 5, device="cuda")
    with pytest.raises(ValueError, match="all tensors must be on one device, got query on cuda:0 and key on cpu"):
        mhicl_fast.attention(x, x.cpu(), x)
    with pytest.raises(ValueError, match="key_lengths must be on cuda:0 like the other tensors, got cpu"):
        mhicl_fast.attention(x, x, x, key_lengths=torch.tensor([1, 2], device="cpu"))


def test_sdpa_on_a_gpu_is_routed_where_there_are_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    with FakeTensorMode():
        x = torch.zeros(2, 3, 4, 5, device="cuda")
        build_with(monkeypatch, ALL)
        with route_sdpa() as report:
            assert sdpa(x, x, x).device.type == "cuda"
        assert report.routed == 1
        build_with(monkeypatch, set())
        with pytest.raises(ValueError, match="no kernels for device cuda"), route_sdpa(strict=True):
            sdpa(x, x, x)


def test_losses_on_a_gpu_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch, ALL)
    task = MultiTaskRegression(4, 1, 8)
    with FakeTensorMode():
        kq, ov = torch.zeros(2, 5, 5, device="cuda"), torch.zeros(2, 1, 5, device="cuda")
        with pytest.raises(ValueError, match="kq and ov must be on one device, got cuda:0 and cpu"):
            population_loss(task, kq, ov.cpu(), estimator="sampled")
        with pytest.raises(ValueError, match="subspace estimator is computed on the CPU alone, got weights on cuda:0"):
            population_loss(task, kq, ov, estimator="subspace")
        build_with(monkeypatch, set())
        with pytest.raises(ValueError, match="kq is on cuda:0, but this build has no CUDA kernels"):
            mhicl_fast.train.Objective(task, "sampled")(kq, ov, 0)


class TestResolving:
    def test_auto_is_the_cpu_without_a_gpu_without_kernels_and_for_other_estimates(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def resolved(estimator: str, device: str = "auto") -> torch.device:
            return dataclasses.replace(SMALL, estimator=estimator, device=device).resolved_device()

        cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
        build_with(monkeypatch, ALL, gpus=1)
        assert resolved("sampled") == resolved("conditional") == gpu
        assert resolved("subspace") == resolved("asymptotic") == cpu
        assert resolved("sampled", "cpu") == cpu
        build_with(monkeypatch, ALL)
        assert resolved("sampled") == cpu
        build_with(monkeypatch, ALL - {"train_steps"}, gpus=1)
        assert resolved("sampled") == cpu

    def test_a_gpu_that_is_asked_for_is_had_or_the_error_says_what_is_missing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        build_with(monkeypatch, ALL, gpus=2)
        assert named_device("cuda", "train_steps") == torch.device("cuda", 0)
        assert named_device("cuda:1", "attention") == torch.device("cuda", 1)
        for device, operators, gpus, reason in (
            ("cuda:2", ALL, 2, "device=cuda:2: GPUs are numbered from 0, and there are 2; or choose cpu"),
            ("cuda", ALL, 0, "sees no GPU"),
            ("cuda", {"attention"}, 1, "there is no CUDA kernel of train_steps"),
            ("cuda", set(), 1, "this build has no CUDA kernels"),
        ):
            build_with(monkeypatch, operators, gpus)
            with pytest.raises(ConfigError, match=reason):
                dataclasses.replace(SMALL, device=device).resolved_device()

    def test_each_of_several_processes_has_a_gpu_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        third = Processes(6, 8, 2, 4, "0")
        build_with(monkeypatch, ALL, gpus=4)
        for device in ("auto", "cuda"):
            assert dataclasses.replace(SMALL, device=device).resolved_device(third) == torch.device("cuda", 2)
        assert dataclasses.replace(SMALL, device="cpu").resolved_device(third) == torch.device("cpu")
        assert dataclasses.replace(SMALL, reduction="tree").resolved_device(third) == torch.device("cpu")
        one = dataclasses.replace(SMALL, device="cuda:1")
        with pytest.raises(ConfigError, match="device=cuda:1 is one GPU for 4 processes; use device=cuda"):
            one.resolved_device(third)
        assert one.resolved_device(Processes(1, 2, 0, 1, "0")) == torch.device("cuda", 1)
        build_with(monkeypatch, ALL, gpus=3)
        with pytest.raises(
            ConfigError, match="there are 3 GPUs for 4 processes of this machine; start as many, or choose cpu"
        ):
            SMALL.resolved_device(third)

    @pytest.mark.parametrize(
        ("architectures", "capability", "runs"),
        [
            ("8.0;9.0+PTX", (8, 0), True), ("8.0;9.0+PTX", (8, 9), True), ("8.0;9.0+PTX", (9, 0), True),
            ("8.0;9.0+PTX", (12, 0), True), ("8.0;9.0+PTX", (7, 5), False), ("8.0 9.0", (10, 0), False),
            ("8.6", (8, 0), False), ("9.0", (8, 9), False), ("8.0+PTX", (9, 0), True), ("9.0a", (9, 0), True),
            ("Hopper", (7, 5), True),
        ],
    )  # fmt: skip
    def test_code_runs_on_some_gpus(self, architectures: str, capability: tuple[int, int], runs: bool) -> None:
        assert runs_on(architectures, capability) is runs

    def test_a_gpu_that_the_build_is_not_for_is_not_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        build_with(monkeypatch, ALL, gpus=1)
        facts = {**native.build_facts(), "cuda_architectures": "8.0;9.0+PTX"}
        monkeypatch.setattr(devices, "native", SimpleNamespace(build_facts=lambda: facts))
        assert best_device("train_steps") == torch.device("cuda", 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert best_device("train_steps") == torch.device("cpu")
        with pytest.raises(DeviceError, match=r"is for compute capabilities 8\.0;9\.0\+PTX, the GPU has 7\.5"):
            named_device("cuda", "train_steps")

    def test_devices_in_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        build_with(monkeypatch, ALL, gpus=1)
        assert describe_device(torch.device("cpu")) == "cpu"
        assert describe_device(torch.device("cuda", 0)).startswith("cuda:0 (NVIDIA H100, CUDA ")
        assert "trained on" not in machine()
        assert machine(torch.device("cpu"))["trained on"] == "cpu"


class TestConfiguration:
    @pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda 1", "cpu:0", ""])
    def test_strange_devices_are_refused(self, device: str) -> None:
        with pytest.raises(ConfigError, match="device must be auto, cpu, cuda, or cuda with a number"):
            SMALL.with_settings([f"device={device}"])

    def test_an_estimate_without_kernels_for_gpus_is_refused_there(self) -> None:
        with pytest.raises(ConfigError, match="estimator=subspace is computed on the CPU alone"):
            SMALL.with_settings(["estimator=subspace", "device=cuda:1"])

    def test_the_device_does_not_tell_one_run_from_another(self) -> None:
        other = SMALL.with_settings(["device=cuda:1"])
        assert other == SMALL
        assert RunConfig.from_dict(json.loads(other.to_json())).device == "cuda:1"
        old = {key: value for key, value in SMALL.to_dict().items() if key != "device"}
        assert RunConfig.from_dict(old).device == "auto"

    def test_a_sweep_does_not_vary_it(self) -> None:
        with pytest.raises(ConfigError, match="device is where the runs of a sweep train"):
            expand(SMALL, ["device=cpu;cuda"])
        assert {config.device for config in expand(SMALL, ["seed=0:2"], ["device=cpu"])} == {"cpu"}


class TestRuns:
    def test_a_gpu_that_is_missing_leaves_no_folder(self, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(ConfigError, match="device=cuda"):
            run(dataclasses.replace(SMALL, device="cuda"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_the_command_takes_a_device(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        small = ["n_prompts=16", "context_length=20", "steps=4", "eval_prompts=16", "order=leading"]
        command = ["run", "demo", "--set", *small, "--out", str(tmp_path / "run"), "--device"]
        if not torch.cuda.is_available():
            assert main([*command, "cuda"]) == 2
            told = capsys.readouterr().err
            assert told.startswith("mhicl: device=cuda: ")
            assert told.endswith("; or choose cpu\n")
            assert not (tmp_path / "run").exists()
        assert main([*command, "cpu"]) == 0
        assert load_run(tmp_path / "run").config.device == "cpu"

    def test_the_machine_s_facts_name_the_device(self, tmp_path: Path) -> None:
        run(dataclasses.replace(SMALL, device="cpu"), tmp_path, figures=False)
        assert json.loads((tmp_path / "timing.json").read_text())["machine"]["trained on"] == "cpu"

    def test_a_run_of_a_gpu_goes_on_elsewhere_and_says_so(self, tmp_path: Path) -> None:
        whole, path = tmp_path / "whole", tmp_path / "run"
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            run(dataclasses.replace(SMALL, device="cpu"), whole, figures=False)
        with pytest.raises(KeyboardInterrupt):
            run(dataclasses.replace(SMALL, device="cpu"), path, stop, figures=False)
        stored = json.loads((path / "config.json").read_text())
        stored["config"]["device"] = "cuda"
        (path / "config.json").write_text(json.dumps(stored))
        timing = json.loads((path / "timing.json").read_text())
        timing["machine"]["trained on"] = "cuda:0 (NVIDIA H100, CUDA 13.0)"
        (path / "timing.json").write_text(json.dumps(timing))
        if not torch.cuda.is_available():
            with pytest.raises(ConfigError, match=r"device=cuda: .*or choose cpu"):
                resume(path, figures=False)
        with pytest.warns(RuntimeWarning, match=r"the run was on cuda:0 \(.*\) and goes on on cpu"):
            finished = resume(path, figures=False, device="cpu")
        assert finished.config.device == "cuda"  # what the folder says is not changed
        assert (path / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()

    def test_a_run_from_before_there_were_devices_was_on_the_cpu(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(SMALL, tmp_path, stop, figures=False)
        for name, facts in (("config", "config"), ("timing", "machine")):
            stored = json.loads((tmp_path / f"{name}.json").read_text())
            del stored[facts]["device" if name == "config" else "trained on"]
            (tmp_path / f"{name}.json").write_text(json.dumps(stored))
        build_with(monkeypatch, ALL, gpus=1)
        with pytest.warns(RuntimeWarning, match=r"the run was on cpu and goes on on cuda:0 \(NVIDIA H100"):
            Clock(tmp_path / "timing.json", torch.device("cuda", 0))
        build_with(monkeypatch, set())
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            assert resume(tmp_path, figures=False).config == SMALL


def stop(progress: Progress) -> None:
    """Ctrl-C just before the second checkpoint is stored."""
    if progress.step == 4:
        raise KeyboardInterrupt


def test_weights_and_what_optimisers_keep_go_to_a_device_and_back() -> None:
    combined = Combined(torch.randn(2, 5, 5), torch.randn(2, 1, 5))
    factored = Factored(*(torch.randn(2, 5, 5) for _ in range(3)), torch.randn(2, 1, 5), 0.5)
    for weights in (combined, factored):
        moved = weights.to(torch.device("meta"))
        assert {x.device.type for x in moved.tensors().values()} == {"meta"}
    assert factored.to(torch.device("meta")).scale == 0.5

    adam = Adam(0.1)
    tensors = combined.tensors()
    adam.step(tensors, {name: torch.ones_like(x) for name, x in tensors.items()})
    other = Adam(0.1)
    other.load_state(adam.state(), torch.device("meta"))
    assert {x.device.type for x in other.buffers(combined.to(torch.device("meta")).tensors())} == {"meta"}
    assert other.count == 1


def test_checkpoints_hold_no_devices() -> None:
    tensor = torch.randn(3)
    content = Checkpoint(1, 0.0, 0.0, 0, "", {"kq": tensor}, {}).to_bytes()
    assert torch.equal(Checkpoint.from_bytes(content).parameters["kq"], tensor)
