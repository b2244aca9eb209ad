"""Transformers with heads cut out, against the same with these heads masked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sparse_models import random_transformer

from mhicl_fast.sparse.analysis.draws import Purpose
from mhicl_fast.sparse.analysis.prune import Comparison, compare, keep_heads, prune_to_dominant
from mhicl_fast.tasks import SparseRegression

TASK = SparseRegression(3, 2, 7, noise_variance=[0, 0.5])
LAYERS = [(4, 3), (1, 5), (3, 2)]


@pytest.mark.parametrize("activation", ["softmax", "linear"])
@pytest.mark.parametrize("extras", [{}, {"layer_norm": True, "mlp_width": 5, "scale": 0.7}], ids=str)
def test_kept_heads_are_the_function_with_the_others_masked(activation: str, extras: dict[str, object]) -> None:
    model = random_transformer(LAYERS, activation=activation, **extras)
    prompts = TASK.sample(6, n_queries=2, seed=1, dtype=torch.float64)
    tokens = prompts.tokens()
    before = torch.random.get_rng_state()
    pruned = keep_heads(model, [[3, 1], [0], [2]])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert pruned.shapes == [(2, 3), (1, 5), (1, 2)]
    with model.masked([(0, 0), (0, 2), (2, 0), (2, 1)]):
        expected = model(tokens, 2)
    torch.testing.assert_close(pruned(tokens, 2), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(keep_heads(model, [range(4), [0], range(3)])(tokens, 2), model(tokens, 2))


def test_a_pruned_transformer_is_its_own() -> None:
    model = random_transformer(LAYERS)
    tokens = TASK.sample(6, n_queries=2, seed=1, dtype=torch.float64).tokens()
    expected = model(tokens, 2)
    pruned = prune_to_dominant(model, np.array([2, 0, 1]))
    assert pruned.shapes == [(4, 3), (1, 5), (1, 2)]
    pruned(tokens, 2).square().sum().backward()
    with torch.no_grad():
        for weight in pruned.parameters():
            assert weight.grad is not None
            weight -= weight.grad
    assert torch.equal(model(tokens, 2), expected)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("kept", [[[0], [0]], [[0], [], [0]], [[0], [1], [0]], [[0, 0], [0], [0]], [[-1], [0], [0]]])
def test_heads_that_are_not_there_are_told(kept: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="one or more heads of each layer"):
        keep_heads(random_transformer(LAYERS), kept)


def test_comparison_is_of_the_same_prompts() -> None:
    models = {"a": random_transformer(LAYERS), "b": random_transformer(LAYERS, seed=1)}
    result = compare({**models, "again": models["a"]}, TASK, n_prompts=30, n_queries=2, seed=4, context_lengths=[7, 2])
    task = TASK.replace(context_length=2, noise_variance=0.5)
    prompts = task.sample(30, n_queries=2, seed=4, step=Purpose.COMPARISON, dtype=torch.float64)
    with torch.no_grad():
        a, b = ((m(prompts.tokens(), 2) - prompts.target).square().mean(1).numpy() for m in models.values())
    assert np.allclose(result.risk.value[:2, 1, 1], [a.mean(), b.mean()])
    assert np.allclose(result.ratio.value[1, 1, 1], b.mean() / a.mean())
    influence = (b - b.mean() / a.mean() * a) / a.mean()
    assert np.allclose(result.ratio.se[1, 1, 1], influence.std(ddof=1) / 30**0.5)
    assert np.allclose(result.ratio.value[2], 1)
    assert np.allclose(result.ratio.se[2], 0)
    assert np.allclose(result.pooled_risk.value, result.risk.value[:, 0].mean(1))
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.dumps(Comparison.from_dict(json.loads(text)).to_dict()) == text


def test_the_reference_is_one_of_the_models() -> None:
    model = random_transformer(LAYERS)
    assert compare({"a": model, "b": model}, TASK, reference="b", n_prompts=2, seed=0).reference == "b"
    with pytest.raises(ValueError, match="reference must be one of the models a, got 'b'"):
        compare({"a": model}, TASK, reference="b", seed=0)
    with pytest.raises(ValueError, match="reference must be one of the models"):
        compare({}, TASK, seed=0)
