"""Layers against gradient steps, on transformers that are built of gradient steps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sparse_models import random_transformer

from mhicl_fast.sparse.analysis.contents import LayerContents, contents, layer_contents
from mhicl_fast.sparse.analysis.correspondence import Correspondence, correspondence, implied
from mhicl_fast.sparse.analysis.draws import Purpose
from mhicl_fast.sparse.estimators.algorithm import gradient_descent, preprocess, preprocessed_descent
from mhicl_fast.sparse.estimators.construction import build_transformer
from mhicl_fast.tasks import SparseRegression

TASK = SparseRegression(3, 1, 15, noise_variance=[0, 0.3])


def test_implied_coefficients_of_built_layers_are_those_of_gradient_steps() -> None:
    model = build_transformer(3, 4, step_size=0.3, dtype=torch.float64)
    prompts = TASK.sample(7, n_queries=3, seed=2, dtype=torch.float64)
    predictions, coefficients = implied(model, prompts, [model.read_out.detach()] * 6)
    assert coefficients.shape == (6, 7, 3)
    assert torch.equal(coefficients[:2], torch.zeros(2, 7, 3, dtype=torch.float64))  # before the first step
    beta = preprocessed_descent(prompts.x, prompts.y, [0, 1, 2, 3, 4], step_size=0.3)
    torch.testing.assert_close(coefficients[1:], beta, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(predictions[1:], torch.einsum("tnd, nqd -> tnq", beta, prompts.x_query))
    assert all(weight.grad is None for weight in model.parameters())


def test_agreement_is_that_of_a_loop_over_prompts() -> None:
    model = random_transformer([(2, 3), (1, 4)])
    result = correspondence(model, TASK, max_steps=2, n_fit=60, n_test=10, n_queries=2, seed=9)
    fit, test = (
        TASK.sample(n, n_queries=2, seed=9, step=purpose, dtype=torch.float64)
        for n, purpose in ((60, Purpose.FITTING), (10, Purpose.TESTING))
    )
    with torch.no_grad():
        states = model.hidden_states(fit.tokens(), 2)
    read_outs = [torch.linalg.lstsq(h[:, -2:].flatten(0, 1), fit.target.reshape(-1, 1)).solution[:, 0] for h in states]
    predictions, ours = implied(model, test, read_outs)
    for agreement, descend in ((result.raw, gradient_descent), (result.preprocessed, preprocessed_descent)):
        for layer in (1, 2):
            beta = descend(test.x, test.y, 2)
            cosines = torch.cosine_similarity(ours[layer], beta)
            assert agreement.cosine.value[layer, 2] == pytest.approx(float(cosines.mean()), rel=1e-3)
            assert agreement.cosine.se[layer, 2] == pytest.approx(float(cosines.std()) / 10**0.5, rel=1e-2)
            away = (ours[layer] - beta).square().sum() / test.coefficients.square().sum()
            assert agreement.distance.value[layer, 2] == pytest.approx(float(away), rel=1e-3)
            stepped = (test.x_query @ beta[..., None])[..., 0]
            expected = np.corrcoef(stepped.flatten(), predictions[layer].flatten())[0, 1]
            assert agreement.prediction_correlation.value[layer, 2] == pytest.approx(expected, rel=1e-3)
    assert np.isnan(result.raw.cosine.value[:, 0]).all()  # β⁰ = 0 has no direction
    risks = (predictions - test.target).square().mean((1, 2))
    assert np.allclose(result.read_out_risk.value, risks, rtol=1e-3)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.dumps(Correspondence.from_dict(json.loads(text)).to_dict()) == text


def test_contents_are_found_where_a_layer_writes_them() -> None:
    model = build_transformer(3, 1, step_size=0.3, dtype=torch.float64)
    sizes = {"n_fit": 512, "n_validation": 64, "n_test": 300, "n_queries": 2, "updates": 20}
    result = layer_contents(model, TASK, probe_steps=2, seed=9, **sizes)
    scaled, sized, raw = range(3)
    assert np.allclose(result.r2.value[1:, scaled], 1, atol=1e-6)
    assert (result.r2.value[0, scaled] < 0.5).all()
    assert np.allclose(result.r2.value[:, raw], 1, atol=1e-6)
    assert (result.r2.value[:, sized] < 0.95).all()
    assert (result.probed.value[1, scaled] > result.probed.value[0, scaled] + 0.3).all()
    assert np.allclose(result.probed.value[0, raw], 1, atol=0.02)
    assert result.pooled_r2.value.shape == result.pooled_probed.se.shape == (3, 3)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.dumps(LayerContents.from_dict(json.loads(text)).to_dict()) == text


def test_contents_are_the_preprocessed_covariates() -> None:
    prompts = TASK.sample(4, seed=1, dtype=torch.float64)
    scale = preprocess(prompts.x, prompts.y)[:, None]
    expected = torch.stack([scale * prompts.x, scale.abs() * prompts.x, prompts.x])
    torch.testing.assert_close(contents(prompts), expected)


def test_bad_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="max_steps must be at least 0, got -1"):
        correspondence(random_transformer([(1, 2)]), TASK, max_steps=-1, seed=0)
