"""Conversion from and to torch.nn.MultiheadAttention, and models whose attention was replaced."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from multi_head_modules import gradients
from torch import Tensor, nn

from mhicl_fast.nn import (
    MultiHeadAttention,
    TorchMultiheadAttention,
    from_torch,
    replace_attention,
    restore_attention,
    to_torch,
)

D, HEADS, N, L = 12, 4, 3, 7


def torch_module(**settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(3)
    module = nn.MultiheadAttention(D, HEADS, dtype=torch.float64, **settings)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)  # biases start at 0
    return module


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-10, msg=name)


SETTINGS = [{}, {"bias": False}, {"kdim": 5, "vdim": 6}, {"kdim": 5, "vdim": 6, "bias": False}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("projection", ["tokens", "query"])
def test_from_torch(settings: dict[str, Any], projection: str) -> None:
    module = torch_module(batch_first=True, **settings)
    converted = from_torch(module, projection=projection)
    key = torch.randn(N, L, module.kdim).double()
    query, value = torch.randn(N, 2, D).double(), torch.randn(N, L, module.vdim).double()
    expected, weights = module(query, key, value, average_attn_weights=False)
    got, got_weights = converted(query, key, value, return_weights=True)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(got_weights, weights, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_to_torch_gives_the_module_back(settings: dict[str, Any], batch_first: bool) -> None:
    module = torch_module(batch_first=batch_first, **settings).eval()
    back = to_torch(from_torch(module), batch_first=batch_first)
    assert type(back) is nn.MultiheadAttention
    assert (back.training, back.batch_first) == (False, batch_first)
    assert_equal(back.state_dict(), module.state_dict())
    with torch.no_grad():
        next(back.parameters()).zero_()  # copies: the original stays
    assert next(module.parameters()).abs().min() > 0


def test_what_cannot_be_converted() -> None:
    for settings, message in [
        ({"dropout": 0.1}, r"dropout on the attention weights must be 0, got 0.1.*\.dropout = 0.0"),
        ({"add_bias_kv": True}, "add_bias_kv must be False"),
        ({"add_zero_attn": True}, "add_zero_attn must be False"),
    ]:
        for convert in (from_torch, replace_attention):
            with pytest.raises(ValueError, match=message):
                convert(torch_module(**settings))
        with pytest.raises(ValueError, match=message):
            TorchMultiheadAttention(D, HEADS, **settings)
    for settings, message in [
        ({"head_dim": 5}, "heads of width 12 / 4 and an output of width 12, got head_dim 5 and out_dim 12"),
        ({"out_dim": 1}, "got head_dim 3 and out_dim 1"),
        ({"scale": 1.0}, "got softmax and scale 1.0"),
        ({"activation": "relu"}, "got relu and scale"),
        ({"out_bias": True}, "biases on all projections or on none"),
    ]:
        with pytest.raises(ValueError, match=message):
            to_torch(MultiHeadAttention(D, HEADS, **settings))
    with pytest.raises(TypeError, match=r"must be a torch.nn.MultiheadAttention, got Linear"):
        from_torch(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a MultiHeadAttention, got Linear"):
        to_torch(nn.Linear(2, 2))  # type: ignore[arg-type]


def masks(kind: str, *, rows: int = L) -> dict[str, Any]:
    """Arguments for one kind of masks; each row sees its first key."""
    hidden = torch.rand(rows, L) < 0.4
    hidden[:, 0] = False
    padding = torch.arange(L) >= torch.tensor([L, 4, 1])[:, None]
    causal = torch.ones(rows, L, dtype=torch.bool).triu(1)

    def added(mask: Tensor) -> Tensor:
        return torch.randn(mask.shape).double().masked_fill(mask, -torch.inf)

    per_head = torch.rand(N * HEADS, rows, L) < 0.4
    per_head[..., 0] = False
    return {
        "none": {},
        "mask": {"attn_mask": hidden},
        "added": {"attn_mask": added(hidden)},
        "per head": {"attn_mask": per_head},
        "padding": {"key_padding_mask": padding},
        "added padding": {"key_padding_mask": added(padding)},
        "both": {"attn_mask": hidden, "key_padding_mask": padding},
        "both added": {"attn_mask": added(per_head), "key_padding_mask": added(padding)},
        "causal": {"attn_mask": causal, "is_causal": True},
        "causal and padding": {"attn_mask": causal, "is_causal": True, "key_padding_mask": padding},
    }[kind]


KINDS = ["none", "mask", "added", "per head", "padding", "added padding", "both", "both added", "causal"]


@pytest.mark.parametrize("kind", [*KINDS, "causal and padding"])
@pytest.mark.parametrize("self_attention", [True, False], ids=["self", "cross"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "rows first"])
def test_replaced_module_has_the_parents_results(kind: str, self_attention: bool, batch_first: bool) -> None:
    """Packed weights in self-attention, separate ones otherwise; with weights and without, averaged and not."""
    expected_module = torch_module(batch_first=batch_first, **({} if self_attention else {"kdim": 5, "vdim": 6}))
    module = copy.deepcopy(expected_module)
    assert replace_attention(module) == [""]
    rows = L if self_attention else 2
    widths = [D] if self_attention else [D, 5, 6]
    leading = [(N, n) if batch_first else (n, N) for n in (rows, L, L)]
    inputs = tuple(torch.randn(*size, width).double().requires_grad_() for size, width in zip(leading, widths))
    arguments = masks(kind, rows=rows)
    triple = inputs * 3 if self_attention else inputs
    for need_weights, average in itertools.product([True, False], [True, False]):
        options = {"need_weights": need_weights, "average_attn_weights": average}
        expected, expected_weights = expected_module(*triple, **arguments, **options)
        got, weights = module(*triple, **arguments, **options)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
        assert_equal(gradients(module, got, inputs), gradients(expected_module, expected, inputs))
        assert (weights is None) == (expected_weights is None)
        if weights is not None:
            torch.testing.assert_close(weights, expected_weights, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("need_weights", [True, False])
def test_unbatched(need_weights: bool) -> None:
    expected_module = torch_module()
    module = copy.deepcopy(expected_module)
    replace_attention(module)
    query, tokens = torch.randn(2, D).double(), torch.randn(L, D).double()
    padding = torch.arange(L) >= 5
    for arguments in ({}, {"key_padding_mask": padding}, {"attn_mask": torch.randn(HEADS, 2, L).double()}):
        expected = expected_module(query, tokens, tokens, need_weights=need_weights, **arguments)
        got = module(query, tokens, tokens, need_weights=need_weights, **arguments)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


def test_one_query_without_biases_over_many_tokens() -> None:
    expected_module = torch_module(bias=False)
    module = copy.deepcopy(expected_module)
    replace_attention(module)
    query, tokens = torch.randn(1, 40, D).double(), torch.randn(L, 40, D).double()
    expected, got = (m(query, tokens, tokens, need_weights=False)[0] for m in (expected_module, module))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    assert_equal(gradients(module, got), gradients(expected_module, expected))


def encoder(*, layers: int = 2, dropout: float = 0.0, **settings: Any) -> nn.TransformerEncoder:
    torch.manual_seed(5)
    layer = nn.TransformerEncoderLayer(D, HEADS, 16, dropout, dtype=torch.float64, **settings)
    model = nn.TransformerEncoder(layer, layers)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["none", "padding", "causal", "causal and padding", "added", "both"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("settings", [{"batch_first": True}, {"batch_first": True, "norm_first": True}, {}], ids=str)
def test_encoder(settings: dict[str, Any], training: bool, kind: str) -> None:
    """In eval mode PyTorch's layers take a shortcut past their attention modules, where gradients are off."""
    expected_model = encoder(**settings).train(training)
    model = copy.deepcopy(expected_model)
    assert replace_attention(model) == ["layers.0.self_attn", "layers.1.self_attn"]
    x = torch.randn(N, L, D).double()
    arguments = {"mask": masks(kind).get("attn_mask"), "src_key_padding_mask": masks(kind).get("key_padding_mask")}
    if "causal" in kind:
        arguments["is_causal"] = True
    real = torch.ones(N, L, 1, dtype=torch.bool)
    if (padding := arguments["src_key_padding_mask"]) is not None:
        real = ~padding[..., None]
    if not settings.get("batch_first"):
        x, real = x.transpose(0, 1), real.transpose(0, 1)
    x.requires_grad_()
    calls = []
    handle = model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    expected, got = expected_model(x, **arguments) * real, model(x, **arguments) * real
    handle.remove()
    assert calls == [1]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    assert_equal(gradients(model, got, (x,)), gradients(expected_model, expected, (x,)))
    with torch.no_grad():
        shortcut, got = expected_model(x, **arguments) * real, model(x, **arguments) * real
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    if kind != "added":  # PyTorch's shortcut reads every number of an added mask but 0 as "hidden"
        torch.testing.assert_close(got, shortcut, rtol=1e-10, atol=1e-11)


