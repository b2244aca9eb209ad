"""MultiHeadAttention against a plain module, on either side of its projections."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from multi_head_modules import PlainMultiHead, gradients
from torch import Tensor
from torch.nn.utils import parametrize

from mhicl_fast.nn import MultiHeadAttention, core

SIDES = ["tokens", "query"]


class Case(NamedTuple):
    dims: tuple[int, int, int]  # query, key, value
    heads: int
    head_dim: int
    out_dim: int
    n: int
    rows: int
    tokens: int


CASES = [
    Case((5, 7, 3), 2, 4, 6, 3, 2, 9),
    Case((6, 6, 6), 3, 6, 2, 4, 1, 5),
    Case((6, 6, 6), 3, 2, 6, 9, 7, 7),  # more queries than a width: KQ and OV are formed
    Case((4, 4, 4), 1, 1, 1, 2, 3, 1),
]


def make(case: Case, *, bias: bool = False, **options: Any) -> tuple[MultiHeadAttention, PlainMultiHead]:
    """The package's module with a plain one's state, in float64."""
    torch.manual_seed(hash(case) % 1000)
    plain = PlainMultiHead(case.dims, case.heads, case.head_dim, case.out_dim, bias).double()
    module = MultiHeadAttention(
        case.dims[0], case.heads, kdim=case.dims[1], vdim=case.dims[2], head_dim=case.head_dim, out_dim=case.out_dim,
        bias=bias, dtype=torch.float64, **options,
    )  # fmt: skip
    module.load_state_dict(plain.state_dict())
    return module, plain


def draw(case: Case, *, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    lengths = (case.rows, case.tokens, case.tokens)
    tensors = (torch.randn(case.n, length, dim).double() for length, dim in zip(lengths, case.dims))
    query, key, value = (x.requires_grad_(grad) for x in tensors)
    return query, key, value


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("is_causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_are_the_plain_modules(case: Case, side: str, bias: bool, is_causal: bool) -> None:
    module, plain = make(case, bias=bias, projection=side)
    inputs = draw(case)
    assert module.plan(*inputs).side == side
    got, expected = module(*inputs, is_causal=is_causal), plain(*inputs, is_causal=is_causal)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    assert_equal(gradients(module, got, inputs), gradients(plain, expected, inputs))


@pytest.mark.parametrize("kind", ["boolean", "additive", "per head"])
@pytest.mark.parametrize("side", SIDES)
def test_masks(side: str, kind: str) -> None:
    case = CASES[0]
    module, plain = make(case, bias=True, projection=side)
    inputs = draw(case)
    shape = (case.n, case.heads, case.rows, case.tokens) if kind == "per head" else (case.rows, case.tokens)
    mask = torch.rand(shape) < 0.6
    mask[..., 0] = True
    if kind == "additive":
        mask = torch.randn(shape).double().masked_fill(~mask, -torch.inf)
    got, expected = module(*inputs, attn_mask=mask), plain(*inputs, attn_mask=mask)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    assert_equal(gradients(module, got, inputs), gradients(plain, expected, inputs))


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("case", CASES[:2], ids=str)  # the second takes `prompt_attention` where there is no bias
def test_lengths_hide_what_lies_behind_them(case: Case, bias: bool) -> None:
    """Each problem on its own, cut to its length, is the definition; a length of 0 leaves o_proj's bias."""
    modules = [make(case, bias=bias, projection=side) for side in SIDES]
    query, key, _ = draw(case, grad=False)
    value = key if len(set(case.dims)) == 1 else torch.randn(case.n, case.tokens, case.dims[2]).double()
    lengths = torch.arange(case.n) % (case.tokens + 1)
    for tensor in (key, value):
        for i, length in enumerate(lengths.tolist()):
            tensor[i, length:] = torch.nan
    for module, plain in modules:
        cut = [plain(query[i : i + 1], key[i : i + 1, :n], value[i : i + 1, :n])[0] for i, n in enumerate(lengths) if n]
        empty = plain.o_proj(torch.zeros(case.rows, case.heads * case.head_dim).double())
        expected = torch.stack([empty, *cut])
        got = module(query, key, value, key_lengths=lengths)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
        assert_equal(gradients(module, got), gradients(plain, expected))


@pytest.mark.parametrize("side", SIDES)
def test_a_head_that_sees_nothing_adds_nothing(side: str) -> None:
    """The value bias rides on the weights, so it is missing too where a head's row has none."""
    case = CASES[0]
    module, plain = make(case, bias=True, projection=side)
    inputs = draw(case)
    mask = torch.ones(case.heads, case.rows, case.tokens, dtype=torch.bool)
    mask[1, 0] = False
    got = module(*inputs, attn_mask=mask)
    without = copy.deepcopy(plain)
    with torch.no_grad():
        without.o_proj.weight[:, case.head_dim :] = 0
    expected = plain(*inputs).clone()
    expected[:, 0] = without(*inputs)[:, 0]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    assert all(grad.isfinite().all() for grad in gradients(module, got, inputs).values())


