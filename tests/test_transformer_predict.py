"""The native predictions of the attention-only transformer, and what both of its operators demand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_only import SIZES, Instance, Sizes, instance, predictions
from instruction_sets import INSTRUCTION_SETS, run_again
from prompts import relative_errors
from torch import Tensor

from mhicl_fast.ops.transformer import transformer_predict, transformer_step


def predict(of: Instance) -> Tensor:
    return transformer_predict(of.tokens, of.target.shape[1], of.weights, of.shapes, **of.options)


@pytest.mark.parametrize("activation", ["softmax", "linear"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_is_as_defined(sizes: Sizes, activation: str) -> None:
    of = instance(sizes, activation)
    assert max(relative_errors([predict(of)], [predictions(of)])) < 1e-13
    of = of.converted(torch.float32)
    expected = [predictions(of.converted(torch.float64))]
    (eager,) = relative_errors([predictions(of)], expected)
    assert max(relative_errors([predict(of)], expected)) <= 3 * eager + 2e-6


@pytest.mark.parametrize("missing", ["prompts", "queries"])
def test_predicts_nothing_of_nothing(missing: str) -> None:
    of = instance(SIZES["one layer"]._replace(**{missing: 0}))
    assert predict(of).shape == of.target.shape


def test_masked_heads_add_nothing() -> None:
    of = instance(SIZES["many heads"], head_masks=[torch.arange(8) % 3 == 0, None, torch.zeros(8)])
    assert max(relative_errors([predict(of)], [predictions(of)])) < 1e-13


def test_a_prompt_knows_nothing_of_others_nor_a_query_of_queries() -> None:
    of = instance(SIZES["many heads"]).converted(torch.float32)
    clean = predict(of)
    of.tokens[4, -1, 2] = torch.nan
    dirty = predict(of)
    assert dirty[4, -1].isnan()
    dirty[4, -1] = clean[4, -1]
    assert torch.equal(clean, dirty)


def test_the_same_bits_for_every_number_of_threads() -> None:
    of = instance(SIZES["many heads"]._replace(prompts=53)).converted(torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(predict(of))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_nothing_is_recorded() -> None:
    of = instance(SIZES["one layer"])
    of.tokens.requires_grad_()
    for weight in of.weights:
        weight.requires_grad_()
    assert not predict(of).requires_grad


def test_the_operator_traces() -> None:
    of = instance(SIZES["one layer"]).converted(torch.float32)
    heads, dims = zip(*of.shapes, strict=True)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def traced(tokens: Tensor, n_queries: int, weights: list[Tensor]) -> Tensor:
        options = of.options | {"heads": heads, "head_dims": dims}
        return torch.ops.mhicl.transformer_predict(tokens, n_queries, weights, **options)

    assert torch.equal(traced(of.tokens, of.target.shape[1], of.weights), predict(of))


MODEL = instance(SIZES["one layer"])


def changed(**arguments: Any) -> dict[str, Any]:
    """What both functions are called with, some of it wrong."""
    return {"tokens": MODEL.tokens, "weights": MODEL.weights, "shapes": MODEL.shapes, **MODEL.options, **arguments}


def tokens(*sizes: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict[str, Tensor]:
    return {"tokens": torch.ones(sizes or (3, 20, 5), dtype=dtype, device=device)}


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "tokens' type": (TypeError, "tokens must be a torch.Tensor, got list", {"tokens": [1.0]}),
    "tokens' dtype": (TypeError, "float64 or float32, got torch.float16", tokens(dtype=torch.float16)),
    "tokens' shape": (ValueError, r"got shape \[3, 20\]", tokens(3, 20)),
    "too few tokens": (ValueError, r"examples and 3 queries, dim\), got shape \[3, 2, 5\]", tokens(3, 2, 5)),
    "no dim": (ValueError, r"got shape \[3, 20, 0\]", tokens(3, 20, 0)),
    "other dim": (ValueError, r"read_in must have shape \[32, 6\], got \[32, 5\]", tokens(3, 20, 6)),
    "other dtype": (TypeError, "read_in must be torch.float32 like tokens", tokens(dtype=torch.float32)),
    "device": (ValueError, "let autograd differentiate it", tokens(device="meta")),
    "shapes": (ValueError, r"q of layer 0 must have shape \[48, 32\], got \[32, 32\]", {"shapes": [(3, 16)]}),
    "no layers": (ValueError, "shapes must be", {"shapes": []}),
    "no heads": (ValueError, "shapes must be", {"shapes": [(0, 16)]}),
    "layers": (ValueError, "scales must have one entry for each of the 2 layers, got 1", {"shapes": [(2, 16)] * 2}),
    "scales": (ValueError, "scales must be finite", {"scales": [float("nan")]}),
    "activation": (ValueError, "must be one of softmax, linear, got 'relu'", {"activation": "relu"}),
    "masks": (ValueError, "head_masks must have one entry for each of the 1 layers", {"head_masks": [None, None]}),
    "a mask's shape": (ValueError, r"of shape \[2\], got \[3\]", {"head_masks": [torch.ones(3)]}),
    "a mask's values": (ValueError, r"zeros and ones, got \[1.0, 0.5\]", {"head_masks": [torch.tensor([1, 0.5])]}),
    "weights": (ValueError, "6 tensors, got 0", {"weights": []}),
    "a weight": (TypeError, "read_out must be a torch.Tensor, got NoneType", {"weights": [*MODEL.weights[:-1], None]}),
}


@pytest.mark.parametrize(("error", "message", "arguments"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    call = changed(**arguments)
    with pytest.raises(error, match=message):
        transformer_predict(n_queries=3, **call)
    with pytest.raises(error, match=message):
        transformer_step(target=MODEL.target, **call)


@pytest.mark.parametrize(
    ("error", "message", "target"),
    [
        (TypeError, "target must be a torch.Tensor", 3.0),
        (ValueError, r"target must be \(prompts, queries\)", torch.ones(3)),
        (ValueError, r"target must have shape \[3, 3\], got \[2, 3\]", torch.ones(2, 3).double()),
        (TypeError, "target must be torch.float64 like tokens", torch.ones(3, 3)),
    ],
)
def test_a_wrong_target_is_named(error: type[Exception], message: str, target: Any) -> None:
    with pytest.raises(error, match=message):
        transformer_step(target=target, **changed())


def test_the_operators_check_what_they_get() -> None:
    of = instance(SIZES["one layer"])
    options = of.options | {"heads": [2], "head_dims": [16]}
    for error, weights, others in [
        (ValueError, of.weights[:-1], {}),
        (ValueError, [*of.weights[:2], of.weights[2][1:], *of.weights[3:]], {}),
        (TypeError, [*of.weights[:2], of.weights[2].float(), *of.weights[3:]], {}),
        (ValueError, of.weights, {"activation": "relu"}),
        (ValueError, of.weights, {"heads": [2, 2]}),
    ]:
        with pytest.raises(error):
            torch.ops.mhicl.transformer_predict(of.tokens, 3, weights, **options | others)
        with pytest.raises(error):
            torch.ops.mhicl.transformer_step(of.tokens, of.target, weights, **options | others)
    with pytest.raises(ValueError, match="tokens must be"):
        torch.ops.mhicl.transformer_predict(of.tokens, 21, of.weights, **options)
    with pytest.raises(ValueError, match="target must have shape"):
        torch.ops.mhicl.transformer_step(of.tokens, of.target[1:], of.weights, **options)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa: str) -> None:
    run_again(__file__, isa)
