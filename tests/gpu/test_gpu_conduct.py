"""How the operators behave on a GPU: streams, graphs, waits, compilers, several devices, higher derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attentions
import prompts
import pytest
import torch
from on_device import DEVICE, another_stream, captured, no_synchronisation, step, to_device
from torch import Tensor

import mhicl_fast
from mhicl_fast.ops import prompt_moments

ATTENTION = attentions.make_inputs(attentions.Case(6, 4, 2, 9, 40, 24, 24), torch.float32, seed=1)
PROMPTS = prompts.make_inputs(prompts.Shape(50, 40, 11, 2, 4), torch.float32, seed=1)
OPERATORS: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "attention": (mhicl_fast.attention, ATTENTION),
    "causal": (lambda *x: mhicl_fast.attention(*x, is_causal=True), ATTENTION),
    "prompt_attention": (mhicl_fast.prompt_attention, PROMPTS),
    "prompt_moments": (prompt_moments, PROMPTS[:3]),
}

with_every_operator = pytest.mark.parametrize("name", OPERATORS)


def everything(inputs: list[Tensor]) -> tuple[bool, ...]:
    return (True,) * len(inputs)


@with_every_operator
def test_work_goes_to_the_current_stream(name: str) -> None:
    function, inputs = OPERATORS[name]
    expected = step(function, to_device(inputs), everything(inputs))
    with another_stream():
        if DEVICE.type == "cuda":
            torch.cuda._sleep(50_000_000)  # what does not wait for this reads inputs that are not there yet
        moved = [x * 0 + y for x, y in zip(to_device(inputs), to_device(inputs), strict=True)]
        found = step(function, moved, everything(inputs))
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@with_every_operator
def test_nothing_waits_for_the_gpu(name: str) -> None:
    function, inputs = OPERATORS[name]
    leaves = [x.requires_grad_() for x in to_device(inputs)]
    cotangents = [torch.ones_like(y) for y in tensors_of(function(*leaves))]
    with no_synchronisation():
        torch.autograd.grad(tensors_of(function(*leaves)), leaves, cotangents)
        with torch.no_grad():
            function(*leaves)


def test_lengths_are_not_waited_for() -> None:
    inputs, context = to_device(ATTENTION), to_device(PROMPTS)
    lengths, prompt_lengths = (torch.full((n,), 7, device=DEVICE) for n in (6, 50))
    with no_synchronisation():
        mhicl_fast.attention(*inputs, key_lengths=lengths)
        mhicl_fast.prompt_attention(*context, context_lengths=prompt_lengths)


@with_every_operator
def test_a_graph_of_both_passes_is_replayed_on_new_inputs(name: str) -> None:
    function, inputs = OPERATORS[name]
    leaves = [x.requires_grad_() for x in to_device(inputs)]
    cotangents = [torch.ones_like(y) for y in tensors_of(function(*leaves))]
    results = [torch.zeros_like(x) for x in leaves]

    def both() -> None:
        grads = torch.autograd.grad(tensors_of(function(*leaves)), leaves, cotangents)
        for result, grad in zip(results, grads, strict=True):
            result.copy_(grad)

    replay = captured(both)
    with torch.no_grad():
        for x in leaves:
            x.mul_(0.5)
    replay()
    fresh = [x.detach().clone().requires_grad_() for x in leaves]
    expected = torch.autograd.grad(tensors_of(function(*fresh)), fresh, cotangents)
    assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


@pytest.mark.parametrize("name", ["attention", "prompt_attention"])
def test_compiled_without_graph_breaks(name: str) -> None:
    function, inputs = OPERATORS[name]
    backend = "inductor" if DEVICE.type == "cuda" else "aot_eager"
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    moved = to_device(inputs)
    found = step(compiled, moved, everything(inputs))
    for mine, truth in zip(found, step(function, moved, everything(inputs)), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-5, atol=1e-6)


@with_every_operator
def test_opcheck(name: str) -> None:
    function, inputs = OPERATORS[name]
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator.namespace == "mhicl":
                calls.append((operator, args, kwargs or {}))
            return operator(*args, **kwargs or {})

    with Recorder():
        step(function, to_device(inputs), everything(inputs))
    assert len(calls) == 2
    for operator, args, kwargs in calls:
        torch.library.opcheck(operator, args, kwargs, test_utils=("test_schema", "test_faketensor"))


def test_second_derivatives() -> None:
    small = [x.double().requires_grad_() for x in to_device(attentions.make_inputs(
        attentions.Case(1, 2, 1, 2, 3, 2, 2), torch.float64, seed=3))]  # fmt: skip
    assert torch.autograd.gradcheck(mhicl_fast.attention, small)
    assert torch.autograd.gradgradcheck(mhicl_fast.attention, small)
    few = prompts.make_inputs(prompts.Shape(2, 3, 2, 1, 2), torch.float64, seed=3)
    leaves = [x.requires_grad_() for x in to_device(few)]
    assert torch.autograd.gradcheck(mhicl_fast.prompt_attention, leaves)
    assert torch.autograd.gradgradcheck(mhicl_fast.prompt_attention, leaves)


@pytest.mark.hardware
@with_every_operator
def test_a_device_that_is_not_the_current_one(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    function, inputs = OPERATORS[name]
    expected = step(function, to_device(inputs), everything(inputs))
    with torch.cuda.device(0):
        found = step(function, [x.to("cuda:1") for x in inputs], everything(inputs))
    assert all(x.device.index == 1 for x in found)
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(found, expected, strict=True))


@pytest.mark.hardware
def test_tensors_on_two_devices_are_refused() -> None:
    query, key, value = to_device(ATTENTION)
    with pytest.raises(ValueError, match="all tensors must be on one device"):
        mhicl_fast.attention(query, key.cpu(), value)


def tensors_of(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
