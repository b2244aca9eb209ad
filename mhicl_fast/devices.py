"""Devices by name: what a name that somebody wrote comes to on the machine that it is on."""

from __future__ import annotations

import re

import torch

from ._extension import has_cuda_kernels, native, why_no_kernels

NAMED = re.compile(r"cpu|cuda(:\d+)?")
CPU = torch.device("cpu")
_ARCHITECTURE = re.compile(r"(\d+)\.(\d+)[af]?(\+PTX)?")


class DeviceError(ValueError):
    """A device that is not there, or that nothing was built for."""


def named_device(name: str, operator: str) -> torch.device:
    """The device that a name of `NAMED` stands for, with its number.

    DeviceError, which says what is missing, for a GPU that cannot be had, or without a kernel of the operator.
    """
    if name == "cpu":
        return CPU
    missing = _why_no_gpu(name, operator)
    if missing is not None:
        raise DeviceError(f"device={name}: {missing}")
    number = torch.device(name).index
    return torch.device("cuda", torch.cuda.current_device() if number is None else number)


def best_device(operator: str) -> torch.device:
    """The current GPU where there is one and a kernel of the operator that runs on it, else the CPU."""
    if not has_cuda_kernels(operator) or not torch.cuda.is_available():
        return CPU
    number = torch.cuda.current_device()
    if not runs_on(native.build_facts()["cuda_architectures"], torch.cuda.get_device_capability(number)):
        return CPU
    return torch.device("cuda", number)


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for architectures in PyTorch's notation, as "8.0;9.0+PTX", runs on a GPU of this compute capability.

    Machine code runs on the same major version from its minor version on, PTX on all that is not older. Where there are
    names among them, as "Hopper", the driver has to tell.
    """
    for name in re.split(r"[; ]+", architectures):
        told = _ARCHITECTURE.fullmatch(name)
        if told is None:
            return True
        built = int(told[1]), int(told[2])
        if built <= capability and (told[3] or built[0] == capability[0]):
            return True
    return False


def _why_no_gpu(name: str, operator: str) -> str | None:
    missing = why_no_kernels(operator, torch.device("cuda"))
    if missing is not None:
        return missing
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no GPU (torch.cuda.is_available() is false): check its driver"
    number = int(name.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        return f"GPUs are numbered from 0, and there are {torch.cuda.device_count()}"
    architectures, capability = native.build_facts()["cuda_architectures"], torch.cuda.get_device_capability(name)
    if not runs_on(architectures, capability):
        return f"this build is for compute capabilities {architectures}, the GPU has {capability[0]}.{capability[1]}"
    return None


def describe_device(device: torch.device) -> str:
    """A device in words, as "cpu" or "cuda:0 (NVIDIA H100 80GB HBM3, CUDA 13.0)"."""
    if device.type != "cuda":
        return device.type
    return f"{device} ({torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda})"
