"""Routing scaled_dot_product_attention inside a block, and restoring it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as taken_before
from torch.utils.checkpoint import checkpoint

import mhicl_fast
from mhicl_fast.nn import route_sdpa

CALLS: dict[str, Callable[..., Tensor]] = {
    "attribute": lambda *args, **kwargs: F.scaled_dot_product_attention(*args, **kwargs),
    "taken before": taken_before,
}


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:
    """Outside of all blocks every call is PyTorch's, to the bit."""
    yield
    assert F.scaled_dot_product_attention is taken_before
    assert torch._C._len_torch_function_stack() == 0


def draw(*leading: int, rows: int = 3, keys: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.randn(*leading, n, 4).double().requires_grad_() for n in (rows, keys, keys))
    return query, key, value


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (2, 3, 2)], ids=str)
def test_calls_are_routed_and_have_the_same_results(call: Callable[..., Tensor], leading: tuple[int, ...]) -> None:
    inputs = draw(*leading)
    mask = torch.rand(3, 5) < 0.7
    mask[:, 0] = True
    for kwargs in (
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": mask},
        {"attn_mask": torch.randn(3, 5).double()},
    ):
        expected = call(*inputs, **kwargs)
        expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
        with route_sdpa() as report:
            got = call(*inputs, **kwargs)
            grads = torch.autograd.grad(got.square().sum(), inputs)
        assert (report.routed, report.passed_on) == (1, {})
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-10)