@pytest.mark.parametrize("side", SIDES)
def test_weights(side: str) -> None:
    case = CASES[0]
    module, plain = make(case, bias=True, projection=side)
    inputs = draw(case)
    _, weights = module(*inputs, return_weights=True)
    q, k, _ = plain.split(*inputs)
    expected = (q @ k.mT * case.head_dim**-0.5).softmax(-1)
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-11)
    assert_equal(gradients(module.q_proj, weights), gradients(plain.q_proj, expected))


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_activations(activation: str, bias: bool) -> None:
    case = CASES[0]
    inputs = draw(case)
    for side in ["tokens", "auto"] if bias else SIDES:
        module, plain = make(case, bias=bias, activation=activation, projection=side, scale=1 / case.tokens)
        assert not bias or module.plan(*inputs).side == "tokens"
        q, k, v = plain.split(*inputs)
        logits = q @ k.mT / case.tokens
        weights = logits.relu() if activation == "relu" else logits
        expected = plain.o_proj((weights @ v).transpose(1, 2).flatten(2))
        got = module(*inputs)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
        assert_equal(gradients(module, got, inputs), gradients(plain, expected, inputs))


def test_factored_conventions() -> None:
    """KQ_h = W_K,hᵀ W_Q,h E^-½ and OV_h = W_O,h W_V,h give the model of `prompt_attention`."""
    case = CASES[1]
    module, plain = make(case)
    e = case.head_dim
    for h in range(case.heads):
        rows = slice(h * e, (h + 1) * e)
        w_q, w_k, w_v = (layer.weight[rows] for layer in (plain.q_proj, plain.k_proj, plain.v_proj))
        torch.testing.assert_close(module.kq[h], w_k.T @ w_q * e**-0.5)
        torch.testing.assert_close(module.ov[h], plain.o_proj.weight[:, rows] @ w_v)
    context, query = torch.randn(4, 5, 6).double(), torch.randn(4, 6).double()
    logits = torch.einsum("nld,hde,ne->nhl", context, module.kq, query)
    expected = torch.einsum("nhl,nld,hod->no", logits.softmax(-1), context, module.ov)
    torch.testing.assert_close(module(query[:, None], context, context)[:, 0], expected)


@pytest.mark.parametrize("out_bias", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 0, 5, 1] * 5)])
def test_one_query_over_shared_tokens_takes_prompt_attention(
    lengths: Tensor | None, out_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((6, 6, 6), 3, 6, 2, 20, 1, 5)
    module = MultiHeadAttention(6, 3, head_dim=6, out_dim=2, out_bias=out_bias, dtype=torch.float64)
    query, context, _ = draw(case)
    calls = []
    operator = core.prompt_attention
    monkeypatch.setattr(core, "prompt_attention", lambda *a, **k: calls.append(1) or operator(*a, **k))
    got = module(query, context, context, key_lengths=lengths)
    assert calls == [1]
    expected = module(query, context, context.clone(), key_lengths=lengths)  # two objects: two tensors
    assert calls == [1]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    inputs = (query, context)
    assert_equal(gradients(module, got, inputs), gradients(module, expected, inputs))


def test_biases_keep_to_the_general_kernel() -> None:
    case = Case((6, 6, 6), 3, 6, 2, 20, 1, 5)
    module, plain = make(case, bias=True)
    query, context, _ = draw(case)
    assert module.plan(query, context, context)[:3] == ("query", True, True)  # as for `prompt_attention`
    got, expected = module(query, context, context), plain(query, context, context)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    inputs = (query, context)
    assert_equal(gradients(module, got, inputs), gradients(plain, expected, inputs))


def test_bad_input() -> None:
    module = MultiHeadAttention(4, 2, kdim=3)
    query, key, value = torch.randn(2, 1, 4), torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    for arguments, error, message in [
        ((query[0], key, value), ValueError, r"query must be \(problems, rows, 4\), got shape \[1, 4\]"),
        ((query, value, value), ValueError, r"key must be \(problems, rows, 3\), got shape \[2, 5, 4\]"),
        ((query, key[:, :4], value), ValueError, r"of the same N and L, got shapes"),
        ((query[:1], key, value), ValueError, r"of the same N and L, got shapes"),
        ((query, None, value), TypeError, "key must be a torch.Tensor, got NoneType"),
        ((query, key.double(), value), TypeError, r"key must be torch.float32 like the module's parameters, got .*64"),
    ]:
        with pytest.raises(error, match=message):
            module(*arguments)


def test_autocast_may_mix_dtypes() -> None:
    module, query, tokens = MultiHeadAttention(4, 2), torch.randn(2, 1, 4), torch.randn(2, 5, 4)
    expected = module(query, tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(query.bfloat16(), tokens, tokens)
    torch.testing.assert_close(mixed.float(), expected, rtol=0.1, atol=0.03)


def test_layers_that_are_not_linear_are_not_passed_over() -> None:
    """Only their weights are read, so what else they compute would be lost without a word."""

    class Adapter(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    module, x = MultiHeadAttention(4, 2), torch.randn(2, 5, 4)
    parametrize.register_parametrization(module.q_proj, "weight", torch.nn.Tanh())
    module(x, x, x)
    module.v_proj = Adapter(4, 4)
    with pytest.raises(TypeError, match=r"v_proj must compute as torch.nn.Linear does, got Adapter"):
        module(x, x, x)


def test_bad_settings() -> None:
    for settings, message in [
        ({"num_heads": 3}, "embed_dim 4 is not divisible by num_heads 3: give head_dim"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"out_dim": 0}, "out_dim must be at least 1, got 0"),
        ({"activation": "sigmoid"}, "activation must be one of 'softmax', 'linear', 'relu', got 'sigmoid'"),
        ({"projection": "key"}, "projection must be one of 'auto', 'tokens', 'query', got 'key'"),
        ({"projection": "query", "activation": "relu", "bias": True}, "projection must be 'auto' or 'tokens' for relu"),
    ]:
        with pytest.raises(ValueError, match=message):
            MultiHeadAttention(4, **({"num_heads": 2} | settings))