def test_the_shortcut_in_eval_mode_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(batch_first=True).eval()
    x, padding = torch.randn(N, L, D).double(), torch.arange(L) >= torch.tensor([L, 4, 1])[:, None]
    calls = []
    forward = TorchMultiheadAttention.forward
    monkeypatch.setattr(TorchMultiheadAttention, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    with torch.no_grad():
        before = model(x, src_key_padding_mask=padding)
        replace_attention(model)
        model(x, src_key_padding_mask=padding)
        assert calls == [1, 1]
        restore_attention(model)
        assert torch.equal(model(x, src_key_padding_mask=padding), before)
        assert calls == [1, 1]


def test_replacing_and_restoring() -> None:
    model = nn.ModuleDict({"encoder": encoder(batch_first=True), "head": nn.Linear(D, 1)})
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    names = replace_attention(model)
    assert names == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))  # an optimiser goes on working
    assert_equal(model.state_dict(), state)
    assert isinstance(copy.deepcopy(model)["encoder"].layers[0].self_attn, TorchMultiheadAttention)
    assert not model["encoder"].use_nested_tensor
    assert replace_attention(model) == []
    with pytest.raises(ValueError, match=r"no torch.nn.MultiheadAttention to replace in Linear"):
        replace_attention(model["head"])
    assert restore_attention(model) == names
    assert model["encoder"].use_nested_tensor
    modules = [model["encoder"].layers[i].self_attn for i in range(2)]
    assert all(type(module) is nn.MultiheadAttention and module._qkv_same_embed_dim for module in modules)
    assert restore_attention(model) == []


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_constructed_module_is_made_as_the_parent(settings: dict[str, Any]) -> None:
    torch.manual_seed(3)
    parent = nn.MultiheadAttention(D, HEADS, **settings)
    torch.manual_seed(3)
    module = TorchMultiheadAttention(D, HEADS, **settings)
    assert type(module) is TorchMultiheadAttention
    assert_equal(module.state_dict(), parent.state_dict())
    torch.manual_seed(4)
    parent._reset_parameters()
    torch.manual_seed(4)
    module._reset_parameters()
    assert_equal(module.state_dict(), parent.state_dict())
    inputs = torch.randn(L, N, D), torch.randn(L, N, parent.kdim), torch.randn(L, N, parent.vdim)
    expected = parent(*inputs)[0]
    torch.testing.assert_close(module(*inputs)[0], expected)
    restore_attention(module)
    torch.testing.assert_close(module(*inputs)[0], expected)