def test_grouped_heads() -> None:
    query, _, _ = draw(2, 6)
    _, key, value = draw(2, 3)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    with route_sdpa() as report:
        got = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    assert report.routed == 1
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [
    lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    lambda: nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True),
    lambda: nn.TransformerDecoderLayer(8, 2, 8, 0.0, batch_first=True),
], ids=["attention", "encoder", "decoder"])  # fmt: skip
def test_pytorchs_own_modules(make: Callable[[], nn.Module], training: bool) -> None:
    """In eval mode too, where their shortcuts past the function are off inside the block."""
    module = make().double().train(training)
    x = torch.randn(2, 5, 8).double()
    arguments: dict[str, Any] = {"need_weights": False} if isinstance(module, nn.MultiheadAttention) else {}
    inputs = {nn.MultiheadAttention: 3, nn.TransformerEncoderLayer: 1, nn.TransformerDecoderLayer: 2}[type(module)]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = module(*[x] * inputs, **arguments)
            with route_sdpa() as report:
                got = module(*[x] * inputs, **arguments)
        assert report.routed == (2 if isinstance(module, nn.TransformerDecoderLayer) else 1)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("backward", [lambda x: x.backward(), torch.autograd.backward, None], ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_checkpointed_passes_are_computed_anew_in_the_block(call: Callable[..., Tensor], backward: Any) -> None:
    x = torch.randn(2, 2, 5, 4).double().requires_grad_()
    expected = torch.autograd.grad(call(x, x, x).square().sum(), x)[0]
    with route_sdpa() as report:
        loss = checkpoint(lambda y: call(y, y, y).square().sum(), x, use_reentrant=False)
        if backward is None:
            got = torch.autograd.grad(loss, x)[0]
        else:
            backward(loss)
            got = x.grad
    assert report.routed == 2
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def passed_on(*args: Any, **kwargs: Any) -> dict[str, int]:
    """The reasons that two calls give for going on to PyTorch, whose result they have."""
    expected = F.scaled_dot_product_attention(*args, **kwargs)
    for call in CALLS.values():
        with pytest.warns(UserWarning, match="goes on to PyTorch") as caught, route_sdpa() as report:
            outs = [call(*args, **kwargs) for _ in range(2)]
        assert len(caught) == 1
        assert caught[0].filename == __file__ or call is taken_before
        assert report.routed == 0
        if not kwargs.get("dropout_p"):
            assert all(torch.equal(out, expected) for out in outs)
        with route_sdpa(strict=True), pytest.raises(ValueError, match="cannot be routed: "):
            call(*args, **kwargs)
    return report.passed_on


def test_what_the_kernels_cannot_take_goes_on() -> None:
    query, key, value = draw(2, 3)
    assert passed_on(query, key, value, dropout_p=0.5) == {"dropout_p is not 0": 2}
    assert passed_on(query, key[:1], value[:1]) == {"batch dimensions that broadcast": 2}
    assert passed_on(query, key[:, :1], value[:, :1]) == {"batch dimensions that broadcast": 2}
    mask = torch.zeros(3, 5).double()
    reasons = passed_on(query, key, value, mask, is_causal=True)
    assert reasons == {"attn_mask together with is_causal, which PyTorch does not define": 2}
    half = [x.detach().bfloat16() for x in (query, key, value)]
    for inputs, dtype in ((half, "bfloat16"), ((query, key, value), "float64")):  # these float32 masks PyTorch takes
        reason = f"attn_mask is torch.float32 where query is torch.{dtype}"
        assert passed_on(*inputs, torch.randn(3, 5)) == {reason: 2}
    assert passed_on(query, key, value, scale=torch.tensor(0.5)) == {"scale is a Tensor": 2}
    assert passed_on(query[..., :0], key[..., :0], value) == {"rows of no numbers": 2}


def test_autocast_makes_masks_fit() -> None:
    query, key, value = (x.detach().float() for x in draw(2, 3))
    with torch.autocast("cpu", torch.bfloat16), route_sdpa() as report:
        out = F.scaled_dot_product_attention(query.bfloat16(), key, value, torch.zeros(3, 5))
    assert (report.routed, out.dtype) == (1, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:scaled_dot_product_attention goes on")
def test_pytorch_raises_its_own_errors() -> None:
    integers = torch.ones(2, 3, 5, 4, dtype=torch.long)
    with route_sdpa() as report, pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(integers, integers, integers)
    assert report.passed_on == {"dtype torch.int64 is not floating-point": 1}


@pytest.mark.filterwarnings("ignore:scaled_dot_product_attention goes on")
def test_report() -> None:
    query, key, value = draw(2, 3)
    with route_sdpa() as report:
        F.scaled_dot_product_attention(query, key, value)
        F.scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    assert repr(report) == "route_sdpa: 1 calls routed, 1 (dropout_p is not 0) passed on to PyTorch"


@pytest.mark.filterwarnings("ignore:scaled_dot_product_attention goes on")
def test_blocks_nest_and_exceptions_leave_them() -> None:
    inputs = draw(2, 3)

    def fail(block: route_sdpa) -> None:
        with block:
            F.scaled_dot_product_attention(*inputs)
            raise KeyError

    inner, second = route_sdpa(), route_sdpa()
    with route_sdpa() as outer:
        F.scaled_dot_product_attention(*inputs)
        with pytest.raises(KeyError):
            fail(inner)
        with second:
            F.scaled_dot_product_attention(*inputs, dropout_p=0.5)
        F.scaled_dot_product_attention(*inputs)
    assert (outer.routed, inner.routed, second.routed) == (2, 1, 0)
    assert (outer.passed_on, second.passed_on) == ({}, {"dropout_p is not 0": 1})


def test_other_threads_are_not_routed() -> None:
    inputs = draw(2, 3)
    expected = F.scaled_dot_product_attention(*inputs)
    seen = []
    with route_sdpa() as report:
        thread = threading.Thread(target=lambda: seen.append(F.scaled_dot_product_attention(*inputs)))
        thread.start()
        thread.join()
    assert report.routed == 0
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_compiled(call: Callable[..., Tensor]) -> None:
    """One graph for inside the block and one for outside, whichever comes first."""
    inputs = tuple(x.detach() for x in draw(2, 3))
    expected = call(*inputs)
    with route_sdpa():
        routed = call(*inputs)
    for block_first in (True, False):
        torch._dynamo.reset()
        compiled = torch.compile(lambda *x: call(*x), fullgraph=True, backend="aot_eager")
        for inside in (block_first, not block_first, block_first):
            if inside:
                with route_sdpa() as report:
                    assert torch.equal(compiled(*inputs), routed)
                assert report.routed == 1
            else:
                assert torch.equal(compiled(*inputs), expected)
    assert not torch.equal(routed, expected)  # or nothing was compared


def test_compiled_modules_of_pytorch_go_on_and_are_counted() -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    torch._dynamo.reset()
    compiled = torch.compile(lambda y: module(y, y, y, need_weights=False)[0], backend="aot_eager")
    with route_sdpa() as report:
        torch.testing.assert_close(compiled(x), module(x, x, x, need_weights=False)[0])
    assert report.passed_on == {"multi_head_attention_forward inside torch.compile": 1}
    assert report.routed == 1  # the one that is not compiled


def test_the_kernels_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(2, 3)
    calls = []
    monkeypatch.setattr(
        "mhicl_fast.nn.routing.attention", lambda *a, **k: calls.append(1) or mhicl_fast.attention(*a, **k)
    )
    with route_sdpa():
        taken_before(*inputs)
    taken_before(*inputs)
    assert calls == [1]
