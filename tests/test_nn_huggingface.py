"""Tiny transformers models, randomly initialised, against their own eager attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from multi_head_modules import gradients
from torch import Tensor, nn

from mhicl_fast.nn import huggingface

VOCABULARY, LENGTH = 17, 9
LENGTHS = [LENGTH, 5, 2]  # real tokens in each of three prompts


def gpt2(**settings: Any) -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=12, n_layer=2, n_head=3,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=0, eos_token_id=None, **settings,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(**settings: Any) -> Any:
    """Two key heads for six query heads."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=None, **settings,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def mistral(**settings: Any) -> Any:
    """A window of three tokens."""
    config = transformers.MistralConfig(
        vocab_size=VOCABULARY, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, sliding_window=3, bos_token_id=0, eos_token_id=None,
        **settings,
    )  # fmt: skip
    return transformers.MistralForCausalLM(config)


def bert(**settings: Any) -> Any:
    """Sees both ways."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, **settings,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def t5(**settings: Any) -> Any:
    """Adds learnt position biases to the logits, and has an encoder."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=3, dropout_rate=0.0,
        decoder_start_token_id=0, **settings,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


# The eager attention of some takes its softmax in float32, where padded rows of a float64 model are NaN.
COMPARED = [
    (gpt2, "eager", torch.float64),
    (bert, "eager", torch.float64),
    (llama, "eager", torch.float32),
    (llama, "sdpa", torch.float64),
    (mistral, "eager", torch.float32),
    (mistral, "sdpa", torch.float64),
]
TOLERANCES = {torch.float64: {"rtol": 1e-8, "atol": 1e-9}, torch.float32: {"rtol": 1e-3, "atol": 1e-4}}


def pair(make: Any, theirs: str = "eager", dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """One model twice: with transformers' attention, and with ours."""
    huggingface.register()
    torch.manual_seed(1)
    eager = make(attn_implementation=theirs).to(dtype)
    for parameter in eager.parameters():  # weights as drawn are so small that the attention is uniform
        nn.init.normal_(parameter, std=0.3)
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("mhicl_fast")
    assert ours.config._attn_implementation == "mhicl_fast"
    return eager, ours


def padded(side: str) -> dict[str, Tensor]:
    tokens = torch.randint(VOCABULARY, (len(LENGTHS), LENGTH))
    real = torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": tokens, "attention_mask": (real.flip(1) if side == "left" else real).long()}


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize(("make", "theirs", "dtype"), COMPARED)
def test_logits_and_gradients_on_real_tokens(make: Any, theirs: str, dtype: torch.dtype, padding: str) -> None:
    eager, ours = pair(make, theirs, dtype)
    batch = padded(padding)
    if padding == "none":
        del batch["attention_mask"]
    real = batch.get("attention_mask", torch.ones(3, LENGTH)).bool()
    expected, got = eager(**batch).logits[real], ours(**batch).logits[real]
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, **TOLERANCES[dtype])
    got_grads, expected_grads = gradients(ours, got), gradients(eager, expected)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(got_grads[name], grad, **TOLERANCES[dtype], msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_position_biases_and_cross_attention(side: str) -> None:
    eager, ours = pair(t5)
    batch = padded(side)
    decoder = {"decoder_input_ids": torch.randint(VOCABULARY, (len(LENGTHS), 4))}
    expected, got = eager(**batch, **decoder).logits, ours(**batch, **decoder).logits
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    got_grads, expected_grads = gradients(ours, got), gradients(eager, expected)
    assert any("relative_attention_bias" in name for name in expected_grads)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(got_grads[name], grad, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@pytest.mark.parametrize(("make", "theirs"), [(gpt2, "eager"), (llama, "sdpa"), (mistral, "sdpa")])
def test_generation(make: Any, theirs: str, cache: str, padding: str) -> None:
    """With a cache one row attends to many keys, and the first call may have a cache longer than the prompt."""
    eager, ours = pair(make, theirs)
    settings: dict[str, Any] = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    if cache == "static":
        settings["disable_compile"] = True
    batch = padded(padding)
    if padding == "none":
        batch["attention_mask"].fill_(1)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    options |= {"return_dict_in_generate": True}
    with torch.no_grad():
        expected, got = (m.eval().generate(**batch, **options, **settings) for m in (eager, ours))
    assert torch.equal(got.sequences, expected.sequences)
    for step, logits in zip(got.logits, expected.logits, strict=True):
        torch.testing.assert_close(step, logits, rtol=1e-9, atol=1e-10)


def test_several_rows_after_a_cache() -> None:
    """A second chunk of a prompt: rows at the end of the keys, where causality counts from the end."""
    eager, ours = pair(gpt2)
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    outs = []
    for model in (eager, ours):
        first = model(tokens[:, :4], use_cache=True)
        outs.append(model(tokens[:, 4:], past_key_values=first.past_key_values).logits)
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(outs[1], ours(tokens).logits[:, 4:], rtol=1e-9, atol=1e-10)


def test_custom_masks_of_four_dimensions() -> None:
    eager, ours = pair(gpt2)
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    mask = torch.randn(2, 1, LENGTH, LENGTH).double()
    expected, got = (model(tokens, attention_mask=mask).logits for model in (eager, ours))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_compiled() -> None:
    _, ours = pair(gpt2)
    batch = padded("left")
    expected = ours(**batch).logits
    torch._dynamo.reset()
    got = torch.compile(ours, backend="aot_eager")(**batch).logits
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_weights() -> None:
    query, key, value = torch.randn(2, 4, 3, 5), torch.randn(2, 2, 6, 5), torch.randn(2, 2, 6, 7)
    module = nn.Module()
    for masked in (True, False):
        mask = torch.rand(2, 1, 3, 6) < 0.7 if masked else None
        out, none = huggingface.attention_forward(module, query, key, value, mask, is_causal=False)
        again, weights = huggingface.attention_forward(
            module, query, key, value, mask, is_causal=False, output_attentions=True
        )
        assert none is None
        assert weights is not None
        assert out.shape == (2, 3, 4, 7)
        torch.testing.assert_close(again, out)
        by_hand = weights @ value.repeat_interleave(2, 1)
        torch.testing.assert_close(by_hand.transpose(1, 2), out)


def test_what_is_not_supported() -> None:
    x = torch.randn(1, 2, 3, 4)
    for arguments, message in [
        ({"dropout": 0.1}, r"no dropout on the attention weights, got 0.1: set attn_pdrop"),
        ({"softcap": 30.0}, r"soft-capped logits \(softcap\)"),
        ({"s_aux": torch.zeros(2)}, r"attention sinks \(s_aux\)"),
        ({"cache": object()}, r"a paged cache \(cache\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            huggingface.attention_forward(nn.Module(), x, x, x, None, **arguments)
    _, model = pair(gpt2)
    model.train().transformer.h[0].attn.attn_dropout.p = 0.1
    with pytest.raises(ValueError, match="no dropout on the attention weights"):
        model(torch.zeros(1, 3, dtype=torch.long))
    model.eval()(torch.zeros(1, 3, dtype=torch.long))


def test_both_interfaces_know_the_name() -> None:
    """Without the mask function models would run without causality and padding."""
    assert huggingface.register() == "mhicl_fast"
    assert "mhicl_fast" in transformers.AttentionInterface()
    assert "mhicl_fast" in transformers.AttentionMaskInterface()