def test_nothing_is_changed_where_something_cannot_be() -> None:
    model = encoder(batch_first=True)
    model.layers[1].self_attn.dropout = 0.1
    with pytest.raises(ValueError, match=r"layers.1.self_attn: dropout on the attention weights must be 0, got 0.1"):
        replace_attention(model)
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    assert model.use_nested_tensor

    class Other(nn.MultiheadAttention):
        pass

    model.layers[1].self_attn = Other(D, HEADS)
    with pytest.raises(TypeError, match=r"layers.1.self_attn must be a torch.nn.MultiheadAttention itself, got Other"):
        replace_attention(model)
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention


def test_errors_when_called() -> None:
    model = encoder(batch_first=True)
    attention = model.layers[0].self_attn
    replace_attention(model.layers)  # the encoder itself goes on making nested tensors
    x, padding = torch.randn(N, L, D).double(), torch.arange(L) >= torch.tensor([L, 4, 1])[:, None]
    with torch.no_grad(), pytest.raises(ValueError, match=r"must not be nested tensors.*use_nested_tensor = False"):
        model.eval()(x, src_key_padding_mask=padding)
    assert replace_attention(model) == []  # of no further module, but now it makes none
    with torch.no_grad():
        model(x, src_key_padding_mask=padding)
    with pytest.raises(RuntimeError, match="is_causal is a hint about attn_mask"):
        attention(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match=r"key must have width 12, got shape \[3, 7, 11\]"):
        attention(x, x[..., 1:], x)
    with pytest.raises(ValueError, match="two or three dimensions"):
        attention(x[None], x, x)
    attention.dropout = 0.5
    with pytest.raises(ValueError, match=r"weights must be 0, got 0.5"):
        attention(x, x, x)


def test_a_row_that_sees_no_key() -> None:
    module = torch_module(batch_first=True)
    replace_attention(module)
    x = torch.randn(N, L, D).double()
    padding = torch.zeros(N, L, dtype=torch.bool)
    padding[1] = True
    out, _ = module(x, x, x, key_padding_mask=padding)
    torch.testing.assert_close(out[1], module.out_proj.bias.expand(L, D))
    assert all(grad.isfinite().all() for grad in gradients(module, out).values())
