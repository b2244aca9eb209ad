"""Masked heads and what their masking costs, against models whose weights were set to zero by hand."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sparse_models import random_transformer, without_output

from mhicl_fast.sparse.analysis.assess import HeadImportance, head_importance, shares
from mhicl_fast.sparse.analysis.draws import Purpose
from mhicl_fast.sparse.analysis.statistics import Estimate
from mhicl_fast.sparse.model import Transformer
from mhicl_fast.tasks import SparseRegression

TASK = SparseRegression(3, 2, 7, noise_variance=[0, 0.5])
LAYERS = [(4, 3), (1, 5), (3, 2)]


def importance(model: Transformer, n_prompts: int = 40, **conditions: list[int]) -> HeadImportance:
    return head_importance(model, TASK, n_prompts=n_prompts, n_queries=3, seed=11, **conditions)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"activation": "linear", "layer_norm": True, "mlp_width": 5}], ids=str)
def test_a_rise_is_that_of_the_model_without_the_heads_output(settings: dict[str, object]) -> None:
    model = random_transformer(LAYERS, **settings)
    measured = importance(model, context_lengths=[7, 1])
    for length, level in ((0, 0), (0, 1), (1, 1)):
        task = TASK.replace(context_length=[7, 1][length], noise_variance=[0, 0.5][level])
        prompts = task.sample(40, n_queries=3, seed=11, step=Purpose.IMPORTANCE, dtype=torch.float64)
        for layer, head in ((0, 2), (1, 0), (2, 1)):
            other = copy.deepcopy(model)
            other.load_state_dict(without_output(model, layer, [head]))
            with torch.no_grad():
                whole, less = ((m(prompts.tokens(), 3) - prompts.target).square().mean(1) for m in (model, other))
            at = (length, level, layer, head)
            assert measured.risk.value[length, level] == pytest.approx(float(whole.mean()), rel=1e-12)
            assert measured.risk_masked.value[at] == pytest.approx(float(less.mean()), rel=1e-12)
            assert measured.rise.value[at] == pytest.approx(float((less - whole).mean()), rel=1e-9)
            assert measured.rise.se[at] == pytest.approx(float((less - whole).std()) / 40**0.5, rel=1e-9)
    assert np.allclose(measured.pooled_rise.value, measured.rise.value.mean((0, 1)), equal_nan=True)


def test_a_head_without_output_has_no_importance() -> None:
    model = random_transformer(LAYERS)
    model.load_state_dict(without_output(model, 0, [1, 3]))
    model.load_state_dict(without_output(model, 2, [0, 1, 2]))
    measured = importance(model)
    for layer, head in ((0, 1), (0, 3), (2, 0), (2, 1), (2, 2)):
        assert (measured.rise.value[..., layer, head] == 0).all()
        assert (measured.rise.se[..., layer, head] == 0).all()
        assert measured.selection.value[layer, head] == 0
    assert measured.dominant_share(2) is None  # not 0/0
    assert np.isnan(measured.share.value[:, :, 2]).all()


def test_masks_restore_exactly() -> None:
    model = random_transformer(LAYERS)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    tokens = TASK.sample(5, seed=0, dtype=torch.float64).tokens()
    before = model(tokens, 1)
    with model.masked([(0, 1)]):
        once = model(tokens, 1)
        with model.masked([(0, 1), (2, 0)]):
            assert not torch.equal(model(tokens, 1), once)
        assert torch.equal(model(tokens, 1), once)
        with pytest.raises(ValueError, match="tokens must be"), model.masked([(2, 0)]):
            model(tokens[0], 1)
        assert torch.equal(model(tokens, 1), once)
        with pytest.raises(ValueError, match="no head 3 in layer 2"), model.masked([(0, 0), (2, 3)]):
            pass
        assert torch.equal(model(tokens, 1), once)
    assert torch.equal(model(tokens, 1), before)
    importance(model)
    assert torch.equal(model(tokens, 1), before)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_shares_leave_negative_rises_out_and_noise_undefined() -> None:
    rng = np.random.default_rng(0)
    rises = rng.normal([3.0, 1.0, -2.0, 0.0], 1, (400, 4)).T
    rises[3] = np.nan  # no such head
    share = shares(rises)
    total = rises[:2].mean(1).sum()
    assert np.allclose(share.value, [*(rises[:2].mean(1) / total), 0, np.nan], equal_nan=True)
    assert np.allclose(share.se[0], (rises[0] - share.value[0] * rises[:2].sum(0)).std(ddof=1) / 20 / total)
    assert np.allclose(share.se[2], (rises[2] + 2 / 4 * rises[:2].sum(0)).std(ddof=1) / 20 / total, rtol=0.1)
    noise = rng.normal(0, 1, (4, 400))
    noise += 0.1 - noise.mean(1, keepdims=True)  # two standard errors above 0
    assert np.isnan(shares(noise).value).all()
    assert not np.isnan(shares(2 * noise.repeat(4, 1)).value).any()  # of more prompts: four standard errors
    assert np.array_equal(shares(rises[:1]).value, [1.0])
    assert np.array_equal(shares(rises[:1]).se, [0.0])


def test_heads_are_chosen_on_prompts_of_their_own() -> None:
    measured = importance(random_transformer(LAYERS))
    assert not np.isclose(measured.selection.value, measured.pooled_rise.value).any()
    assert np.array_equal(measured.dominant, np.nanargmax(measured.selection.value, -1))


def test_importance_is_a_pure_function_and_goes_through_json() -> None:
    model = random_transformer(LAYERS)
    state = torch.random.get_rng_state()
    first, again = importance(model), importance(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    text = json.dumps(first.to_dict(), allow_nan=False)
    assert json.dumps(again.to_dict()) == text
    assert json.dumps(HeadImportance.from_dict(json.loads(text)).to_dict()) == text
    assert np.isnan(first.pooled_rise.value[1, 1:]).all()  # the second layer has one head
    known = replace(first, pooled_share=Estimate(np.eye(3), np.full((3, 3), 0.1)), dominant=np.arange(3))
    assert known.dominant_share(1) == (1.0, 0.1)


def test_bad_arguments_are_told() -> None:
    model = random_transformer(LAYERS)
    with pytest.raises(ValueError, match="2 prompts and 1 query at least, got n_prompts=1"):
        importance(model, n_prompts=1)
    with pytest.raises(ValueError, match="must not be empty"):
        importance(model, context_lengths=[])
    with pytest.raises(ValueError, match="model's dim_x = 3, got 4"):
        head_importance(model, SparseRegression(4), seed=0)
