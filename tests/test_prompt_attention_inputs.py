"""What prompt_attention says of inputs that do not fit."""

from __future__ import annotations

import pytest
import torch
from prompts import Shape, make_inputs

from mhicl_fast import ops

SHAPE = Shape(3, 4, 5, 2, 2)


def changed(**changes: object) -> dict:
    names = ("context", "query", "kq", "ov")
    return dict(zip(names, make_inputs(SHAPE, torch.float32, seed=0), strict=True)) | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"context": torch.zeros(3, 5)},
            ValueError,
            r"context must be \(prompts, positions, dim\), got shape \[3, 5\]",
        ),
        ({"context": torch.zeros(3, 4, 0)}, ValueError, "context must have at least one dim"),
        (
            {"query": torch.zeros(3, 1, 5)},
            ValueError,
            r"query must be \(prompts, dim\) = \(3, 5\), got shape \[3, 1, 5\]",
        ),
        ({"query": torch.zeros(2, 5)}, ValueError, "query must be"),
        ({"kq": torch.zeros(2, 5, 4)}, ValueError, r"kq must be .* with dim = 5, got shape \[2, 5, 4\]"),
        ({"kq": torch.zeros(5, 5)}, ValueError, "kq must be"),
        ({"ov": torch.zeros(3, 2, 5)}, ValueError, r"ov must be \(2, outputs, 5\) to go with kq \[2, 5, 5\]"),
        ({"ov": torch.zeros(1, 2, 2, 5)}, ValueError, "ov must be"),
        ({"query": torch.zeros(3, 5, dtype=torch.float64)}, TypeError, "one dtype, got context torch.float32"),
        (
            {"context": torch.zeros(3, 4, 5, dtype=torch.int64)},
            TypeError,
            "context must be float64, .* got torch.int64",
        ),
        ({"kq": torch.zeros(2, 5, 5, dtype=torch.complex64)}, TypeError, "kq must be float64"),
        ({"kq": [[1.0]]}, TypeError, "kq must be a torch.Tensor, got list"),
        ({"query": torch.zeros(3, 5, device="meta")}, ValueError, "one device, got context on cpu and query on meta"),
        ({"context_lengths": torch.tensor([1, 2])}, ValueError, r"context_lengths must be \(prompts,\) = \(3,\)"),
        ({"context_lengths": torch.tensor([1.0, 2, 3])}, TypeError, "integer tensor, got torch.float32"),
        ({"context_lengths": [1, 2, 3]}, TypeError, "integer tensor, got list"),
        ({"context_lengths": torch.tensor([1, 5, 3])}, ValueError, r"lie in \[0, 4\], got 5 for prompt 1"),
        ({"context_lengths": torch.tensor([1, 2, -1])}, ValueError, r"lie in \[0, 4\], got -1 for prompt 2"),
    ],
)
def test_clear_errors(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.prompt_attention(**changed(**changes))


@pytest.mark.parametrize("bad", [5, -1])
def test_lengths_are_checked_under_transforms_too(bad: int) -> None:
    arguments = changed(context_lengths=torch.tensor([1, bad, 3]))
    kq = arguments.pop("kq")
    with pytest.raises(ValueError, match=rf"lie in \[0, 4\], got {bad} for prompt 1"):
        torch.func.grad(lambda x: ops.prompt_attention(kq=x, **arguments).sum())(kq)


def test_moments_are_checked_too() -> None:
    arguments = changed(query=torch.zeros(2, 5))
    del arguments["ov"]
    with pytest.raises(ValueError, match="query must be"):
        ops.prompt_moments(**arguments)


def test_the_operators_themselves_refuse_bad_shapes() -> None:
    context, query, kq, ov = make_inputs(SHAPE, torch.float32, seed=0)
    with pytest.raises(ValueError, match="query must be"):
        torch.ops.mhicl.prompt_attention(context, query[:2], kq[None], ov[None], None, False, False)
    with pytest.raises(TypeError, match="expected one dtype"):
        torch.ops.mhicl.prompt_moments(context, query.double(), kq, None, True)
    with pytest.raises(ValueError, match="grad_moments must have shape"):
        torch.ops.mhicl.prompt_moments_backward(kq, None, context, query, kq, None, [True] * 3)
    kept = torch.empty(0)
    with pytest.raises(ValueError, match="grad_out must have shape"):
        torch.ops.mhicl.prompt_attention_backward(
            query, context, query, kq[None], ov[None], None, kept, kept, [True] * 4
        )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_lengths_of_any_integer_type(dtype: torch.dtype) -> None:
    arguments = changed()
    lengths = torch.tensor([0, 2, 4])
    expected = ops.prompt_attention(**arguments, context_lengths=lengths)
    assert torch.equal(ops.prompt_attention(**arguments, context_lengths=lengths.to(dtype)), expected)
