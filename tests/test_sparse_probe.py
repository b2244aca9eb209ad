"""Probes: gradient descent on features with its derivative, and maps that find features which are there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sparse_models import random_transformer
from torch import Tensor

from mhicl_fast.sparse.analysis.descent import descended_predictions
from mhicl_fast.sparse.analysis.draws import Purpose
from mhicl_fast.sparse.analysis.hidden import raw_examples, regression_starts
from mhicl_fast.sparse.analysis.probe import Probes, probe
from mhicl_fast.sparse.analysis.probe_fit import Examples, fit_map
from mhicl_fast.sparse.analysis.regression import regress
from mhicl_fast.sparse.estimators.algorithm import gradient_descent, preprocess, preprocessed_descent
from mhicl_fast.sparse.estimators.construction import build_transformer
from mhicl_fast.tasks import SparseRegression
from mhicl_fast.tasks.sparse import SparsePrompts

TASK = SparseRegression(3, 1, 15, noise_variance=[0, 0.3])
SMALL = {"n_fit": 256, "n_validation": 64, "n_test": 400, "n_queries": 4, "updates": 40}


def drawn(n_prompts: int, purpose: Purpose, task: SparseRegression = TASK) -> SparsePrompts:
    return task.sample(n_prompts, n_queries=4, seed=9, step=purpose, dtype=torch.float64)


def step_by_step(context: Tensor, labels: Tensor, queries: Tensor, steps: int, c: float) -> Tensor:
    """The definition, whose derivative is PyTorch's."""
    gram = context.mT @ context / context.shape[1]
    beta = torch.zeros_like(context[:, 0])
    for _ in range(steps):
        residual = labels - (context @ beta[..., None])[..., 0]
        slope = (context * residual[..., None]).mean(1)
        beta = beta + c / torch.linalg.eigvalsh(gram)[:, -1:] * slope
    return (queries @ beta[..., None])[..., 0]


@pytest.mark.parametrize(("n", "p", "steps", "c"), [(9, 4, 0, 1.0), (9, 4, 1, 1.0), (3, 5, 7, 1.7), (1, 1, 20, 0.5)])
def test_descent_and_its_derivative_are_those_of_single_steps(n: int, p: int, steps: int, c: float) -> None:
    generator = torch.Generator().manual_seed(n)
    shapes = [(6, n, p), (6, n), (6, 2, p)]
    parts = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    weights = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    found, expected = descended_predictions(*parts, steps, c), step_by_step(*parts, steps, c)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    beta = gradient_descent(parts[0].detach(), parts[1].detach(), steps, c=c)
    torch.testing.assert_close(found, (parts[2] @ beta[..., None])[..., 0], rtol=1e-11, atol=1e-11)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), parts, allow_unused=True) for out in (found, expected))
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if other is None else other, rtol=1e-8, atol=1e-10)


def test_descent_without_examples_or_features_that_vary_predicts_0() -> None:
    for context in (torch.zeros(2, 0, 3), torch.zeros(2, 4, 3)):
        labels = torch.ones(context.shape[:2])
        assert torch.equal(descended_predictions(context, labels, torch.ones(2, 5, 3), 4, 1.0), torch.zeros(2, 5))


def test_what_features_are_turned_and_scaled_by_changes_nothing() -> None:
    examples = raw_examples(drawn(5, Purpose.TESTING))
    turn = 3 * torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    first, second = (e.squared_errors(6, 1.0) for e in (examples, examples.mapped(turn)))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("from_regression", "updates"), [(True, 80), (False, 300)], ids=["regression", "random"])
