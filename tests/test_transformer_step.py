"""The native training step of the attention-only transformer: loss and gradients by its definition."""

from __future__ import annotations

import pytest
import torch
from attention_only import SIZES, Instance, Sizes, instance, loss_and_gradients
from instruction_sets import INSTRUCTION_SETS, run_again
from prompts import relative_errors
from torch import Tensor

from mhicl_fast.ops.transformer import transformer_step
from mhicl_fast.sparse.model import Transformer

ACTIVATIONS = ["softmax", "linear"]


def step(of: Instance) -> list[Tensor]:
    loss, gradients = transformer_step(of.tokens, of.target, of.weights, of.shapes, **of.options)
    return [torch.tensor(loss, dtype=torch.float64), *gradients]


def float32_errors(of: Instance) -> tuple[list[float], list[float]]:
    """In float32: the step's errors, and those of the plain definition."""
    in_single = of.converted(torch.float32)
    expected = loss_and_gradients(in_single.converted(torch.float64))
    return relative_errors(step(in_single), expected), relative_errors(loss_and_gradients(in_single), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_is_as_defined(sizes: Sizes, activation: str) -> None:
    of = instance(sizes, activation)
    assert max(relative_errors(step(of), loss_and_gradients(of))) < 1e-12
    ours, eager = torch.tensor(float32_errors(of))
    assert (ours <= 3 * eager + 2e-6).all()


@pytest.mark.parametrize("logit_scale", [0.01, 30.0, 1e4])
def test_is_as_exact_as_eager_at_any_size_of_logits(logit_scale: float) -> None:
    """In one layer, by the median of some: several layers that are so steep blow up any rounding beyond comparison."""
    errors = [float32_errors(instance(SIZES["one layer"], seed=seed, logit_scale=logit_scale)) for seed in range(9)]
    ours, eager = torch.tensor(errors).median(0).values
    assert (ours <= 3 * eager + 2e-6).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [SIZES["many heads"], SIZES["heads of all sizes"]], ids=["many", "all sizes"])
def test_masked_heads_add_nothing_and_have_no_gradient(sizes: Sizes, activation: str) -> None:
    masks = [torch.ones(heads) for heads, _ in sizes.shapes]
    masks[0][::2] = 0
    masks[1].zero_()
    masks[2] = None
    of = instance(sizes, activation, head_masks=masks)
    assert max(relative_errors(step(of), loss_and_gradients(of))) < 1e-12
    masks[0] = masks[0].bool()
    assert max(relative_errors(step(of), loss_and_gradients(of))) < 1e-12


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_the_models_own_gradient(activation: str) -> None:
    of = instance(SIZES["heads of all sizes"], activation=activation).converted(torch.float32)
    model = Transformer(5, 23, of.shapes, activation=activation)
    layers = [(layer.q, layer.k, layer.v, layer.o) for layer in model.layers]
    weights = [model.read_in, *(weight for layer in layers for weight in layer), model.read_out]
    with torch.no_grad():
        model.read_out.normal_(generator=torch.Generator().manual_seed(1))
    loss = (model(of.tokens, of.target.shape[1]) - of.target).square().mean()
    expected = [loss.detach(), *torch.autograd.grad(loss, weights)]
    options = of.options | {"scales": [layer.scale for layer in model.layers]}
    got = step(of._replace(weights=weights, options=options))
    assert max(relative_errors(got, expected)) < 1e-5
    assert not any(gradient.requires_grad for gradient in got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ["many heads", "heads of all sizes", "one layer"])
def test_the_same_bits_for_every_number_of_threads(shape: str, dtype: torch.dtype) -> None:
    of = instance(SIZES[shape]._replace(prompts=53)).converted(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(step(of))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_layouts_give_the_same_bits() -> None:
    of = instance(SIZES["heads of all sizes"]).converted(torch.float32)

    def elsewhere(x: Tensor) -> Tensor:
        backing = x.new_full((*x.shape, 2), torch.nan)
        backing[..., 1] = x
        return backing[..., 1]

    scattered = of._replace(
        tokens=of.tokens.transpose(0, 2).contiguous().transpose(0, 2),
        target=of.target.T.contiguous().T,
        weights=[elsewhere(weight) for weight in of.weights],
    )
    assert not any(x.is_contiguous() for x in (scattered.tokens, scattered.target, *scattered.weights))
    assert all(torch.equal(a, b) for a, b in zip(step(of), step(scattered), strict=True))


@pytest.mark.parametrize("missing", ["prompts", "queries"])
def test_the_mean_of_nothing_is_nan_and_has_no_gradient(missing: str) -> None:
    loss, *gradients = step(instance(SIZES["one layer"]._replace(**{missing: 0})))
    assert loss.isnan()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("where", ["context", "query", "q", "v", "read-out"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(bad: float, where: str, activation: str) -> None:
    of = instance(SIZES["many heads"], activation=activation).converted(torch.float32)
    if where == "context":
        of.tokens[4, 3, 2] = bad
    elif where == "query":
        of.tokens[4, -1, 2] = bad
    else:
        of.weights[{"q": 5, "v": 7, "read-out": -1}[where]].view(-1)[1] = bad
    expected = loss_and_gradients(of)
    for value, truth in zip(step(of), expected, strict=True):
        assert value.isfinite().logical_or(~truth.isfinite()).all()  # no more than by definition, ...
        assert (~value.isfinite()).any() == (~truth.isfinite()).any()  # ... and no less


def test_the_operator_traces() -> None:
    of = instance(SIZES["one layer"]).converted(torch.float32)
    heads, dims = zip(*of.shapes, strict=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def traced(tokens: Tensor, target: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return torch.ops.mhicl.transformer_step(tokens, target, weights, heads=heads, head_dims=dims, **of.options)

    loss, gradients = traced(of.tokens, of.target, of.weights)
    assert all(torch.equal(a, b) for a, b in zip([loss, *gradients], step(of), strict=True))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa: str) -> None:
    run_again(__file__, isa)
