"""What attention says of inputs that do not fit."""

from __future__ import annotations

import pytest
import torch
from attentions import Case, make_inputs, make_lengths

from mhicl_fast import _extension, attention

CASE = Case(3, 4, 2, 5, 7, 6, 8)


def changed(**changes: object) -> dict:
    return dict(zip(("query", "key", "value"), make_inputs(CASE, torch.float32, seed=0), strict=True)) | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": [[1.0]]}, TypeError, "query must be a torch.Tensor, got list"),
        ({"key": None}, TypeError, "key must be a torch.Tensor, got NoneType"),
        ({"query": torch.zeros(3, 4, 5, 6, dtype=torch.int64)}, TypeError, "query must be float64, .* got torch.int64"),
        ({"value": torch.zeros(3, 2, 7, 8, dtype=torch.complex64)}, TypeError, "value must be float64"),
        ({"key": torch.zeros(3, 2, 7, 6, dtype=torch.float64)}, TypeError, "one dtype, got query torch.float32"),
        ({"value": torch.zeros(3, 2, 7, 8, device="meta")}, ValueError, "got query on cpu and value on meta"),
        ({"query": torch.zeros(6)}, ValueError, r"query must be \(\.\.\., heads, rows, dim\) .* got shape \[6\]"),
        ({"query": torch.zeros(3, 4, 5, 0)}, ValueError, "query must be .* at least one dim"),
        ({"query": torch.zeros(4, 5, 6)}, ValueError, r"key must be \(4, keys, 6\) to go with query \[4, 5, 6\]"),
        ({"query": torch.zeros(2, 4, 5, 6)}, ValueError, r"key must be \(2, heads, keys, 6\) to go with query"),
        ({"key": torch.zeros(3, 2, 7, 5)}, ValueError, r"\(3, heads, keys, 6\) .* got shape \[3, 2, 7, 5\]"),
        ({"value": torch.zeros(3, 2, 6, 8)}, ValueError, r"value must be \(3, 2, 7, value_dim\) to go with key"),
        ({"value": torch.zeros(3, 1, 7, 8)}, ValueError, r"value must be \(3, 2, 7, value_dim\)"),
        ({"query": torch.zeros(3, 3, 5, 6)}, ValueError, "heads must be a multiple of key's, got 3 and 2"),
        ({"key": torch.zeros(3, 0, 7, 6), "value": torch.zeros(3, 0, 7, 8)}, ValueError, "of key's, got 4 and 0"),
        ({"enable_gqa": False}, ValueError, "as many heads with enable_gqa=False, got 4 and 2"),
        ({"attn_mask": [True]}, TypeError, "attn_mask must be a torch.Tensor, got list"),
        ({"attn_mask": torch.zeros(7, dtype=torch.int64)}, TypeError, "boolean or torch.float32 .* got torch.int64"),
        ({"attn_mask": torch.zeros(7, dtype=torch.float64)}, TypeError, "boolean or torch.float32 like query"),
        ({"attn_mask": torch.zeros(7, device="meta")}, ValueError, "attn_mask must be on cpu like query, got meta"),
        (
            {"attn_mask": torch.zeros(3, 2, 5, 7)},
            ValueError,
            r"broadcastable to the logits \(3, 4, 5, 7\), got shape \[3, 2, 5, 7\]",
        ),
        ({"attn_mask": torch.zeros(1, 3, 4, 5, 7)}, ValueError, "broadcastable to the logits"),
        ({"attn_mask": torch.zeros(6)}, ValueError, "broadcastable to the logits"),
        ({"key_lengths": [1, 2, 3]}, TypeError, "key_lengths must be an integer tensor, got list"),
        ({"key_lengths": torch.ones(3)}, TypeError, "key_lengths must be an integer tensor, got torch.float32"),
        ({"key_lengths": torch.ones(3, dtype=torch.bool)}, TypeError, "integer tensor, got torch.bool"),
        ({"key_lengths": torch.ones(2, dtype=torch.int64)}, ValueError, r"key_lengths .* = \(3,\), got shape \[2\]"),
        ({"key_lengths": torch.ones(3, 4, dtype=torch.int64)}, ValueError, "key_lengths must be .* without heads"),
        ({"key_lengths": torch.ones(3, dtype=torch.int64, device="meta")}, ValueError, "key_lengths must be on cpu"),
        ({"key_lengths": torch.tensor([1, 8, 3])}, ValueError, r"key_lengths must lie in \[0, 7\], got 8 for .* 1"),
        ({"key_lengths": torch.tensor([1, 2, -1])}, ValueError, r"key_lengths must lie in \[0, 7\], got -1 for .* 2"),
        ({"dropout_p": 0.1}, ValueError, "dropout_p must be 0, since there is no dropout, got 0.1"),
        ({"scale": "big"}, TypeError, "scale must be a float or None, got str"),
        ({"activation": "gelu"}, ValueError, "activation must be one of softmax, linear, relu, got 'gelu'"),
        ({"activation": "relu", "return_lse": True}, ValueError, "return_lse needs the activation softmax, got 'relu'"),
        ({"activation": "linear", "return_lse": True}, ValueError, "return_lse needs the activation softmax"),
    ],
)  # fmt: skip
def test_clear_errors(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention(**changed(**changes))


def test_devices_without_kernels_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda", 0)

    monkeypatch.setattr(_extension, "_CUDA_OPERATORS", frozenset())

    query = torch.zeros(3, 4, 5, 6).as_subclass(Elsewhere)
    with pytest.raises(ValueError, match=r"query is on cuda:0, but this build has no CUDA kernels \(.*MHICL_CUDA=1"):
        attention(**changed(query=query))


@pytest.mark.parametrize("bad", [8, -1])
def test_lengths_are_checked_under_transforms_too(bad: int) -> None:
    arguments = changed(key_lengths=torch.tensor([1, bad, 3]))
    key = arguments.pop("key")
    with pytest.raises(ValueError, match=rf"key_lengths must lie in \[0, 7\], got {bad} for .* 1"):
        torch.func.grad(lambda x: attention(key=x, **arguments).sum())(key)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_lengths_of_any_integer_type(dtype: torch.dtype) -> None:
    lengths = make_lengths(3, 7, seed=0)
    expected = attention(**changed(key_lengths=lengths))
    assert torch.equal(attention(**changed(key_lengths=lengths.to(dtype))), expected)


def test_the_operators_themselves_refuse_bad_inputs() -> None:
    query, key, value = make_inputs(CASE, torch.float32, seed=0)
    options = {"scale": 1.0, "is_causal": False, "activation": "softmax"}
    outputs = {"want_lse": False, "want_weights": False}
    forward = torch.ops.mhicl.attention
    with pytest.raises(ValueError, match="key"):
        forward(query, key[:2], value, None, None, **options, **outputs)
    with pytest.raises(ValueError, match="value"):
        forward(query, key, value[:, :, :6], None, None, **options, **outputs)
    with pytest.raises(TypeError, match="dtype"):
        forward(query, key.double(), value, None, None, **options, **outputs)
    with pytest.raises(ValueError, match="attn_mask"):
        forward(query, key, value, torch.zeros(3, 4, 5, 6), None, **options, **outputs)
    with pytest.raises(ValueError, match="activation"):
        forward(query, key, value, None, None, **(options | {"activation": "gelu"}), **outputs)
    *_, stats = forward(query, key, value, None, None, **options, **outputs)
    with pytest.raises(ValueError, match="grad_out"):
        torch.ops.mhicl.attention_backward(
            query, None, None, query, key, value, None, None, stats, **options, needs=[True] * 3 + [False]
        )