def test_a_probe_on_exact_features_finds_them(from_regression: bool, updates: int) -> None:
    """States that are the features |r̂_j| x_j mixed by a matrix A, beside numbers that tell nothing.

    As flips of a coordinate's sign and exchanges of two leave the task as it is, no direction of these features is
    better than another. So the map is found up to what predictions do not tell: P A is a multiple of a rotation, so
    that (P A)ᵀ P A is one of the identity, and P is 0 on the rest.
    """
    steps, generator = 5, torch.Generator().manual_seed(3)
    mixing = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    beside = torch.randn(5, 2, generator=generator, dtype=torch.float64)

    def states(prompts: SparsePrompts) -> Examples:
        size = preprocess(prompts.x, prompts.y).abs()[:, None]
        context, queries = (
            (size * x) @ mixing.T + torch.randn(*x.shape[:2], 2, generator=generator, dtype=torch.float64) @ beside.T
            for x in (prompts.x, prompts.x_query)
        )
        return Examples(context, prompts.y, queries, prompts.target)

    fit, validation, test = (
        drawn(n, p) for n, p in ((2048, Purpose.FITTING), (256, Purpose.VALIDATION), (2000, Purpose.TESTING))
    )
    examples = states(fit)
    starts = regression_starts(examples, fit)[1:2] if from_regression else []
    found = fit_map(
        examples, states(validation), 3, steps, 1.0, starts=starts, n_random_starts=1, seed=1, updates=updates
    )
    exact = (preprocessed_descent(test.x, test.y, steps)[:, None] * test.x_query).sum(2) - test.target
    gap = (states(test).mapped(found).squared_errors(steps, 1.0) - exact.square()).mean(1)
    assert abs(float(gap.mean())) < 0.02 * float(exact.square().mean()) + 3 * float(gap.std()) / len(gap) ** 0.5
    seen = found @ torch.cat([mixing, beside], 1)
    gram = seen.T @ seen
    expected = torch.diag(torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(gram * 3 / gram[:3, :3].trace(), expected, rtol=0, atol=0.1)


def test_the_layer_that_preprocesses_is_found_in_a_built_transformer() -> None:
    model = build_transformer(3, 1, step_size=0.5, dtype=torch.float64)
    result = probe(model, TASK, steps=[1, 4], seed=9, **SMALL)
    at = {source: result.risk[index] for index, source in enumerate(result.sources)}
    assert list(at) == ["x", "r̂x", "P x", "P h0", "P h1", "P h2"]
    test = drawn(400, Purpose.TESTING)
    for column, steps in enumerate((1, 4)):
        for source, descend in (("x", gradient_descent), ("r̂x", preprocessed_descent)):
            errors = ((descend(test.x, test.y, steps)[:, None] * test.x_query).sum(2) - test.target).square().mean(1)
            assert at[source].value[column] == pytest.approx(float(errors.mean()), rel=1e-9)
            assert at[source].se[column] == pytest.approx(float(errors.std()) / 20, rel=1e-9)
        assert at["P h1"].value[column] < 1.05 * at["r̂x"].value[column]
        assert at["P h1"].value[column] < at["P h0"].value[column] - 3 * at["P h0"].se[column]
        assert at["P x"].value[column] < 1.05 * at["x"].value[column]
    assert np.allclose(result.risk_by_noise.value.mean(2), result.risk.value)
    with torch.no_grad():
        errors = (model(test.tokens(), 4) - test.target).square().mean(1)
    assert result.model_risk.value == pytest.approx(float(errors.mean()), rel=1e-9)
    assert result.model_risk_by_noise.value[1] == pytest.approx(float(errors[1::2].mean()), rel=1e-9)


@pytest.mark.parametrize("n_features", [1, 5])
def test_maps_of_other_sizes_are_fitted_deterministically(n_features: int) -> None:
    model = random_transformer([(2, 3)])
    state = torch.random.get_rng_state()
    sizes = {"n_fit": 20, "n_validation": 10, "n_test": 10, "n_queries": 1, "updates": 8}
    first, again = (probe(model, TASK, steps=[0, 2], n_features=n_features, seed=9, **sizes) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    text = json.dumps(first.to_dict(), allow_nan=False)
    assert json.dumps(again.to_dict()) == text
    assert json.dumps(Probes.from_dict(json.loads(text)).to_dict()) == text
    zero = float(drawn(10, Purpose.TESTING).target[:, :1].square().mean())
    assert np.allclose(first.risk.value[:, 0], zero)  # no steps: predicts 0


def test_regression_is_least_squares_and_bears_inputs_that_depend_on_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(50, k, generator=generator, dtype=torch.float64) for k in (4, 2))
    expected = torch.linalg.lstsq(inputs, outputs).solution.T
    torch.testing.assert_close(regress(inputs, outputs), expected, rtol=1e-6, atol=1e-8)
    doubled = torch.cat([inputs, inputs, torch.zeros(50, 1, dtype=torch.float64)], 1)
    fitted = doubled @ regress(doubled, outputs).T
    torch.testing.assert_close(fitted, inputs @ expected.T, rtol=1e-6, atol=1e-7)


def test_bad_arguments_are_told() -> None:
    model = random_transformer([(2, 3)])
    with pytest.raises(ValueError, match="steps must be one or more"):
        probe(model, TASK, steps=[], seed=0)
    with pytest.raises(ValueError, match=r"step_factor in \(0, 2\)"):
        probe(model, TASK, step_factor=2.0, seed=0)
    with pytest.raises(ValueError, match="n_features must be at least 1, got 0"):
        probe(model, TASK, n_features=0, seed=0)
    with pytest.raises(ValueError, match="n_test must be 2 for each noise variance"):
        probe(model, TASK, n_test=3, seed=0)
