"""The device that the GPU tests run on, and what they do there that other devices have another way for, or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mhicl_fast._extension import has_cuda_kernels

_NAME = os.environ.get("MHICL_TEST_DEVICE", "cuda")
EMULATED = _NAME == "emulated"
DEVICE = torch.device("cpu" if EMULATED else _NAME)

# Relative to float64: beyond three times the error of plain PyTorch in the same type.
SLACK = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def why_not() -> str | None:
    """What keeps the GPU tests from running, or None."""
    if DEVICE.type == "cpu":
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "GPUs are hidden from other tests: run those of tests/gpu by themselves"
    if not torch.cuda.is_available():
        return "there is no GPU: torch.cuda.is_available() is false"
    if not has_cuda_kernels("attention"):
        return "this build has no CUDA kernels"
    return None


def use_emulated_kernels() -> None:
    """Put the emulated kernels in the place of the CPU's, below the same Python."""
    from emulated import emulated

    operators, library = emulated(), torch.library.Library("mhicl", "IMPL")
    for full_name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
        namespace, _, name = full_name.partition("::")
        if namespace == "mhicl_emulated":
            library.impl(name, getattr(operators, name).default, "CPU", allow_override=True)
    _kept.append(library)


_kept: list[Any] = []  # or the library's implementations would go


def to_device(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies with the same strides, gaps and repetitions in memory included."""
    copies = []
    for x in tensors:
        whole = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0).to(DEVICE)
        copies.append(torch.as_strided(whole, x.shape, x.stride(), x.storage_offset()))
    return copies


def step(function: Callable[..., Any], inputs: Sequence[Tensor], needs: Sequence[bool], seed: int = 7) -> list[Tensor]:
    """The outputs that are tensors of numbers, and the gradients of a fixed random combination of them."""
    leaves = [x.detach().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else [y for y in outputs if y.numel()]
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs]
    if not any(needs):
        return [y.detach() for y in outputs]
    # Rounded to bfloat16, so that every type has the same ones.
    cotangents = [weight.to(torch.bfloat16).to(y.device, y.dtype) for weight, y in zip(weights, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, [x for x in leaves if x.requires_grad], cotangents)
    return [*(y.detach() for y in outputs), *grads]


def assert_close_to_the_definition(
    ours: Callable[..., Any], definition: Callable[..., Any], inputs: Sequence[Tensor], needs: Sequence[bool]
) -> None:
    """On the device, in the inputs' type: as near to float64 as plain PyTorch three times over, and a little."""
    found = step(ours, to_device(inputs), needs)
    exact = step(definition, [x.double() for x in inputs], needs)
    plain = step(
        definition, [x.to(torch.float64 if x.dtype == torch.float64 else torch.float32) for x in inputs], needs
    )
    slack = SLACK[inputs[0].dtype]
    for number, (mine, eager, truth) in enumerate(zip(found, plain, exact, strict=True)):
        assert mine.device.type == DEVICE.type
        assert mine.shape == truth.shape
        assert relative_error(mine, truth) <= 3 * relative_error(eager, truth) + slack, f"result {number}"


def relative_error(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖, absolute where the truth vanishes; infinities must stand in the same places."""
    found, truth = found.detach().cpu().double(), truth.detach().cpu().double()
    infinite = truth.isinf()
    assert torch.equal(found[infinite], truth[infinite])
    found, truth = found.masked_fill(infinite, 0), truth.masked_fill(infinite, 0)
    size = float(truth.norm())
    return float((found - truth).norm()) / (size if size > 0 else 1.0)


def captured(function: Callable[[], Any]) -> Callable[[], None]:
    """The work of a call as a CUDA graph, to be replayed; without a GPU the call itself."""
    if DEVICE.type != "cuda":
        return lambda: function() and None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """An error for every call that makes the host wait for the GPU."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def another_stream() -> Iterator[None]:
    """A stream that is not the default one, which waits for what has been enqueued and is waited for at the end."""
    if DEVICE.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
